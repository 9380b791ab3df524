"""The commands that report on a bundle: info, check, eval, doctor and bench."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from puma_edge.about import describe
from puma_edge.errors import PumaError
from tests.commands import puma


def test_info_check_eval_and_doctor(work: Path, small_data: Path) -> None:
    about = json.loads(puma("info", "bundle", "--json", cwd=work).stdout)
    assert (about["kind"], about["layers"]) == ("bundle", "2 of 8")
    index = json.loads(puma("info", "index.npy", "--json", cwd=work).stdout)
    assert index["model_id"] == about["model"]
    checked = json.loads(puma("check", "bundle", "--json", cwd=work).stdout)
    on_cpu = [row["precision"] for row in checked if row["engine"] == "ort:cpu"]
    assert on_cpu == ["fp32", "fp16", "int8", "int8-trt"]
    assert checked[0]["passed"]
    assert checked[0]["max_difference"] < 1e-4
    precisions = ("bundle@fp32", "bundle@int8")
    done = puma(
        "eval", *precisions, "--data", str(small_data), "--plot", "recall.png", "--json", cwd=work
    )
    scores = json.loads(done.stdout)
    assert set(scores) == set(precisions)
    for score in scores.values():
        assert [row["task"] for row in score["rows"]] == [0, 1, 2, 3, 4, 6, 7, 8]
        assert score["interval"][0] <= score["mean"] <= score["interval"][1]
    change = scores["bundle@int8"]["mean"] - scores["bundle@fp32"]["mean"]
    assert scores["bundle@int8"]["difference"] == pytest.approx(change, abs=1e-6)
    assert (work / "recall.png").stat().st_size > 5_000
    done = puma("eval", "bundle@int9", "--data", str(small_data), cwd=work)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no precision 'int9'" in done.stderr
    assert "onnxruntime" in json.loads(puma("doctor", "--json", cwd=work).stdout)


def test_bench_compares_every_backend(work: Path) -> None:
    done = puma("bench", "--rounds", "1", "--seconds", "0.02", cwd=work)
    assert done.returncode == 0, done.stderr
    report = json.loads((work / "bench.json").read_text())
    backends = ["torch-fp32", "torch-bf16", "ort-fp32", "ort-int8"]
    if find_spec("openvino"):
        backends += ["openvino-fp32", "openvino-int8"]
    assert list(report["peak_bytes"]) == backends
    assert report["missing"] == {}
    fp32 = [row for row in report["rows"] if row["backend"] == "ort-fp32"]
    assert len(fp32) == 4
    assert all(row["cosine"] > 0.9999 and row["runs"] >= 3 for row in fp32)
    assert all(row["p99_ms"] >= row["median_ms"] > 0 for row in report["rows"])
    assert (work / "bench.png").stat().st_size > 10_000


@pytest.mark.parametrize("metrics", ["{", "[]", "{}", '{"recall": {"a": 1}}', '{"recall": {}}'])
def test_a_damaged_run_is_one_line(tmp_path: Path, metrics: str) -> None:
    (tmp_path / "metrics.json").write_text(metrics)
    with pytest.raises(PumaError, match=r"the run .* is damaged"):
        describe(tmp_path)
