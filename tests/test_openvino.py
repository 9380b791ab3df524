"""OpenVINO beside ONNX Runtime: one contract, from the same files."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puma_edge.calibration.quantize import quantize_bundle_graphs
from puma_edge.errors import MissingExtraError, PumaError
from puma_edge.inputs import Float32
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.openvino import OpenVinoEncoder
from puma_edge.runtimes.ort import OrtEncoder
from tests.graphs import ITEMS, PARTS, batch, copy_graphs
from tests.models import exported, reference

LEAST = {"fp32": 1 - 1e-6, "int8": 0.98}
Opens = Callable[[Callable[[], Path], Path], Encoder]


def in_ort(vision: Callable[[], Path], text: Path) -> Encoder:
    return OrtEncoder(vision, text, threads=1)


def in_openvino(vision: Callable[[], Path], text: Path) -> Encoder:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    return OpenVinoEncoder(vision, text, threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of a small model, fp32 beside INT8."""
    made = copy_graphs(tmp_path_factory.mktemp("graphs"))
    quantize_bundle_graphs(made, [batch(*range(len(ITEMS)))], made)
    return made


@pytest.fixture(scope="module")
def expected() -> Float32:
    return np.stack([reference(exported().model, each) for each in ITEMS])


@pytest.mark.parametrize("precision", LEAST)
@pytest.mark.parametrize("opens", [in_ort, in_openvino])
def test_contract(opens: Opens, precision: str, folder: Path, expected: Float32) -> None:
    files = {part: folder / f"{part}.{precision}.onnx" for part in PARTS}
    asked: list[Path] = []

    def vision() -> Path:
        asked.append(files["vision"])
        return files["vision"]

    encoder = opens(vision, files["text"])
    assert encoder.provider.partition(":")[0] in ("ort", "openvino")
    assert encoder.dimension == expected.shape[1]
    words = encoder.encode(batch(0, 3))
    assert not asked  # whoever has words alone never reads the vision graph
    mixed = encoder.encode(batch(*range(len(ITEMS))))
    assert (mixed.dtype, mixed.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-5)
    assert (mixed * expected).sum(1).min() > LEAST[precision]
    kept = mixed.copy()
    alone = np.concatenate([encoder.encode(batch(number)) for number in range(len(ITEMS))])
    np.testing.assert_array_equal(mixed, kept)  # later calls leave earlier results alone
    # An item's embedding depends on nothing but the item.
    assert (alone * mixed).sum(1).min() > 0.9999
    assert (words * mixed[[0, 3]]).sum(1).min() > 0.9999
    assert len(asked) == 1


def test_int8_runs_in_int8(folder: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    for part in PARTS:
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        path = str(folder / f"{part}.int8.onnx")
        run = openvino.Core().compile_model(path, "CPU", settings).get_runtime_model()
        layers = [node.get_rt_info() for node in run.get_ordered_ops()]
        linear = [one for one in layers if one["layerType"].astype(str) == "FullyConnected"]
        assert linear
        kinds = {one["primitiveType"].astype(str) for one in linear}
        assert all("8" in kind for kind in kinds), (part, kinds)


def test_a_file_that_is_no_graph_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra openvino")
    (tmp_path / "text.onnx").write_bytes(b"not a graph")
    with pytest.raises(PumaError, match="openvino cannot compile") as caught:
        OpenVinoEncoder(lambda: tmp_path / "vision.onnx", tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    importlib.invalidate_caches()
    with pytest.raises(MissingExtraError, match=r"puma-edge\[openvino\]"):
        OpenVinoEncoder(lambda: tmp_path, tmp_path)
