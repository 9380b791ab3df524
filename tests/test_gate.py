"""The parity gate: how rankings are compared, what fails it, and what a failure does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puma_edge.calibration.calibrate import QuantSettings, calibrate
from puma_edge.calibration.onnx_files import load_model, save_model, weight_of
from puma_edge.calibration.qdq import Form
from puma_edge.calibration.quantize import write_int8
from puma_edge.config import ExportConfig, Thresholds
from puma_edge.export.parity import Limits, judge, judge_halves
from puma_edge.export.precision import largest_halves, to_fp16
from puma_edge.inputs import Float32
from puma_edge.metrics import overlap_at_k, rank_agreement
from puma_edge.retrieval import Pair, compare_pairs
from tests.commands import puma
from tests.graphs import ITEMS, PARTS, batch_of, batches, copy_graphs, embed, some


def plain_overlap(first: Float32, second: Float32, k: int) -> float:
    order = [np.argsort(-one, kind="stable")[:k].tolist() for one in (first, second)]
    return len(set(order[0]) & set(order[1])) / len(order[0])


@given(st.integers(0, 10_000), st.integers(1, 14), st.integers(1, 12))
def test_agreement_is_the_mean_overlap_at_every_depth(seed: int, candidates: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 6, (2, 3, candidates)).astype(np.float32)
    depth = min(k, candidates)
    expected = [
        [plain_overlap(a, b, d) for d in range(1, depth + 1)]
        for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(rank_agreement(first, second, k), np.mean(expected, 1), rtol=1e-5)
    np.testing.assert_allclose(overlap_at_k(first, second, k), [row[-1] for row in expected])
    np.testing.assert_allclose(rank_agreement(first, first, k), 1)


def test_a_pair_by_hand() -> None:
    turn = np.asarray([[1, 0], [0.8, 0.6], [0, 1], [1, 0], [0, 1]], np.float32)
    found = turn[[0, 1, 2, 4, 4]]  # the first query is taken for the second
    pair = Pair("t->i", queries=(3, 4), documents=(0, 1, 2), answers=((0,), (2,)), k=1)
    (told,) = compare_pairs([pair], turn, found)
    assert (told.recall, told.reference_recall, told.recall_lost) == (0.5, 1.0, 0.5)
    # Of three candidates the first ten are always the same.
    assert (told.overlap, told.worst_cosine) == (None, 0.0)
    assert told.agreement == pytest.approx((1 + (0 + 1 / 2 + 1) / 3) / 2)


def noisy(scale: float) -> tuple[Float32, Float32, Pair]:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((120, 32)).astype(np.float32)
    rows[:40] = rows[40:80] + 0.5 * rows[:40]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = rows + scale * rng.standard_normal(rows.shape).astype(np.float32)
    answers = tuple((n,) for n in range(40))
    return rows, found, Pair("t->i", tuple(range(40)), tuple(range(40, 120)), answers)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean_cosine": 0.999}, "mean cosine"),
        ({"worst_cosine": 0.999}, "worst cosine"),
        ({"overlap": 0.99}, "of the first ten hits"),
        ({"pair_recall_loss": 0.0}, "recall@5"),
    ],
)
def test_each_threshold_can_fail(change: dict[str, float], says: str) -> None:
    rows, found, pair = noisy(0.3)
    loose = Thresholds(-1, -1, 0, 1)
    assert judge([pair], rows, found, 1.0, "int8", Limits(loose, 1)).passed
    strict = Limits(replace(loose, **change), 1)
    told = judge([pair], rows, found, 1.0, "int8", strict)
    assert len(told.failures) == 1
    assert says in told.failures[0]
    assert judge([pair], rows, rows, 1.0, "int8", strict).passed
    assert Limits.from_json(json.loads(json.dumps(told.to_json()))["limits"]) == strict


def test_mean_recall_and_batches_can_fail() -> None:
    rows, found, pair = noisy(0.3)
    loose = Thresholds(-1, -1, 0, 1)
    (why,) = judge([pair], rows, found, 1.0, "int8", Limits(loose, 0.01)).failures
    assert "mean recall" in why
    (why,) = judge([pair], rows, rows, 0.99, "int8", Limits(loose, 0.01)).failures
    assert "depends on its batch" in why
    broken = np.full_like(rows, np.nan)
    assert not judge([pair], rows, broken, 1.0, "int8", Limits(loose, 1)).passed


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs whose MLPs go beyond float16 between two products, and come back."""
    folder = copy_graphs(tmp_path_factory.mktemp("loud"))
    model = load_model(folder / "text.fp32.onnx")
    for name, factor in (("layers.1.up.weight", 5e3), ("layers.1.down.weight", 2e-4)):
        weight = model.graph.initializers[name]
        values = np.asarray(weight_of(weight) * np.float32(factor))
        weight.const_value = ir.tensor(values, name=name)
    save_model(model, folder / "text.fp32.onnx")
    # SmoothQuant would divide what is loud.
    seen = calibrate(folder, batches(some(12, 1000)), QuantSettings(smooth=0), [Form.TRT])
    (folder / "single").mkdir()
    write_int8(folder, seen, folder / "single", Form.TRT)
    for part in PARTS:
        to_fp16(folder / f"{part}.fp32.onnx", folder / f"{part}.fp16.onnx")
        to_fp16(folder / "single" / f"{part}.int8-trt.onnx", folder / f"{part}.int8-trt.onnx")
    return folder


@pytest.mark.parametrize(("precision", "near"), [("fp16", 0.999), ("int8-trt", 0.85)])
def test_what_float16_cannot_hold_fails_though_the_cpu_gets_it_right(
    loud: Path, fp32_graphs: Path, precision: str, near: float, tmp_path: Path
) -> None:
    items = [ITEMS[0], ITEMS[2]]
    rows, found = (embed(loud, name, items) for name in ("fp32", precision))
    limits = Limits(Thresholds(near, near, 0, 1), 1)
    passed = judge([], rows, found, 1.0, precision, limits)
    assert passed.passed
    files = [loud / f"{part}.{precision}.onnx" for part in PARTS]
    (why,) = judge_halves(passed, largest_halves(*files, [batch_of(items)])).failures
    assert why.startswith("text ")
    assert "float16 ends at 65504" in why
    assert not list(loud.glob("watch.*"))
    for part in PARTS:
        to_fp16(fp32_graphs / f"{part}.fp32.onnx", tmp_path / f"{part}.onnx")
    quiet = largest_halves(tmp_path / "vision.onnx", tmp_path / "text.onnx", [batch_of(items)])
    assert judge_halves(passed, quiet).passed


def test_ten_candidates_have_no_overlap_to_judge() -> None:
    rows, _, pair = noisy(0.3)
    found = rows * np.where(np.arange(len(rows)) < 40, -1, 1)[:, None]  # the best come last
    strict = Limits(Thresholds(-2, -2, 0.95, 1), 1)
    few, more = (replace(pair, documents=pair.documents[:count], answers=()) for count in (10, 11))
    told = judge([few], rows, found, 1.0, "int8", strict)
    assert (told.overlap, told.failures) == (None, ())
    assert "first ten hits" in judge([few, more], rows, found, 1.0, "int8", strict).failures[0]


STRICT = """
[export]
fallback_tries = 1
[export.parity.int8]
mean_cosine = 1.0
worst_cosine = 0.5
overlap = 0.5
pair_recall_loss = 0.5
"""


def test_a_failed_gate_reports_and_leaves_the_old_bundle(
    sample_bundle: Path, small_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(sample_bundle, tmp_path / "bundle")
    before = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    (tmp_path / "puma-edge.toml").write_text(STRICT)
    base = Path(__file__).parents[1] / "puma_edge" / "sample" / "base"
    arguments = ("--keep-layers", "2", "--data", str(small_data), "--int8", "--ranges", "mse")
    done = puma("export", str(base), *arguments, "--json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    (fallback,) = told["fallback"].values()
    assert not fallback["passed"]
    assert fallback["bytes_added"] > 0
    assert len(fallback["kept"]) == fallback["tried"][-1]
    assert "mean cosine" in told["parity"]["int8"]["failures"][0]
    assert len(told["parity"]["int8"]["pairs"]) == 8
    assert "parity failed, nothing was written" in done.stderr
    assert "Traceback" not in done.stderr
    after = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir()}
    assert after == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_check_runs_the_gate_from_the_bundle(sample_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_bundle, tmp_path / "bundle")
    rows = json.loads(puma("check", "--json", cwd=tmp_path).stdout)
    fp32 = rows[0]
    assert fp32["passed"]
    assert [pair["pair"] for pair in fp32["pairs"]] == [
        *("t->i", "t->t", "t->(i,t)", "i->t", "i->i", "(i,t)->t", "(i,t)->i", "(i,t)->(i,t)")
    ]
    assert {row["engine"] for row in rows} >= {"ort:cpu"}
    path = tmp_path / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parity"]["int8"]["limits"]["thresholds"]["mean_cosine"] = 1.0
    path.write_text(json.dumps(manifest))
    done = puma("check", "--json", cwd=tmp_path)
    assert done.returncode == 1
    failed = [row["precision"] for row in json.loads(done.stdout) if not row["passed"]]
    assert "int8" in failed
    assert "fp32" not in failed


def test_thresholds_are_settings() -> None:
    limits = ExportConfig().parity
    assert limits.of("int8-trt") == limits.int8_trt
    assert limits.of("fp32").mean_cosine > limits.of("fp16").mean_cosine > limits.int8.mean_cosine
