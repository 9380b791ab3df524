"""The TensorRT runtime without a GPU: shapes, names, refusals, and calls to a pretended one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import MissingExtraError, PumaError
from puma_edge.export.engines import worth_building
from puma_edge.inputs import Batch, Encoded, collate
from puma_edge.retrieval import cosines
from puma_edge.runtimes.buckets import Room, bucket_of, images_of, pad, split, take
from puma_edge.runtimes.cuda import Device, GpuMemoryError, NoDeviceError, short_of, this_device
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.runtimes.ort import OrtEncoder
from puma_edge.runtimes.plans import NoPlanError, PlanName, find_plan, plan_file
from puma_edge.runtimes.trt import Gpu, TrtEncoder
from puma_edge.runtimes.trt_graph import GRAPHS
from puma_edge.serving import split_backend
from puma_edge.turns import run_turns
from tests.models import LIMITS, PAD, item, tiny_bundle
from tests.pretend_gpu import DEVICE, PretendCuda, PretendTensorRT, pretend, write_engines

SIZES: tuple[tuple[tuple[int, int], ...], ...] = (
    (), ((4, 6),), ((2, 2), (8, 4)), ((6, 6),), ((2, 10),),
)  # fmt: skip
TEXTS, VISION, MERGED = (Room(4, 64), Room(3, 300)), Room(3, 48), 4


def batch_of(items: list[Encoded]) -> Batch:
    return collate(items, PAD, LIMITS)


def some(kinds: list[tuple[int, int]]) -> list[Encoded]:
    return [item(words, SIZES[kind], seed=n) for n, (words, kind) in enumerate(kinds)]


KINDS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 4)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(KINDS)
def test_parts_are_the_items_themselves(kinds: list[tuple[int, int]]) -> None:
    items = some(kinds)
    batch = batch_of(items)
    assert images_of(batch, MERGED).tolist() == [len(one.images) for one in items]
    parts = split(batch, TEXTS, VISION, MERGED)
    assert [row for part in parts for row in range(part.start, part.stop)] == [*range(len(items))]
    for part in parts:
        found, wanted = take(batch, part, MERGED), batch_of(items[part])
        for name in ("input_ids", "attention_mask", "position_ids", "image_index", "patches",
                     "patch_positions", "n_patches"):  # fmt: skip
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), name)
        assert found.image_sizes == wanted.image_sizes
        bucket, number = bucket_of(found, TEXTS, VISION)
        assert bucket.items <= TEXTS[number].count
        assert bucket.tokens <= TEXTS[number].length
        assert bucket.images <= VISION.count
        assert bucket.patches <= VISION.length
        assert bucket.patches % MERGED == 0


@settings(deadline=None, max_examples=60)
@given(KINDS)
def test_padding_keeps_what_is_there(kinds: list[tuple[int, int]]) -> None:
    batch = batch_of(some(kinds)[:3])
    batch = take(batch, split(batch, TEXTS, VISION, MERGED)[0], MERGED)
    bucket, _ = bucket_of(batch, TEXTS, VISION)
    padded = pad(batch, bucket, MERGED)
    items, tokens = batch.input_ids.shape
    assert padded.input_ids.shape == padded.image_index.shape == (bucket.items, bucket.tokens)
    assert padded.position_ids.shape == (3, bucket.items, bucket.tokens)
    assert padded.patches.shape[:2] == (bucket.images, bucket.patches)
    np.testing.assert_array_equal(padded.input_ids[:items, :tokens], batch.input_ids)
    assert (padded.attention_mask.sum(1) >= 1).all()
    assert (padded.n_patches >= MERGED).all()
    # Every image token finds the same patch; everything else the row of zeros behind them all.
    for one in (batch, padded):
        each = one.patches.shape[1] // MERGED
        real = one.image_index < len(one.n_patches) * each
        first = one.patches.reshape(-1, MERGED * one.patches.shape[2])[one.image_index[real]]
        if one is batch:
            wanted = first
        else:
            np.testing.assert_array_equal(first, wanted)
            np.testing.assert_array_equal(real[:items, :tokens].sum(), real.sum())


def test_few_shapes_serve_all_lengths() -> None:
    room = (Room(32, 64), Room(8, 853))
    found = {
        bucket_of(batch_of([item(words)] * count), room, VISION)[0]
        for words in range(1, 60)
        for count in (1, 2, 3, 5, 8)
    }
    assert len(found) <= 4 * 4  # lengths 16, 32, 48, 64; 1, 2, 4 or 8 of them
    long = batch_of([item(840)])
    bucket, number = bucket_of(long, room, VISION)
    assert (bucket.items, bucket.tokens, number) == (1, 853, 1)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (item(400), r"400|402 tokens and 0 images .* \(300 tokens, 3 images of 48 patches\)"),
        (item(1, ((8, 8),)), "1 images of up to 64 patches"),
        (item(1, ((2, 2),) * 4), "4 images"),
    ],
)
def test_an_item_beyond_the_profiles_is_refused(entry: Encoded, why: str) -> None:
    with pytest.raises(PumaError, match=why) as caught:
        split(batch_of([item(3), entry, item(4)]), TEXTS, VISION, MERGED)
    assert "--runtime ort" in str(caught.value)


# Names.


def test_names_are_read_as_they_are_written() -> None:
    device = Device("NVIDIA Jetson Orin.Nano (8 GB)", "87", "10.3.0.post1")
    for precision in (Precision.FP16, Precision.INT8_TRT):
        name = PlanName.parse(Path("engines") / plan_file(device, "text", precision))
        assert name == PlanName(device.slug, "text", precision.value)
    for other in ("text.fp16.plan", "a.text.int8.plan", "a.audio.fp16.plan", "a.text.fp16.json"):
        assert PlanName.parse(Path(other)) is None


@pytest.fixture
def bundle(tmp_path: Path, tokenizer: Tokenizer) -> Bundle:
    return tiny_bundle(tmp_path, tokenizer)


OTHERS = {
    "another TensorRT": (Device("Pretend GPU", "87", "10.13.3"), r"another TensorRT \(10\.13\.3\)"),
    "another GPU": (
        Device("Pretend GPU", "90", "10.3.0"),
        r"another GPU \(pretend-gpu-sm90\)",
    ),
    "both": (Device("Else", "90", "11.4"), r"another GPU .* and another TensorRT \(11\.4\)"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_an_engine_of_elsewhere_is_refused_with_the_reason(bundle: Bundle, case: str) -> None:
    device, why = OTHERS[case]
    write_engines(bundle, Precision.FP16, device=device)
    for precision in (Precision.FP16, None):
        with pytest.raises(NoPlanError, match=why) as caught:
            TrtEncoder(bundle, precision, pretend())
        assert f"puma-edge export --trt {bundle.folder}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_engine_and_no_engine_in_this_precision(bundle: Bundle) -> None:
    with pytest.raises(NoPlanError, match=r"has no TensorRT engines \(here there are: none\)"):
        TrtEncoder(bundle, None, pretend())
    write_engines(bundle, Precision.FP16)
    with pytest.raises(NoPlanError, match=r"engines in fp32 \(here there are: fp16\)"):
        TrtEncoder(bundle, Precision.FP32, pretend())


def test_a_changed_engine_and_one_of_another_graph_are_refused(bundle: Bundle) -> None:
    (_, text) = write_engines(bundle, Precision.FP16)
    about = text.with_suffix(".json")
    values = json.loads(about.read_text())
    about.write_text(json.dumps({**values, "graph": "0" * 64}))
    with pytest.raises(PumaError, match="was built from another text graph"):
        find_plan(bundle, DEVICE, "text", Precision.FP16)
    about.write_text(json.dumps(values))
    text.write_text(text.read_text() + " ")
    with pytest.raises(PumaError, match="is not the file that was built"):
        find_plan(bundle, DEVICE, "text", Precision.FP16)
    about.write_text("no")
    with pytest.raises(PumaError, match="cannot be read"):
        find_plan(bundle, DEVICE, "text", Precision.FP16)


# The GPU.


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
    vision = bundle.graph(precision, "vision")
    plain = OrtEncoder(lambda: vision, bundle.graph(precision, "text"), threads=1)
    return TrtEncoder(bundle, None, gpu), plain


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
def test_what_is_copied_and_captured_gives_the_same_embeddings(
    bundle: Bundle, precision: Precision
) -> None:
    gpu = pretend()
    found, plain = encoders(bundle, precision, gpu)
    assert found.provider == "trt:pretend-gpu-sm87-trt10.3.0"
    assert (found.precision, found.dimension) == (precision, plain.dimension)
    everything = some([(5, 0), (9, 1), (2, 2), (70, 0), (0, 3), (30, 4), (1, 1)])
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


def test_graphs_are_bounded_and_rebuilt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puma_edge.runtimes.trt_graph.GRAPHS", 2)
    assert GRAPHS > 2
    found, plain = encoders(bundle, Precision.FP32, pretend())
    for words in (3, 20, 40, 60, 3, 20, 3, 3, 40, 40):
        batch = batch_of([item(words, seed=words)])
        assert cosines(found.encode(batch), plain.encode(batch)).min() > 0.99999
        assert len(found._text._ready) <= 2


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


def test_fp32_engines_are_built_only_where_there_is_nothing_smaller(bundle: Bundle) -> None:
    assert worth_building(bundle) == [Precision.FP16]
    graphs = {"fp32": bundle.manifest.graphs["fp32"], "int8": bundle.manifest.graphs["fp16"]}
    alone = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    assert worth_building(alone) == [Precision.FP32]


def test_engines_of_a_bundle_are_asked_for_without_torch(bundle: Bundle) -> None:
    code = """
import sys
from puma_edge.cli import main
sys.argv[1:] = ["export", "bundle", "--trt"]
try:
    main()
except SystemExit as end:
    assert not {"torch", "onnx", "onnxruntime"} & set(sys.modules), sorted(sys.modules)
    sys.exit(end.code)
"""
    try:
        import tensorrt  # noqa: F401
    except ModuleNotFoundError:
        (bundle.folder / "bundle").symlink_to(bundle.folder)
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=bundle.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "puma-edge[trt]" in done.stderr


# Benchmarks.


def test_backends_are_read_as_they_are_named() -> None:
    for name, parts in {
        "torch-fp32": ("torch", "fp32"),
        "torch-cuda-bf16": ("torch-cuda", "bf16"),
        "compile-cuda-bf16": ("compile-cuda", "bf16"),
        "ort-int8-trt": ("ort", "int8-trt"),
        "ort-cuda-fp16": ("ort-cuda", "fp16"),
        "trt-int8-trt": ("trt", "int8-trt"),
    }.items():
        assert split_backend(name) == parts
    with pytest.raises(PumaError, match="no backend 'npu-fp16'"):
        split_backend("npu-fp16")


def test_a_backend_that_cannot_run_is_named_with_the_reason(
    bundle: Bundle,
) -> None:
    request = {
        "bundle": str(bundle.folder), "model": "", "threads": 1, "seconds": 0.01, "warm_up": 0.01,
        "runs": (2, 3), "cases": [],
    }  # fmt: skip
    told: list[tuple[int, int]] = []
    backends = ["ort-fp32", "trt-fp16"]
    turns = run_turns(request, backends, 2, lambda *at: told.append(at), optional=["trt-fp16"])
    assert [len(many) for many in turns.results.values()] == [2]
    assert list(turns.missing) == ["trt-fp16"]
    assert turns.missing["trt-fp16"]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    with pytest.raises(PumaError, match="trt-fp16 process failed"):
        run_turns(request, ["trt-fp16"], 1, lambda *_: None)


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
