"""INT8 that can be trusted: ranges, the gate, what each layer costs, and layers kept in float."""

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

from puma_edge.calibration.calibrate import Calibration, QuantSettings, calibrate
from puma_edge.calibration.clipping import BINS, Grid, Histogram, choose
from puma_edge.calibration.linears import find_groups
from puma_edge.calibration.onnx_files import load_model, weight_of
from puma_edge.calibration.qdq import Form
from puma_edge.calibration.quantize import write_int8
from puma_edge.calibration.ranges import count, observe
from puma_edge.calibration.readers import vision_readings
from puma_edge.calibration.sample import draw
from puma_edge.calibration.sensitivity import Cost, Trial, Unit, find_units, measure_costs
from puma_edge.config import ExportConfig, Ranges, Thresholds
from puma_edge.errors import PumaError
from puma_edge.export.fallback import counts, keep_until_passed
from puma_edge.export.parity import Limits, Parity, judge
from puma_edge.export.precision import to_fp16
from puma_edge.inputs import Batch, Encoded, Float32, collate
from puma_edge.metrics import overlap_at_k, rank_agreement
from puma_edge.retrieval import Pair, compare_pairs, cosines
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.ort import OrtEncoder
from tests.commands import puma
from tests.edge import encoded, fill, picture
from tests.models import LIMITS, PAD, exported, item, reference

SIZES: tuple[tuple[tuple[int, int], ...], ...] = ((), ((4, 6),), ((2, 2), (8, 4)), ((6, 6),))


def some(count_: int, seed: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    return [item(int(rng.integers(3, 30)), SIZES[n % 4], seed=seed + n) for n in range(count_)]


def batches(items: list[Encoded]) -> list[Batch]:
    return [collate(items[start : start + 6], PAD, LIMITS) for start in range(0, len(items), 6)]


def trial() -> Trial:
    """Twelve documents of every kind, and twelve queries."""
    rows = list(range(24))
    pair = Pair("any->any", tuple(rows[12:]), tuple(rows[:12]))
    items = some(24, 7000)
    return Trial([(rows[:10], collate(items[:10], PAD, LIMITS)),
                  (rows[10:], collate(items[10:], PAD, LIMITS))], [pair])  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    for part in ("vision", "text"):
        shutil.copy(exported().folder / f"{part}.fp32.onnx", folder)
    return folder


@pytest.fixture(scope="module")
def calibration(folder: Path) -> Calibration:
    return calibrate(folder, batches(some(24, 1000)), None, tuple(Form))


def embed(folder: Path, name: str, items: list[Encoded]) -> Float32:
    paths = [folder / f"{part}.{name}.onnx" for part in ("vision", "text")]
    return OrtEncoder(lambda: paths[0], paths[1], threads=1).encode(collate(items, PAD, LIMITS))


# Ranks.


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
    assert (told.overlap, told.worst_cosine) == (1.0, 0.0)
    assert told.agreement == pytest.approx((1 + (0 + 1 / 2 + 1) / 3) / 2)


# Ranges.


def spiky(seed: int) -> Float32:
    """A bell, and a few values far outside it."""
    rng = np.random.default_rng(seed)
    return np.append(rng.normal(0.3, 1, 60_000), [30.0, -22.0, 25.0]).astype(np.float32)


def histogram(values: Float32) -> Histogram:
    low, high = float(values.min()), float(values.max())
    return Histogram(low, high, np.histogram(values, BINS, (low, high))[0])


def error(values: Float32, ends: tuple[float, float], symmetric: bool) -> float:
    grid = Grid.over(np.asarray([ends[0]]), np.asarray([ends[1]]), symmetric)
    restored = grid.level(values.astype(np.float64))[0] * grid.scale[0]
    return float(((restored - values) ** 2).mean())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ranges", list(Ranges))
def test_ranges_of_a_bell_with_spikes(ranges: Ranges, symmetric: bool) -> None:
    values = spiky(3)
    low, high = choose(histogram(values), ranges, symmetric)
    assert -22.0 <= low <= 0 <= high <= 30.0 + 1e-5
    full = error(values, (-22, 30), symmetric)
    if ranges is Ranges.MINMAX:
        assert (low, high) == (-22.0, 30.0)
    elif ranges is not Ranges.MSE:  # to it one spike is worth a thousand small errors
        assert max(-low, high) < 15
    else:
        tried = [error(values, (-22 * a, 30 * a), symmetric) for a in np.linspace(0.1, 1, 46)]
        assert error(values, (low, high), symmetric) <= min(tried) * 1.02 < full


def test_a_range_without_spikes_stays_whole() -> None:
    values = np.linspace(-1, 3, 5000, dtype=np.float32)
    for ranges in (Ranges.PERCENTILE, Ranges.MSE, Ranges.ENTROPY):
        low, high = choose(histogram(values), ranges, False)
        assert low == pytest.approx(-1, abs=0.15)
        assert high == pytest.approx(3, abs=0.15)


def test_the_graph_counts_as_numpy_does(folder: Path) -> None:
    path, data = folder / "vision.fp32.onnx", batches(some(6, 40))
    group = next(one for one in find_groups(load_model(path).graph) if "up" in str(one.weights))
    seen = observe(path, [group], vision_readings(data))[group.name]
    by = np.linspace(0.5, 2, len(seen.low)).astype(np.float32)
    found = count(path, {group.name: (seen / by, by)}, vision_readings(data))[group.name]
    ends = (seen / by).ends
    assert (found.low, found.high) == ends
    model = load_model(path)
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.append(values[group.name])
    ir.save(model, folder / "plain.onnx")
    from puma_edge.runtimes.ort import CPU, open_session

    session = open_session(folder / "plain.onnx", (CPU,), None)
    every = [
        session.run(None, feeds)[1].reshape(-1, len(by)) / by for feeds in vision_readings(data)
    ]
    (folder / "plain.onnx").unlink()
    expected = np.histogram(np.concatenate(every), BINS, ends)[0]
    assert found.counts.sum() == expected.sum()
    # A value on the border of two bins may fall into either.
    assert np.abs(found.counts.cumsum() - expected.cumsum()).max() <= 3


@pytest.mark.parametrize("ranges", list(Ranges))
def test_every_kind_of_range_embeds(ranges: Ranges, folder: Path, tmp_path: Path) -> None:
    settings = QuantSettings(ranges=ranges)
    told: list[tuple[int, int]] = []
    found = calibrate(
        folder, batches(some(12, 1000)), settings, progress=lambda *at: told.append(at)
    )
    assert told == [(n, told[-1][1]) for n in range(1, told[-1][1] + 1)]
    write_int8(folder, found, tmp_path)
    items = some(8, 5000)
    expected = np.stack([reference(exported().model, each) for each in items])
    # Entropy cuts the loud channels off; on these weights that is the worse choice.
    least = 0.85 if ranges is Ranges.ENTROPY else 0.99
    assert cosines(expected, embed(tmp_path, "int8", items)).mean() > least
    assert found.to_json()["settings"]["ranges"] == ranges.value


# TensorRT's form.


def test_the_tensorrt_form(folder: Path, calibration: Calibration, tmp_path: Path) -> None:
    report = write_int8(folder, calibration, tmp_path, Form.TRT)
    assert report["text"]["inputs_with_row_scales"] == 0
    for part in ("vision", "text"):
        name = f"{part}.int8-trt.onnx"
        (tmp_path / "half").mkdir(exist_ok=True)
        to_fp16(tmp_path / name, tmp_path / "half" / name)
        graph = load_model(tmp_path / "half" / name).graph
        for node in graph:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            scale, zero = (weight_of(value) for value in node.inputs[1:3])
            assert zero is not None
            assert scale is not None
            assert zero.dtype == np.int8
            assert not zero.any()
            assert np.isfinite(1 / scale).all()
        assert graph.opset_imports[""] == 19
    items = some(12, 5000)
    expected = np.stack([reference(exported().model, each) for each in items])
    found = embed(tmp_path / "half", "int8-trt", items)
    assert cosines(expected, found).mean() > 0.98
    alone = np.concatenate([embed(tmp_path / "half", "int8-trt", [each]) for each in items])
    assert cosines(alone, found).min() > 0.9999


# What each layer costs.


def spoiled(calibration: Calibration, part: str, names: tuple[str, ...]) -> Calibration:
    """The same with ranges a thousand times too wide at some inputs."""
    seen = {
        name: replace(one, ends=(one.ends[0] * 1e3, one.ends[1] * 1e3)) if name in names else one
        for name, one in calibration.parts[part].items()
    }
    return replace(calibration, parts={**calibration.parts, part: seen})


def input_of(folder: Path, part: str, weight: str) -> str:
    groups = find_groups(load_model(folder / f"{part}.fp32.onnx").graph)
    return next(group.name for group in groups if weight in group.weights)


@pytest.mark.parametrize(
    ("part", "weight"), [("text", "layers.1.gate.weight"), ("vision", "blocks.1.fc1.weight")]
)
def test_the_spoiled_layer_is_the_dearest(
    part: str, weight: str, folder: Path, calibration: Calibration
) -> None:
    worse = spoiled(calibration, part, (input_of(folder, part, weight),))
    told: list[int] = []
    costs = measure_costs(folder, worse, Form.CPU, trial(), lambda done, total: told.append(done))
    units = find_units(folder)
    assert {one.unit for one in costs} == set(units)
    assert told == list(range(1, len(units) + 1))
    assert weight in costs[0].unit.weights
    assert costs[0].total > 4 * costs[1].total
    assert not list(folder.glob("try.*"))
    values = sum(w.size for w in _matrices(folder))
    assert sum(unit.values for unit in units) == values


def _matrices(folder: Path) -> list[Float32]:
    """Linear layers' weights and the token table."""
    found = []
    for part in ("vision", "text"):
        graph = load_model(folder / f"{part}.fp32.onnx").graph
        weights = [weight_of(value) for value in graph.initializers.values()]
        found += [w for w in weights if w is not None and w.ndim == 2 and min(w.shape) > 1]
    return found


def test_the_dearest_go_back_until_the_gate_passes(
    folder: Path, calibration: Calibration, tmp_path: Path
) -> None:
    names = tuple(input_of(folder, "text", f"layers.{n}.q.weight") for n in (0, 1))
    worse, judged = spoiled(calibration, "text", names), trial()
    items = some(24, 7000)
    plain = embed(folder, "fp32", items)
    costs = measure_costs(folder, worse, Form.CPU, judged)

    def write(kept: frozenset[str]) -> int:
        write_int8(folder, worse, tmp_path, Form.CPU, kept)
        return sum(path.stat().st_size for path in tmp_path.iterdir())

    def check() -> Parity:
        found = embed(tmp_path, "int8", items)
        return judge(judged.pairs, plain, found, 1.0, "int8", limits)

    # The gate asks for more than one exception gives, and less than two do.
    means = []
    for count_ in (1, 2):
        write(frozenset(name for cost in costs[:count_] for name in cost.unit.weights))
        means.append(float(cosines(plain, embed(tmp_path, "int8", items)).mean()))
    assert means[0] < means[1]
    limits = Limits(Thresholds(sum(means) / 2, -1, 0, 1), 1)

    before_size = write(frozenset())
    before = check()
    assert not before.passed
    done = keep_until_passed(before, before_size, write, check, costs, [1, 2, 4])
    assert done.after.passed
    assert done.tried == (1, 2)
    kept = {name for cost in done.kept for name in cost.unit.weights}
    assert kept == {f"layers.{n}.{part}.weight" for n in (0, 1) for part in "qkv"}
    # Three more bytes for each number.
    values = sum(cost.unit.values for cost in done.kept)
    assert done.bytes_added == pytest.approx(3 * values, rel=0.1)
    assert write(frozenset(kept)) - before_size == done.bytes_added
    assert "2 of" in done.describe()
    assert set(json.loads(json.dumps(done.to_json()))["before"]) >= {"rank_agreement"}


def test_how_many_each_try_keeps() -> None:
    assert counts(36, 4, 0.25) == [2, 3, 5, 9]
    assert counts(36, 0, 0.25) == []
    assert counts(3, 5, 1.0) == [1, 2, 3]
    assert counts(36, 2, 0.0) == []


def test_recall_that_rose_by_chance_is_no_merit() -> None:
    unit = Unit("text", ("w",), 1)
    assert Cost(unit, 0.1, -0.3).total == pytest.approx(0.1)
    assert Cost(unit, 0.1, 0.3).total == pytest.approx(0.4)


# The gate.


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


# Samples.


def corpus(root: Path, texts: int = 30, images: int = 12) -> Path:
    files: dict[str, bytes | str | list[object]] = {
        f"{n}.txt": f"text {n} " + "word " * n for n in range(texts)
    }
    files |= {f"p{n}.png": encoded(picture(n, 30 + 5 * n)) for n in range(images)}
    return fill(root, files)


def test_a_sample_is_even_over_modalities_and_lengths(tmp_path: Path) -> None:
    found = draw(scan(corpus(tmp_path / "a")), 12, 0)
    strata = [one.stratum for one in found.items]
    assert sorted(strata) == sorted(
        2
        * [f"{kind}, {size}" for kind in ("text", "image") for size in ("short", "middle", "long")]
    )
    assert sorted(strata[:6]) == sorted(set(strata))
    assert draw(scan(tmp_path / "a"), 1000, 0).items[:12] != ()
    assert len(draw(scan(tmp_path / "a"), 1000, 0).items) == 42


def test_a_sample_knows_contents_not_names(tmp_path: Path) -> None:
    corpus(tmp_path / "a")
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for path in (tmp_path / "a").iterdir():
        shutil.copy(path, tmp_path / "b" / "deep" / f"x{path.name}")
    first, second = (draw(scan(tmp_path / name), 12, 0) for name in "ab")
    assert [one.content for one in first.items] == [one.content for one in second.items]
    other = draw(scan(tmp_path / "a"), 12, 1)
    assert {one.content for one in other.items} != {one.content for one in first.items}


def test_samples_that_are_too_small_or_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(PumaError, match=r"has 5 readable items; calibration needs 8 at least"):
        draw(scan(corpus(tmp_path / "few", 3, 2)), 64, 0)
    with pytest.raises(PumaError, match="texts only"):
        draw(scan(corpus(tmp_path / "texts", 20, 0)), 64, 0)
    (few, only) = draw(scan(corpus(tmp_path / "images", 0, 10)), 64, 0).warnings
    assert "has 10 readable items" in few
    assert "pictures only" in only


# The commands.

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
