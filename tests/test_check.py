"""`check`: which engines it asks, and what becomes of one that fails; of new ones right away."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from puma_edge.bundle import Bundle, Precision
from puma_edge.checks import _check, _engines, _open_on, run_check
from puma_edge.cli import app
from puma_edge.errors import PumaError
from puma_edge.export.probe import Probe, read_probe
from puma_edge.runtimes.ort import CPU
from puma_edge.runtimes.plans import plan_file
from tests.pretend_gpu import DEVICE, pretend, write_engines


def test_check_asks_no_provider_that_no_runtime_serves_by(
    sample_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every build with CUDA lists TensorRT's provider, with or without its libraries."""
    listed = ["TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", CPU]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: listed)
    monkeypatch.setattr("puma_edge.checks.find_spec", lambda name: name == "onnxruntime")
    engines = _engines(Bundle.open(sample_bundle), 1)
    assert {name for _, name, _ in engines} == {"ort:cpu"}


def test_check_of_nothing_is_an_error(sample_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT is there, and neither ONNX Runtime nor engines."""
    for module in ("checks", "serving"):
        monkeypatch.setattr(f"puma_edge.{module}.find_spec", lambda n: n == "tensorrt" or None)
    with pytest.raises(PumaError, match="so nothing was checked"):
        run_check(sample_bundle, 1)


def test_an_engine_that_fails_as_it_runs_is_a_row(sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    one = _open_on(bundle, Precision.FP32, CPU, 1)
    item = read_probe(bundle).items[0]
    unknown = replace(item, input_ids=item.input_ids + 10**6)
    probe = Probe([unknown], np.zeros((1, one.dimension), np.float32))
    row = _check(bundle, probe, Precision.FP32, "ort:cpu", lambda: one)
    assert not row["passed"]
    assert "Gather" in row["failures"][0]
    assert "\n" not in row["failures"][0]


@pytest.mark.parametrize(("least", "code"), [(0.999, 0), (1.1, 1)])
def test_engines_are_held_to_the_gate_when_they_are_built(
    sample_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, code: int
) -> None:
    """On the pretended GPU, which runs what it is given but builds nothing."""
    folder = tmp_path / "bundle"
    shutil.copytree(sample_bundle, folder)
    text = json.loads((folder / "manifest.json").read_text())
    text["parity"]["fp16"]["limits"]["thresholds"]["mean_cosine"] = least
    (folder / "manifest.json").write_text(json.dumps(text))
    monkeypatch.setattr(
        "puma_edge.export.engines.build_engines",
        lambda folder: write_engines(Bundle.open(folder), Precision.FP16),
    )
    monkeypatch.setattr("puma_edge.serving.find_spec", lambda name: name == "tensorrt" or None)
    monkeypatch.setattr("puma_edge.runtimes.trt.open_gpu", pretend)
    done = CliRunner().invoke(app, ["export", str(folder), "--trt", "--json"])
    assert done.exit_code == code, done.output
    told = json.loads(done.stdout)
    assert [Path(plan).name for plan in told] == [
        plan_file(DEVICE, part, Precision.FP16) for part in ("vision", "text")
    ]
    assert all((result == "passed") is (code == 0) for result in told.values())
