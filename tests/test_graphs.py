"""The exported graphs against the stock PyTorch model, in fp32 and fp16."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import Qwen2VLModel

from puma_edge.calibration.onnx_files import load_model, save_model
from puma_edge.errors import PumaError
from puma_edge.export.graphs import TextGraph, check_model
from puma_edge.export.precision import to_fp16
from puma_edge.export.vision_graphs import VisionGraph
from puma_edge.inputs import Float32
from puma_edge.runtimes.ort import OrtEncoder, open_session
from tests.graphs import (
    ALLOWED,
    PARTS,
    assert_padding_counts_for_nothing,
    batch_of,
    embed,
    encoder,
)
from tests.graphs import ITEMS as FIVE
from tests.models import exported, item, reference, tiny_model

ITEMS = (*FIVE, item(3, ((4, 4), (4, 4), (2, 8)), seed=6))


@pytest.fixture(scope="module")
def model() -> Qwen2VLModel:
    return exported().model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    for part in PARTS:
        source = exported().folder / f"{part}.fp32.onnx"
        shutil.copy(source, folder)
        to_fp16(source, folder / f"{part}.fp16.onnx")
    return folder


@pytest.fixture(scope="module")
def expected(model: Qwen2VLModel) -> Float32:
    return np.stack([reference(model, each) for each in ITEMS])


@pytest.mark.parametrize("chosen", [(0, 1, 2, 3, 4, 5), (0,), (0, 3), (4,), (2,), (5, 1), (4, 4)])
def test_fp32_equals_pytorch(folder: Path, expected: Float32, chosen: tuple[int, ...]) -> None:
    found = embed(folder, "fp32", [ITEMS[number] for number in chosen])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[list(chosen)], atol=4e-6)


@pytest.mark.parametrize(("precision", "worst"), [("fp32", 0.999999), ("fp16", 0.9999)])
def test_an_embedding_does_not_depend_on_its_batch(
    folder: Path, expected: Float32, precision: str, worst: float
) -> None:
    engine = encoder(folder, precision)
    mixed = engine.encode(batch_of(ITEMS))
    alone = np.concatenate([engine.encode(batch_of([each])) for each in ITEMS])
    assert (mixed * alone).sum(1).min() > 0.99999
    assert (mixed * expected).sum(1).min() > worst
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-6)


def test_padding_may_hold_anything(folder: Path) -> None:
    assert_padding_counts_for_nothing(encoder(folder, "fp32"), batch_of(ITEMS))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_layer_alone_is_cut_to_the_pooled_token(layers: int) -> None:
    model = tiny_model(3, layers=layers, depth=1, heads=2, groups=1, hidden=32, vision_heads=2)
    with torch.no_grad():  # ONNX Runtime is covered above; here the modules themselves
        batch = batch_of(ITEMS)
        vision = VisionGraph(model)(
            *map(torch.from_numpy, (batch.patches, batch.patch_positions, batch.n_patches))
        )
        ids, mask, places, index = map(
            torch.from_numpy,
            (batch.input_ids, batch.attention_mask, batch.position_ids, batch.image_index),
        )
        found = TextGraph(model)(ids, mask, places, vision, index).numpy()
    wanted = np.stack([reference(model, each) for each in ITEMS])
    np.testing.assert_allclose(found, wanted, atol=4e-6)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_primitive_operations(folder: Path, part: str, precision: str) -> None:
    graph = onnx.load(folder / f"{part}.{precision}.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 18)]
    assert {node.op_type for node in graph.graph.node} <= ALLOWED
    assert not graph.functions


def test_weights_are_shared_with_the_model(model: Qwen2VLModel) -> None:
    graph = TextGraph(model)
    own = {values.data_ptr() for values in model.parameters()}
    assert all(values.data_ptr() in own for values in graph.parameters())


def test_fp16_weights_are_half_and_norms_are_not(folder: Path) -> None:
    graph = onnx.load(folder / "text.fp16.onnx").graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert types["layers.0.down.weight.half"] == types["tokens.half"] == half
    assert types["layers.0.norm1.weight"] == types["norm.weight"] == single
    assert graph.output[0].name == "sentence_embedding"
    assert graph.output[0].type.tensor_type.elem_type == single


def test_a_weight_beyond_half_precision_is_refused(folder: Path, tmp_path: Path) -> None:
    graph = onnx.load(folder / "text.fp32.onnx")
    weight = next(w for w in graph.graph.initializer if w.name == "layers.0.down.weight")
    values = onnx.numpy_helper.to_array(weight) * np.float32(1e6)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, tmp_path / "text.fp32.onnx")
    with pytest.raises(PumaError, match=r"layers\.0\.down\.weight"):
        to_fp16(tmp_path / "text.fp32.onnx", tmp_path / "text.fp16.onnx")


def test_external_weights(
    folder: Path, expected: Float32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puma_edge.calibration.onnx_files.INLINE_BYTES", 1000)
    names = [f"{part}.fp32.onnx" for part in PARTS]
    for name in names * 2:
        save_model(load_model(folder / name), tmp_path / name)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {*names, *(f"{name}.data" for name in names)}
    # Written twice, held once.
    assert sizes["text.fp32.onnx.data"] < 1.1 * (folder / "text.fp32.onnx").stat().st_size
    np.testing.assert_allclose(embed(tmp_path, "fp32", ITEMS), expected, atol=4e-6)


def test_other_models_are_refused(model: Qwen2VLModel) -> None:
    with pytest.raises(PumaError, match="only transformers' Qwen2VLModel"):
        check_model(torch.nn.Linear(2, 2))
    check_model(model)


def test_words_alone_never_open_the_vision_graph(folder: Path, expected: Float32) -> None:
    asked: list[str] = []

    def vision() -> Path:
        asked.append("vision")
        return folder / "vision.fp32.onnx"

    engine = OrtEncoder(vision, folder / "text.fp32.onnx", threads=1)
    np.testing.assert_allclose(
        engine.encode(batch_of([ITEMS[0], ITEMS[3]])), expected[[0, 3]], atol=4e-6
    )
    assert asked == []
    for _ in range(2):
        np.testing.assert_allclose(engine.encode(batch_of([ITEMS[1]])), expected[[1]], atol=4e-6)
    assert asked == ["vision"]


def test_a_missing_provider_is_an_error(folder: Path) -> None:
    with pytest.raises(PumaError, match="has no NoSuchExecutionProvider"):
        open_session(folder / "text.fp32.onnx", ("NoSuchExecutionProvider",), None)


def test_a_damaged_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(PumaError, match=r"cannot load .*bad\.onnx"):
        open_session(tmp_path / "bad.onnx", ("CPUExecutionProvider",), 1)
