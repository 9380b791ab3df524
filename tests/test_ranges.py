"""The range of each INT8 input: how it is chosen from what calibration saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from puma_edge.calibration.calibrate import QuantSettings, calibrate
from puma_edge.calibration.clipping import BINS, Grid, Histogram, choose
from puma_edge.calibration.linears import find_groups
from puma_edge.calibration.onnx_files import load_model
from puma_edge.calibration.quantize import write_int8
from puma_edge.calibration.ranges import count, observe
from puma_edge.calibration.readers import vision_readings
from puma_edge.config import Ranges
from puma_edge.inputs import Float32
from puma_edge.retrieval import cosines
from tests.graphs import batches, embed, some
from tests.models import exported, reference


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


def test_the_graph_counts_as_numpy_does(fp32_graphs: Path) -> None:
    path, data = fp32_graphs / "vision.fp32.onnx", batches(some(6, 40))
    group = next(one for one in find_groups(load_model(path).graph) if "up" in str(one.weights))
    seen = observe(path, [group], vision_readings(data))[group.name]
    by = np.linspace(0.5, 2, len(seen.low)).astype(np.float32)
    found = count(path, {group.name: (seen / by, by)}, vision_readings(data))[group.name]
    ends = (seen / by).ends
    assert (found.low, found.high) == ends
    model = load_model(path)
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.append(values[group.name])
    ir.save(model, fp32_graphs / "plain.onnx")
    from puma_edge.runtimes.ort import CPU, open_session

    session = open_session(fp32_graphs / "plain.onnx", (CPU,), None)
    every = [
        session.run(None, feeds)[1].reshape(-1, len(by)) / by for feeds in vision_readings(data)
    ]
    (fp32_graphs / "plain.onnx").unlink()
    expected = np.histogram(np.concatenate(every), BINS, ends)[0]
    assert found.counts.sum() == expected.sum()
    # A value on the border of two bins may fall into either.
    assert np.abs(found.counts.cumsum() - expected.cumsum()).max() <= 3


@pytest.mark.parametrize("ranges", list(Ranges))
def test_every_kind_of_range_embeds(ranges: Ranges, fp32_graphs: Path, tmp_path: Path) -> None:
    settings = QuantSettings(ranges=ranges)
    told: list[tuple[int, int]] = []
    found = calibrate(
        fp32_graphs, batches(some(12, 1000)), settings, progress=lambda *at: told.append(at)
    )
    assert told == [(n, told[-1][1]) for n in range(1, told[-1][1] + 1)]
    write_int8(fp32_graphs, found, tmp_path)
    items = some(8, 5000)
    expected = np.stack([reference(exported().model, each) for each in items])
    # Entropy cuts the loud channels off; on these weights that is the worse choice.
    least = 0.85 if ranges is Ranges.ENTROPY else 0.99
    assert cosines(expected, embed(tmp_path, "int8", items)).mean() > least
    assert found.to_json()["settings"]["ranges"] == ranges.value
