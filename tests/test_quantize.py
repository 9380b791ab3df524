"""INT8: what is rounded and what is not, how close it stays, and that batches do not matter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from transformers import Qwen2VLModel

from puma_edge.calibration.calibrate import (
    Calibration,
    QuantSettings,
    RowScales,
    calibrate,
    smoothing,
)
from puma_edge.calibration.onnx_files import load_model, weight_of
from puma_edge.calibration.qdq import Activation, Form
from puma_edge.calibration.quantize import quantize_bundle_graphs, write_int8
from puma_edge.calibration.readers import text_readings, vision_readings
from puma_edge.errors import PumaError
from puma_edge.export.precision import to_fp16
from puma_edge.inputs import Float32
from puma_edge.retrieval import cosines
from puma_edge.runtimes.ort import (
    CPU,
    has_vnni,
    open_session,
    sums_in_32_bits,
    text_feeds,
    vision_feeds,
)
from tests.graphs import batch_of, batches, copy_graphs, embed, encoder, some
from tests.models import exported, item, reference


@pytest.fixture(scope="module")
def model() -> Qwen2VLModel:
    return exported().model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_graphs(tmp_path_factory.mktemp("quantize"))


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    return quantize_bundle_graphs(folder, batches(some(24, 1000)), folder)


def to_pytorch(model: Qwen2VLModel, folder: Path) -> Float32:
    items = some(16, 5000)
    expected = np.stack([reference(model, each) for each in items])
    return cosines(expected, embed(folder, "int8", items))


def test_close_to_pytorch_in_spite_of_outliers(
    model: Qwen2VLModel, folder: Path, report: dict[str, Any]
) -> None:
    found = to_pytorch(model, folder)
    assert found.min() > 0.995
    assert found.mean() > 0.998


def test_smoothing_and_row_scales_each_help(
    model: Qwen2VLModel, folder: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    calibration = batches(some(24, 1000))
    best = to_pytorch(model, folder).mean()
    quantize_bundle_graphs(folder, calibration, tmp_path, QuantSettings(smooth=0))
    assert to_pytorch(model, tmp_path).mean() < best
    settings = QuantSettings(smooth=0, row_scales=RowScales.NONE)
    quantize_bundle_graphs(folder, calibration, tmp_path, settings)
    assert to_pytorch(model, tmp_path).mean() < best


def test_an_embedding_does_not_depend_on_its_batch(folder: Path, report: dict[str, Any]) -> None:
    engine = encoder(folder, "int8")
    items = some(8, 9000)
    mixed = engine.encode(batch_of(items))
    alone = np.concatenate([engine.encode(batch_of([each])) for each in items])
    assert (mixed * alone).sum(1).min() > 0.9999


def test_linear_layers_and_tokens_are_int8_and_nothing_else(
    folder: Path, report: dict[str, Any]
) -> None:
    graph = onnx.load(folder / "text.int8.onnx").graph
    types = {weight.name: weight.data_type for weight in graph.initializer}
    large = [w for w in graph.initializer if len(w.dims) == 2 and min(w.dims) > 1]
    assert {w.data_type for w in large} == {onnx.TensorProto.INT8}
    assert types["tokens.int8"] == onnx.TensorProto.INT8
    assert types["layers.0.norm1.weight.smooth"] == onnx.TensorProto.FLOAT
    produced = {name: node.op_type for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    linear = [n for n in products if produced.get(n.input[1]) == "DequantizeLinear"]
    assert len(linear) == report["text"]["linear_layers"] == 3 * 7
    assert len(products) - len(linear) == 3 * 2  # attention's two, in float
    assert {node.domain for node in graph.node} == {""}


def test_layers_can_stay_in_float(folder: Path, tmp_path: Path) -> None:
    kept = frozenset({"layers.1.down.weight", "layers.2.q.weight", "blocks.0.fc1.weight"})
    settings = QuantSettings(keep_float=kept)
    found = quantize_bundle_graphs(folder, batches(some(8, 1000)), tmp_path, settings)
    for part, count in (("text", 2), ("vision", 1)):
        graph = onnx.load(tmp_path / f"{part}.int8.onnx").graph
        floats = {w.name for w in graph.initializer if w.data_type == onnx.TensorProto.FLOAT}
        assert len(kept & floats) == count
    assert found["settings"]["keep_float"] == sorted(kept)
    assert encoder(tmp_path, "int8").encode(batches(some(3, 5))[0]).shape == (3, 128)


def test_the_tensorrt_form(fp32_graphs: Path, calibration: Calibration, tmp_path: Path) -> None:
    report = write_int8(fp32_graphs, calibration, tmp_path, Form.TRT)
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


def test_nothing_but_the_graphs_is_left(folder: Path, report: dict[str, Any]) -> None:
    names = {f"{part}.{kind}.onnx" for part in ("vision", "text") for kind in ("fp32", "int8")}
    assert {path.name for path in folder.iterdir()} == names


def test_external_weights(
    folder: Path, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from puma_edge.calibration.onnx_files import load_model, save_model

    monkeypatch.setattr("puma_edge.calibration.onnx_files.INLINE_BYTES", 1000)
    for part in ("vision", "text"):
        save_model(load_model(folder / f"{part}.fp32.onnx"), tmp_path / f"{part}.fp32.onnx")
    quantize_bundle_graphs(tmp_path, batches(some(24, 1000)), tmp_path)
    batch = batches(some(4, 77))[0]
    found, expected = encoder(tmp_path, "int8").encode(batch), encoder(folder, "int8").encode(batch)
    np.testing.assert_array_equal(found, expected)
    assert len(list(tmp_path.iterdir())) == 8


def test_a_small_graph_keeps_nothing_in_the_large_ones_file(
    folder: Path, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At real sizes the fp32 weights are external, INT8 fits in one file: that must stand alone."""
    from puma_edge.calibration.onnx_files import load_model, save_model

    single, mixed, alone = (tmp_path / name for name in ("single", "mixed", "alone"))
    for one in (single, mixed, alone):
        one.mkdir()
    with monkeypatch.context() as small:
        small.setattr("puma_edge.calibration.onnx_files.INLINE_BYTES", 1000)
        for part in ("vision", "text"):
            save_model(load_model(folder / f"{part}.fp32.onnx"), single / f"{part}.fp32.onnx")
    assert len(list(single.iterdir())) == 4
    given = batches(some(24, 1000))
    quantize_bundle_graphs(single, given, alone)
    write_int8(single, calibrate(single, given), mixed, Form.TRT)
    for part in ("vision", "text"):
        to_fp16(mixed / f"{part}.int8-trt.onnx", alone / f"{part}.int8-trt.onnx")
        to_fp16(single / f"{part}.fp32.onnx", alone / f"{part}.fp16.onnx")
    shutil.rmtree(single)
    shutil.rmtree(mixed)
    batch = batches(some(4, 77))[0]
    expected = encoder(folder, "int8").encode(batch)
    np.testing.assert_array_equal(encoder(alone, "int8").encode(batch), expected)
    for precision in ("int8-trt", "fp16"):
        assert cosines(encoder(alone, precision).encode(batch), expected).min() > 0.95


def test_readings_are_items_alone(folder: Path) -> None:
    items = some(5, 40)
    batch = batch_of(items)
    engine = encoder(folder, "fp32")
    whole = engine.encode(batch)
    images = list(vision_readings([batch]))
    tokens = [engine._vision.run(None, feeds)[0] for feeds in images]
    assert [len(feeds["patches"][0]) for feeds in images] == batch.n_patches.tolist()
    readings = list(text_readings([batch], tokens, engine.dimension))
    assert [r["input_ids"].shape[1] for r in readings] == [each.length for each in items]
    rows = np.concatenate([engine._text.run(None, feeds)[0] for feeds in readings])
    np.testing.assert_allclose(rows, whole, atol=1e-5)
    assert vision_feeds(batch).keys() == images[0].keys()
    assert text_feeds(batch, tokens[0]).keys() == readings[0].keys()


def test_calibration_without_images_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PumaError, match="needs images, and its 2 items have none"):
        quantize_bundle_graphs(folder, [batch_of([item(3), item(4)])], tmp_path)


def test_pixels_are_exact() -> None:
    pixels = np.arange(256, dtype=np.float32)
    scaled = (pixels - 128) / 64
    rounded = np.rint(scaled / np.float32(1 / 64)) + 128
    np.testing.assert_array_equal(rounded, pixels)


@pytest.mark.parametrize(("low", "high"), [(-2.0, 6.0), (0.5, 3.0), (-4.0, -1.0), (0.0, 0.0)])
def test_a_range_holds_its_ends_and_zero(low: float, high: float) -> None:
    scale = Activation.covering(low, high)
    assert 0 <= scale.zero <= 255
    for value in (low, high, 0.0):
        stored = np.clip(np.rint(value / scale.scale) + scale.zero, 0, 255)
        assert (stored - scale.zero) * scale.scale == pytest.approx(value, abs=scale.scale)


def test_smoothing_by_hand() -> None:
    activations = np.asarray([16.0, 1.0, 0.0, 4.0], np.float32)
    weights = np.asarray([1.0, 1.0, 1.0, 4.0], np.float32)
    # Factors before centring: sqrt(16 / 1), sqrt(1 / 1), none, sqrt(4 / 4); geometric mean 4^(1/3).
    expected = np.asarray([4, 1, 0, 1]) / 4 ** (1 / 3)
    expected[2] = 1
    np.testing.assert_allclose(smoothing(activations, weights, 0.5), expected, rtol=1e-6)
    joined = smoothing(activations, weights, 0.5, width=2)
    np.testing.assert_allclose(joined[:2], joined[2:])


def test_products_are_exact_at_their_largest(tmp_path: Path) -> None:
    # Two products of 255 and 127 are beyond 16 bits: kernels that add pairs there give less.
    weights = np.tile(np.asarray([127, -127], np.int8), (64, 8))
    one, zero = np.asarray(1, np.float32), np.asarray(0, np.uint8)
    constants = {"w": weights, "s": one, "z": zero, "ws": np.ones(16, np.float32)}
    helper = onnx.helper
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    sides = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, width])
        for name, width in (("x", 64), ("y", 16))
    ]
    weights_ = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "largest", sides[:1], sides[1:], weights_)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "largest.onnx")
    session = open_session(tmp_path / "largest.onnx", (CPU,), 1)
    found = session.run(None, {"x": np.full((4, 64), 255, np.float32)})[0]
    np.testing.assert_array_equal(found, np.tile([64 * 255 * 127.0, -64 * 255 * 127.0], (4, 8)))


def test_vnni_is_found_in_linuxs_words() -> None:
    assert has_vnni("processor : 0\nflags\t\t: fpu avx512f avx512_vnni\n")
    assert has_vnni("flags : avx2 avx_vnni")
    assert not has_vnni("flags : avx2 avx512f")
    assert not has_vnni("Features : fp asimd")
    assert sums_in_32_bits() == has_vnni(Path("/proc/cpuinfo").read_text())
