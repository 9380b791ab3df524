"""The TensorRT runtime without a GPU: refusals, and calls to a pretended one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from puma_edge.backbones import Family
from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import MissingExtraError, PumaError
from puma_edge.retrieval import cosines
from puma_edge.runtimes.cuda import GpuMemoryError, NoDeviceError, short_of, this_device
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.ort import OrtEncoder
from puma_edge.runtimes.trt import Gpu, TrtEncoder
from puma_edge.runtimes.trt_graph import GRAPHS
from tests.families import small, small_bundle
from tests.graphs import batch_of, chosen, encoder
from tests.models import item, tiny_bundle
from tests.pretend_cuda import PretendCuda
from tests.pretend_gpu import PretendTensorRT, pretend, write_engines


@pytest.fixture
def bundle(tmp_path: Path, tokenizer: Tokenizer) -> Bundle:
    return tiny_bundle(tmp_path, tokenizer)


def test_no_gpu_is_one_line_before_anything_is_loaded() -> None:
    for cuda, why in ((PretendCuda(count=0), "none was found"),
                      (PretendCuda(driver=False), "driver is missing or too old")):  # fmt: skip
        with pytest.raises(NoDeviceError, match=why) as caught:
            Gpu(PretendTensorRT(cuda), cuda)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_cuda_itself_says_that_there_is_no_gpu() -> None:
    """With NVIDIA's own bindings, where they are installed."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    error, count = runtime.cudaGetDeviceCount()
    if not int(error) and count:
        pytest.skip("there is a GPU")
    with pytest.raises(NoDeviceError, match="there is no CUDA device"):
        this_device(runtime, "10.3.0")


def test_without_tensorrt_the_extra_is_named(bundle: Bundle) -> None:
    try:
        import tensorrt  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match=r"puma-edge\[trt\]"):
            open_engine(bundle, Runtime.TRT)


def encoders(bundle: Bundle, precision: Precision, gpu: Gpu) -> tuple[TrtEncoder, OrtEncoder]:
    write_engines(bundle, precision)
    return TrtEncoder(bundle, None, gpu), encoder(bundle.folder, precision.value)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_what_is_copied_and_captured_gives_the_same_embeddings(
    bundle: Bundle, precision: Precision
) -> None:
    gpu = pretend()
    found, plain = encoders(bundle, precision, gpu)
    assert found.provider == "trt:pretend-gpu-sm87-trt10.3.0"
    assert (found.precision, found.dimension) == (precision, plain.dimension)
    everything = chosen([(5, 0), (9, 1), (2, 2), (70, 0), (0, 3), (30, 4), (1, 1)])
    for _ in range(3):  # queued, then captured and launched, then launched
        for items in (everything, everything[:1], everything[3:4], everything[::-1]):
            batch = batch_of(items)
            near = cosines(found.encode(batch), plain.encode(batch))
            assert near.min() > 0.99999
    cuda = gpu.cuda
    assert isinstance(cuda, PretendCuda)
    assert cuda.launched > 20
    queued = cuda.queued
    found.encode(batch_of(everything))
    assert cuda.queued == queued  # nothing but graphs


@pytest.mark.parametrize("family", [Family.QWEN2_5_VL, Family.QWEN3_VL])
def test_towers_that_take_more(family: Family, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Windows and learned positions are padded to the engine's shapes as well."""
    found, plain = encoders(small_bundle(family, tmp_path, tokenizer), Precision.FP32, pretend())
    made = small(family)
    for _ in range(3):
        for numbers in ((0, 1, 2, 3), (4,), (2, 2), (3, 4, 1), (4, 4), (0, 3)):
            batch = made.batch(*numbers)
            assert cosines(found.encode(batch), plain.encode(batch)).min() > 0.99999


def test_graphs_are_bounded_and_rebuilt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puma_edge.runtimes.trt_graph.GRAPHS", 2)
    assert GRAPHS > 2
    found, plain = encoders(bundle, Precision.FP32, pretend())
    for words in (3, 20, 40, 60, 3, 20, 3, 3, 40, 40):
        batch = batch_of([item(words, seed=words)])
        assert cosines(found.encode(batch), plain.encode(batch)).min() > 0.99999
        assert len(found._text._ready) <= 2


def test_copies_and_products_are_timed_apart(bundle: Bundle) -> None:
    found, plain = encoders(bundle, Precision.FP32, pretend())
    words, shown = batch_of([item(9)]), batch_of(chosen([(9, 1)]))
    for _ in range(3):  # whether their shapes have been captured or not
        # The text engine's inputs but the image tokens, which lie there; then both engines'.
        texts = len(found._text._inputs)
        assert found.stages(words) == {"copy_in": texts, "compute": 1, "copy_out": 1}
        both = texts + len(found._vision._inputs)
        assert found.stages(shown) == {"copy_in": both, "compute": 2, "copy_out": 1}
        for batch in (words, shown):
            assert cosines(found.encode(batch), plain.encode(batch)).min() > 0.99999


def test_what_cannot_be_captured_runs_without(bundle: Bundle) -> None:
    found, plain = encoders(bundle, Precision.FP32, pretend(captures=False))
    batch = batch_of([item(3), item(9)])
    found.encode(batch)
    with pytest.warns(UserWarning, match="runs without CUDA graphs: CUDA failed: operation not"):
        found.encode(batch)
    assert cosines(found.encode(batch), plain.encode(batch)).min() > 0.99999


def test_too_little_memory_is_said_before_loading_and_after(bundle: Bundle) -> None:
    write_engines(bundle, Precision.FP32)
    with pytest.raises(GpuMemoryError, match=r"too little GPU memory: .*plan needs"):
        TrtEncoder(bundle, None, pretend(memory=600))
    with pytest.raises(GpuMemoryError, match="too little GPU memory: running "):
        TrtEncoder(bundle, None, pretend(memory=30_000))
    full = pretend(memory=3_000_000)
    with pytest.raises(GpuMemoryError, match="too little GPU memory"):
        TrtEncoder(bundle, None, full)._load("vision")
    assert "\n" not in short_of(10**9, 10**8, "x")


def test_a_plan_that_tensorrt_refuses(bundle: Bundle) -> None:
    from puma_edge.bundle import sha256

    _, text = write_engines(bundle, Precision.FP32)
    text.write_bytes(b"plan of an older TensorRT")
    about = json.loads(text.with_suffix(".json").read_text())
    text.with_suffix(".json").write_text(json.dumps({**about, "plan": sha256(text)}))
    with pytest.raises(PumaError, match=r"magic tag does not match.*\(1\).*\(2\)"):
        TrtEncoder(bundle, None, pretend())


@pytest.mark.gpu
def test_a_bundles_own_engines(sample_bundle: Path, tmp_path: Path) -> None:
    """On a GPU with TensorRT: built, loaded, and held to ONNX Runtime's embeddings."""
    import shutil

    shutil.copytree(sample_bundle, tmp_path / "bundle")
    command = [sys.executable, "-m", "puma_edge", "export", "bundle", "--trt"]
    subprocess.run(command, cwd=tmp_path, check=True)
    bundle = Bundle.open(tmp_path / "bundle")
    spec = bundle.spec
    texts = ["a fox", "a red heart", "x" * 99, "word " * 400]
    batch = spec.collate([spec.encode_patches(None, text, ()) for text in texts])
    for precision, least in (("fp32", 0.9999), ("fp16", 0.999), ("int8-trt", 0.97)):
        found = open_engine(bundle, Runtime.TRT, PrecisionChoice(precision)).encoder
        wanted = open_engine(bundle, Runtime.ORT, PrecisionChoice(precision)).encoder
        for _ in range(3):
            assert cosines(found.encode(batch), wanted.encode(batch)).min() > least
