"""The best trades among measured points."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puma_edge.bundle import Bundle, Manifest, Precision, seal
from puma_edge.cli_sweep import milliseconds
from puma_edge.config import ExportConfig
from puma_edge.errors import UsageError
from puma_edge.images import PixelLimits
from puma_edge.prompts import PromptFormat
from puma_edge.sample import base_folder
from puma_edge.sweep import SweepConfig, _bundle, _key
from puma_edge.trade import Point, front, pick
from tests.checkout import run_python
from tests.commands import puma

MANIFEST = Manifest("id", "base", "model", (0,), 1, 8, PixelLimits(), PromptFormat())


def point(recall: float, text_ms: float, image_ms: float = 0.0) -> Point:
    """A point of which only this matters."""
    return Point("b", 4, "fp32", 100, 8, recall, text_ms, image_ms, 1, 1)


points = st.lists(
    st.builds(point, *[st.integers(0, 5).map(float)] * 3), min_size=1, max_size=12
)  # few values, so that many are equal


@given(points)
def test_the_front_is_what_no_other_point_beats(given_points: list[Point]) -> None:
    found = front(given_points)
    assert sorted(one.latency_ms for one in given_points) == [one.latency_ms for one in found]
    best = [one for one in found if one.best]
    for one in found:
        beaten = any(
            (other.recall >= one.recall and other.latency_ms < one.latency_ms)
            or (other.recall > one.recall and other.latency_ms <= one.latency_ms)
            for other in found
        )
        same = any((b.recall, b.latency_ms) == (one.recall, one.latency_ms) for b in best)
        assert same is not beaten  # of equal points one is enough
    assert [one.recall for one in best] == sorted({one.recall for one in best})


@given(points, st.none() | st.floats(0, 6), st.none() | st.floats(0, 1))
def test_a_pick_keeps_the_limits_and_none_is_better(
    given_points: list[Point], most_ms: float | None, least: float | None
) -> None:
    highest = max(one.recall for one in given_points)
    fits = [
        one
        for one in given_points
        if (most_ms is None or one.latency_ms <= most_ms)
        and (least is None or one.recall >= least * highest)
    ]
    found = pick(given_points, most_ms, least)
    assert (found is None) is (not fits)
    if found is not None:
        assert found in fits
        if most_ms is None:
            assert found.latency_ms == min(one.latency_ms for one in fits)
        else:
            assert found.recall == max(one.recall for one in fits)


@pytest.mark.parametrize(
    ("text", "expected"), [("30ms", 30.0), ("30", 30.0), ("0.5s", 500.0), (" 1.5 ms", 1.5)]
)
def test_times(text: str, expected: float) -> None:
    assert milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "-3ms", "3m", "1e3ms"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time"):
        milliseconds(text)


def test_peak_memory_is_the_process_own(tmp_path: Path) -> None:
    """A process inherits what its parent has taken, and with it what `getrusage` tells."""
    child = "from puma_edge.bench_worker import peak_bytes; print(peak_bytes())"
    parent = f"""
import subprocess, sys
import numpy as np
held = np.ones(2**27)  # 1 GiB
found = subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, check=True)
from puma_edge.bench_worker import peak_bytes
print(int(found.stdout), peak_bytes())
"""
    child_bytes, parent_bytes = map(int, run_python("-c", parent, cwd=tmp_path).split())
    assert child_bytes < 2**29 < 2**30 < parent_bytes


def test_a_sweep_measures_once_and_picks(tmp_path: Path, small_data: Path) -> None:
    shutil.copytree(base_folder(), tmp_path / "model")
    line = (
        *("sweep", "model", "--data", str(small_data), "--layers", "1"),
        *("--precision", "fp32", "--dim", "64", "--dim", "128", "--pixels", "3136"),
        *("--rounds", "1", "--seconds", "0.02", "--json"),
    )
    done = puma(*line, "--min-recall", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = told["points"]
    assert {(one["layers"], one["dimension"]) for one in found} == {(1, dim) for dim in (64, 128)}
    assert all(one["pixels"] == 3136 and one["text_ms"] > 0 for one in found)
    assert told["picked"]["recall"] >= 0.5 * max(one["recall"] for one in found)
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 5_000
    again = puma(*line, "--max-latency", "0.0001ms", cwd=tmp_path)
    assert again.returncode == 1
    assert json.loads(again.stdout)["points"] == found  # nothing is measured twice
    assert "exporting" not in again.stderr
    assert "timing" not in again.stderr
    assert "nothing keeps the limits" in again.stderr.splitlines()[-1]
    done = puma(*line, "--dim", "999", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("Traceback")) == (2, 0)
    assert "embeds in 128 dimensions" in done.stderr


def test_another_training_and_other_data_are_exported_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[str] = []

    def export(settings: ExportConfig, step: object) -> None:
        """What is exported is for other tests: here it is when."""
        exported.append(settings.data)
        Path(settings.out).mkdir()
        seal(Path(settings.out), MANIFEST)

    monkeypatch.setattr("puma_edge.sweep.run_export", export)
    weights = tmp_path / "run" / "merged" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    taken = []
    for data, content in (("a", "1"), ("a", "1"), ("b", "1"), ("b", "2"), ("b", "22")):
        if not weights.exists() or weights.read_text() != content:
            weights.write_text(content)
        config = SweepConfig((str(tmp_path / "run"),), str(tmp_path / "sweep"), data)
        taken.append(_bundle(config, config.models[0], 0, 0, lambda _: None).folder.name)
    assert exported == ["a", "b", "b", "b"]
    assert len(set(taken)) == 4
    assert taken[0] == taken[1]


def test_a_measurement_is_one_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for name in ("one processor", "another"):
        monkeypatch.setattr("puma_edge.sweep.processor", lambda name=name: name)
        keys.add(_key(Bundle(Path(), MANIFEST), Precision.FP32, SweepConfig(), 1))
    assert len(keys) == 2
