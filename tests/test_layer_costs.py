"""What each layer costs in INT8, and the dearest ones kept in float until the gate passes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from puma_edge.backbones import Family
from puma_edge.calibration.calibrate import Calibration, calibrate
from puma_edge.calibration.linears import find_groups
from puma_edge.calibration.onnx_files import load_model, weight_of
from puma_edge.calibration.qdq import Form
from puma_edge.calibration.quantize import write_int8
from puma_edge.calibration.sensitivity import Cost, Trial, Unit, find_units, measure_costs
from puma_edge.config import Thresholds
from puma_edge.export.fallback import counts, keep_until_passed
from puma_edge.export.parity import Limits, Parity, judge
from puma_edge.inputs import Float32
from puma_edge.retrieval import Pair, cosines
from tests.families import small
from tests.graphs import batch_of, embed, some


def trial() -> Trial:
    """Twelve documents of every kind, and twelve queries."""
    rows = list(range(24))
    pair = Pair("any->any", tuple(rows[12:]), tuple(rows[:12]))
    items = some(24, 7000)
    return Trial([(rows[:10], batch_of(items[:10])), (rows[10:], batch_of(items[10:]))], [pair])


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
    part: str, weight: str, fp32_graphs: Path, calibration: Calibration
) -> None:
    worse = spoiled(calibration, part, (input_of(fp32_graphs, part, weight),))
    told: list[int] = []
    costs = measure_costs(
        fp32_graphs, worse, Form.CPU, trial(), lambda done, total: told.append(done)
    )
    units = find_units(fp32_graphs)
    assert {one.unit for one in costs} == set(units)
    assert told == list(range(1, len(units) + 1))
    assert weight in costs[0].unit.weights
    assert costs[0].total > 4 * costs[1].total
    assert not list(fp32_graphs.glob("try.*"))
    values = sum(w.size for w in _matrices(fp32_graphs))
    assert sum(unit.values for unit in units) == values


def test_tokens_may_be_wider_than_embeddings(tmp_path: Path) -> None:
    """DeepStack's, and batches of words have none of them."""
    made = small(Family.QWEN3_VL)
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    seen = calibrate(tmp_path, [made.batch(0, 1, 2)])
    pair = Pair("any->any", (0, 1), (2, 3))
    trial = Trial([([0, 2], made.batch(0, 3)), ([1, 3], made.batch(1, 2))], [pair])
    costs = measure_costs(tmp_path, seen, Form.CPU, trial)
    assert {one.unit for one in costs} == set(find_units(tmp_path))


def _matrices(folder: Path) -> list[Float32]:
    """Linear layers' weights and the token table."""
    found = []
    for part in ("vision", "text"):
        graph = load_model(folder / f"{part}.fp32.onnx").graph
        weights = [weight_of(value) for value in graph.initializers.values()]
        found += [w for w in weights if w is not None and w.ndim == 2 and min(w.shape) > 1]
    return found


def test_the_dearest_go_back_until_the_gate_passes(
    fp32_graphs: Path, calibration: Calibration, tmp_path: Path
) -> None:
    names = tuple(input_of(fp32_graphs, "text", f"layers.{n}.q.weight") for n in (0, 1))
    worse, judged = spoiled(calibration, "text", names), trial()
    items = some(24, 7000)
    plain = embed(fp32_graphs, "fp32", items)
    costs = measure_costs(fp32_graphs, worse, Form.CPU, judged)

    def write(kept: frozenset[str]) -> int:
        write_int8(fp32_graphs, worse, tmp_path, Form.CPU, kept)
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
