"""One contract for every engine, and what is asked of each alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import PumaError
from puma_edge.export.engines import build_with
from puma_edge.inputs import Float32
from puma_edge.retrieval import cosines
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.ort import CPU, CUDA, products_left_to_cpu
from puma_edge.runtimes.ort_bound import BUFFERS, BoundEncoder, explain
from puma_edge.runtimes.trt import TrtEncoder, open_gpu
from tests.graphs import ITEMS, PARTS, batch, batch_of, encoder
from tests.models import exported, item, reference, tiny_bundle
from tests.pretend_gpu import pretend, write_engines

Opens = Callable[[Path, str], Encoder]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), tokenizer)


@pytest.fixture(scope="module")
def folder(bundle: Bundle) -> Path:
    return bundle.folder


@pytest.fixture(scope="module")
def expected() -> Float32:
    return np.stack([reference(exported().model, each) for each in ITEMS])


def bound(folder: Path, precision: str) -> BoundEncoder:
    vision, text = (folder / f"{part}.{precision}.onnx" for part in PARTS)
    return BoundEncoder(lambda: vision, text, provider=CPU, device="cpu", threads=1)


def cuda(folder: Path, precision: str) -> BoundEncoder:
    vision, text = (folder / f"{part}.{precision}.onnx" for part in PARTS)
    return BoundEncoder(lambda: vision, text)


def pretended(folder: Path, precision: str) -> TrtEncoder:
    """TensorRT's runtime, the hardware played by ONNX Runtime and the host's memory."""
    gpu, bundle = pretend(), Bundle.open(folder)
    write_engines(bundle, Precision(precision))
    return TrtEncoder(bundle, Precision(precision), gpu)


def trt(folder: Path, precision: str) -> TrtEncoder:
    gpu, bundle = open_gpu(), Bundle.open(folder)
    build_with(gpu.trt, bundle, gpu.device, [Precision(precision)])
    return TrtEncoder(bundle, Precision(precision), gpu)


ENGINES = [
    pytest.param(encoder, "ort:cpu", id="ort"),
    pytest.param(bound, "ort:cpu", id="ort, bound"),
    pytest.param(pretended, "trt:pretend-gpu-sm87-trt10.3.0", id="trt, pretended"),
    pytest.param(cuda, "ort:cuda", id="ort-cuda", marks=pytest.mark.gpu),
    pytest.param(trt, "trt:", id="trt", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("opens", "provider"), ENGINES)
def test_every_engine_keeps_the_contract(
    folder: Path, expected: Float32, opens: Opens, provider: str, precision: str
) -> None:
    engine = opens(folder, precision)
    assert engine.provider.startswith(provider)
    assert engine.dimension == expected.shape[1]
    mixed = engine.encode(batch(0, 1, 2, 3, 4))
    assert mixed.dtype == np.float32
    assert mixed.shape == expected.shape
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=1), 1, atol=1e-5)
    assert cosines(mixed, expected).min() > (0.99999 if precision == "fp32" else 0.999)
    alone = np.concatenate([engine.encode(batch(number)) for number in range(5)])
    padded = np.concatenate([engine.encode(batch(number, 3))[:1] for number in range(5)])
    assert cosines(mixed, alone).min() > 0.9999
    assert cosines(mixed, padded).min() > 0.9999
    # What it gave before belongs to the caller: no later batch writes into it.
    kept = mixed.copy()
    engine.encode(batch(4, 3, 2, 1, 0))
    np.testing.assert_array_equal(mixed, kept)
    np.testing.assert_array_equal(engine.encode(batch(0, 1, 2, 3, 4)), kept)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bound_run_gives_the_bytes_of_a_plain_one(folder: Path, precision: str) -> None:
    one, other = encoder(folder, precision), bound(folder, precision)
    for numbers in ((0, 1, 2, 3, 4), (0,), (0, 3), (4,), (2, 1), (0,), (4,), (1, 4)):
        given = batch(*numbers)
        before = {name: values.copy() for name, values in vars(given).items() if name != "tower"
                  and isinstance(values, np.ndarray)}  # fmt: skip
        np.testing.assert_array_equal(one.encode(given), other.encode(given))
        for name, values in before.items():  # buffers are written, a caller's arrays never
            np.testing.assert_array_equal(getattr(given, name), values)


def test_buffers_are_bounded(folder: Path) -> None:
    engine = bound(folder, "fp32")
    for words in range(1, 3 * BUFFERS // 5):
        engine.encode(batch_of([item(words)]))
    assert len(engine._text._buffers) == BUFFERS


def test_words_alone_never_open_the_vision_graph(folder: Path) -> None:
    def vision() -> Path:
        raise AssertionError("asked for")

    text = folder / "text.fp32.onnx"
    engine = BoundEncoder(vision, text, provider=CPU, device="cpu", threads=1)
    engine.encode(batch(0, 3))
    with pytest.raises(AssertionError):
        engine.encode(batch(1))


def test_products_left_to_the_cpu_are_counted(folder: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = str(folder / "text.fp32.onnx")
    assert products_left_to_cpu(ort.InferenceSession(path, options, providers=[CPU])) > 20


def test_a_run_that_fails_is_one_line() -> None:
    short = "[E] Failed to allocate memory for requested buffer of size 9\nstack"
    assert "too little memory on the GPU" in explain("text.onnx", short)
    assert "\n" not in explain("text.onnx", short)
    assert explain("text.onnx", "bad node\nstack") == "onnxruntime failed on text.onnx: bad node"
    assert "no reason given" in explain("text.onnx", "")


def without_cuda() -> bool:
    import onnxruntime

    return CUDA not in onnxruntime.get_available_providers()


@pytest.mark.skipif(not without_cuda(), reason="this onnxruntime has CUDA")
def test_cuda_that_is_not_there_is_one_line(bundle: Bundle) -> None:
    with pytest.raises(PumaError, match="has no CUDAExecutionProvider") as caught:
        open_engine(bundle, Runtime.ORT_CUDA)
    assert "\n" not in str(caught.value)


def test_a_cpu_takes_int8_or_fp32_unless_told(bundle: Bundle) -> None:
    assert open_engine(bundle).name == "ort:cpu fp32"
    assert open_engine(bundle, Runtime.ORT, PrecisionChoice.FP16).name == "ort:cpu fp16"


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", [Runtime.ORT_CUDA])
def test_a_gpu_embeds_as_the_cpu_does(bundle: Bundle, runtime: Runtime) -> None:
    found = open_engine(bundle, runtime, PrecisionChoice.FP32).encoder
    wanted = open_engine(bundle, Runtime.ORT, PrecisionChoice.FP32).encoder
    given = batch(0, 1, 2, 3, 4)
    assert cosines(found.encode(given), wanted.encode(given)).min() > 0.9999
