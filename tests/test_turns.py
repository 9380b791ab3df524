"""The backends of a benchmark: how they are named, and one that cannot run."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from puma_edge.bench import BenchConfig, _file_bytes, bench
from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import PumaError
from puma_edge.plots import draw_bench
from puma_edge.runtimes.cuda import Device
from puma_edge.serving import split_backend
from puma_edge.turns import run_turn, run_turns
from tests.models import tiny_bundle
from tests.pretend_gpu import DEVICE, write_engines


def test_backends_are_read_as_they_are_named() -> None:
    for name, parts in {
        "torch-fp32": ("torch", "fp32"),
        "torch-cuda-bf16": ("torch-cuda", "bf16"),
        "compile-cuda-bf16": ("compile-cuda", "bf16"),
        "ort-int8-trt": ("ort", "int8-trt"),
        "ort-cuda-fp16": ("ort-cuda", "fp16"),
        "trt-int8-trt": ("trt", "int8-trt"),
    }.items():
        assert split_backend(name) == parts
    with pytest.raises(PumaError, match="no backend 'npu-fp16'"):
        split_backend("npu-fp16")


@pytest.fixture
def bundle(tmp_path: Path, tokenizer: Tokenizer) -> Bundle:
    return tiny_bundle(tmp_path, tokenizer)


def test_a_backend_that_cannot_run_is_named_with_the_reason(
    bundle: Bundle,
) -> None:
    request = {
        "bundle": str(bundle.folder), "model": "", "threads": 1, "seconds": 0.01, "warm_up": 0.01,
        "runs": (2, 3), "cases": [],
    }  # fmt: skip
    told: list[tuple[int, int]] = []
    backends = ["ort-fp32", "trt-fp16"]
    turns = run_turns(request, backends, 2, lambda *at: told.append(at))
    assert [len(many) for many in turns.results.values()] == [2]
    assert list(turns.missing) == ["trt-fp16"]
    assert turns.missing["trt-fp16"]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(PumaError, match="trt-fp16 process failed"):
        run_turn({**request, "backend": "trt-fp16"})


def test_a_backend_that_hangs_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puma_edge.turns.TURN_LIMIT", 0.01)
    turns = run_turns({"threads": 1}, ["ort-fp32"], 1, lambda *_: None)
    assert "ort-fp32 process took more than 0.01 seconds" in turns.missing["ort-fp32"]


def test_a_bundle_without_some_files_is_timed_with_the_others(
    sample_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it lies on a Jetson: no fp32 files, no PyTorch."""
    shutil.copytree(sample_bundle, tmp_path / "bundle")
    found = find_spec("onnxruntime")
    monkeypatch.setattr(
        "puma_edge.bench.find_spec", lambda name: found if name == "onnxruntime" else None
    )
    config = BenchConfig(
        str(tmp_path / "bundle"), threads=1, rounds=1, seconds=0.01, only=("1 text of 32 tokens",)
    )
    (tmp_path / "bundle" / "text.fp32.onnx").unlink()
    report = bench(config, lambda *_: None)
    assert {row.backend for row in report.rows} == {"ort-int8"}
    assert "lacks text.fp32.onnx" in report.missing["ort-fp32"]
    draw_bench(report, tmp_path / "one case.png")
    (tmp_path / "bundle" / "text.int8.onnx").unlink()
    with pytest.raises(PumaError, match="no backend runs"):
        bench(config, lambda *_: None)


def test_the_size_of_engines_is_that_of_this_devices(bundle: Bundle) -> None:
    plans = write_engines(bundle, Precision.FP16)
    write_engines(bundle, Precision.FP16, device=Device("Else", "90", "11.4"))
    results = {"trt-fp16": [{"provider": f"trt:{DEVICE.slug}"}]}
    wanted = sum(path.stat().st_size for path in plans)
    assert _file_bytes(bundle, "", results) == {"trt-fp16": wanted}
