"""The graphs of Qwen2.5-VL and Qwen3-VL against the stock PyTorch models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from puma_edge.backbones import Family, tower_of
from puma_edge.calibration.quantize import quantize_bundle_graphs
from puma_edge.export.graph_inputs import graph_inputs
from puma_edge.export.precision import to_fp16
from puma_edge.feeds import text_feeds, vision_feeds
from puma_edge.inputs import Float32
from puma_edge.model import image_tokens
from puma_edge.runtimes.ort import OrtEncoder, open_session
from tests.families import Small
from tests.families import small as make
from tests.graphs import ALLOWED, PARTS, assert_padding_counts_for_nothing, encoder
from tests.models import reference

ALL = (0, 1, 2, 3, 4, 5)
ARRAYS = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}


@pytest.fixture(scope="module", params=[Family.QWEN2_5_VL, Family.QWEN3_VL])
def small(request: pytest.FixtureRequest) -> Small:
    return make(request.param)


@pytest.fixture(scope="module")
def expected(small: Small) -> Float32:
    return np.stack([reference(small.model, each) for each in small.items])


@pytest.mark.parametrize("chosen", [ALL, (0,), (0, 3), (4,), (2,), (5, 1), (4, 4)])
def test_fp32_equals_pytorch(small: Small, expected: Float32, chosen: tuple[int, ...]) -> None:
    found = encoder(small.folder).encode(small.batch(*chosen))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[list(chosen)], atol=4e-6)


def test_image_tokens_equal_the_towers_own(small: Small) -> None:
    batch = small.batch(*ALL)
    found = open_session(small.folder / "vision.fp32.onnx", ("CPUExecutionProvider",), 1).run(
        None, vision_feeds(batch)
    )[0]
    rows = [
        np.arange(count // 4) + number * (batch.patches.shape[1] // 4)
        for number, count in enumerate(batch.n_patches)
    ]
    with torch.no_grad():
        wanted = image_tokens(small.model, batch).numpy()
    assert found.shape[1] == wanted.shape[1] == (1 + small.tower.features) * 64
    np.testing.assert_allclose(found[np.concatenate(rows)], wanted, atol=2e-5)


def test_what_makes_a_family_is_felt(small: Small, expected: Float32) -> None:
    """Windows, the learned grid and DeepStack change embeddings: the tests above cover them."""
    batch = small.batch(4)
    feeds = vision_feeds(batch)
    changed: list[dict[str, Any]] = []
    if small.tower.window:
        # 10 x 14 patches in windows of 4 x 4: twelve, some of them cut off at the edges.
        assert sorted(set(feeds["window_lengths"].tolist())) == [4, 8, 16]
        turned = np.roll(feeds["window_patches"], 1, axis=0)
        changed.append(feeds | {"window_patches": turned})
    if small.tower.grid:
        changed.append(feeds | {"grid_weights": np.zeros_like(feeds["grid_weights"])})
    engine = encoder(small.folder)
    vision = open_session(small.folder / "vision.fp32.onnx", ("CPUExecutionProvider",), 1)
    tokens = [vision.run(None, one)[0] for one in changed]
    if small.tower.features:
        plain = vision.run(None, feeds)[0].copy()
        plain[:, 64:] = 0
        tokens.append(plain)
    for one in tokens:
        found = engine._text.run(None, text_feeds(batch, one))[0]
        assert np.abs(found - expected[4]).max() > 1e-3


@pytest.mark.parametrize(("precision", "worst"), [("fp32", 0.999999), ("fp16", 0.9999)])
def test_an_embedding_does_not_depend_on_its_batch(
    small: Small, expected: Float32, precision: str, worst: float, tmp_path: Path
) -> None:
    for part in PARTS if precision == "fp16" else ():
        to_fp16(small.folder / f"{part}.fp32.onnx", tmp_path / f"{part}.fp16.onnx")
    engine = encoder(small.folder if precision == "fp32" else tmp_path, precision)
    mixed = engine.encode(small.batch(*ALL))
    alone = np.concatenate([engine.encode(small.batch(number)) for number in ALL])
    assert (mixed * alone).sum(1).min() > 0.99999
    assert (mixed * expected).sum(1).min() > worst


def test_int8(small: Small, expected: Float32, tmp_path: Path) -> None:
    report = quantize_bundle_graphs(small.folder, [small.batch(*ALL)], tmp_path)
    assert report["images"] == 7
    engine = encoder(tmp_path, "int8")
    mixed = engine.encode(small.batch(*ALL))
    alone = np.concatenate([engine.encode(small.batch(number)) for number in ALL])
    assert (mixed * alone).sum(1).min() > 0.9999
    assert (mixed * expected).sum(1).mean() > 0.99


def test_padding_may_hold_anything(small: Small) -> None:
    assert_padding_counts_for_nothing(encoder(small.folder), small.batch(*ALL))


@pytest.mark.parametrize("part", PARTS)
def test_only_primitive_operations(small: Small, part: str) -> None:
    graph = onnx.load(small.folder / f"{part}.fp32.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
    assert {node.op_type for node in graph.graph.node} <= ALLOWED | {"Tanh"}
    assert not graph.functions


def test_the_manifest_says_what_the_graphs_take(small: Small) -> None:
    described = graph_inputs(small.folder, small.tower)
    assert tower_of(small.model.config) == small.tower
    for part in PARTS:
        session = open_session(
            small.folder / f"{part}.fp32.onnx", ("CPUExecutionProvider",), threads=1
        )
        taken = {one.name: one for one in session.get_inputs()}
        assert taken.keys() == described[part].keys()
        for name, one in taken.items():
            assert (
                np.dtype(described[part][name]["dtype"].replace("float", "float32"))
                == (ARRAYS[one.type])
            )
            assert len(described[part][name]["shape"]) == len(one.shape)


def test_words_alone_never_open_the_vision_graph(small: Small, expected: Float32) -> None:
    def vision() -> Path:
        raise AssertionError("opened")

    engine = OrtEncoder(vision, small.folder / "text.fp32.onnx", threads=1)
    np.testing.assert_allclose(engine.encode(small.batch(0, 3)), expected[[0, 3]], atol=4e-6)
