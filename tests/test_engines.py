"""TensorRT engines: profiles and names anywhere, parsing and building with TensorRT-RTX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from puma_edge.backbones import Family
from puma_edge.bundle import Bundle, Precision, sha256
from puma_edge.calibration.calibrate import calibrate
from puma_edge.calibration.qdq import Form
from puma_edge.calibration.quantize import write_int8
from puma_edge.errors import PumaError
from puma_edge.export.engines import (
    build_plan,
    build_with,
    most_windows,
    profiles_of,
    text_profiles,
    vision_profiles,
)
from puma_edge.export.precision import to_fp16
from puma_edge.inputs import Item
from puma_edge.runtimes.buckets import Room, split
from puma_edge.runtimes.cuda import Device
from puma_edge.runtimes.plans import built_from, plan_file
from tests.commands import puma
from tests.edge import small_spec
from tests.families import small, small_bundle

DEVICE = Device("NVIDIA Jetson Orin (8 GB)", "87", "10.3.0")


def test_a_plan_is_named_by_its_device() -> None:
    name = plan_file(DEVICE, "text", Precision.INT8_TRT)
    assert name == "nvidia-jetson-orin-8-gb-sm87-trt10.3.0.text.int8-trt.plan"
    assert plan_file(Device("../..", "1", "1"), "text", Precision.FP32).startswith("gpu-sm1-trt1.")


def test_profiles_hold_every_item(sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    limits = bundle.spec.limits
    for part in ("vision", "text"):
        for profile in profiles_of(bundle, part):
            for name, usual in profile.usual.items():
                sides = zip(profile.smallest[name], usual, profile.largest[name], strict=True)
                assert all(low <= middle <= high for low, middle, high in sides)
    (vision,) = profiles_of(bundle, "vision")
    tokens = limits.max_tokens
    assert vision.largest["patches"][1] == tokens * limits.merge_size**2
    assert vision.usual["patches"][:2] == (1, tokens * limits.merge_size**2)
    queries, everything = profiles_of(bundle, "text")
    # One word has no image token at all; the longest text beside the largest image fits.
    assert queries.smallest["image_tokens"][0] == 0
    longest = bundle.spec.tokenizer.encode("Find what fits this.", "a " * 2000, (tokens,))
    assert everything.largest["input_ids"][1] >= len(longest)
    assert everything.largest["image_tokens"][0] >= tokens


@pytest.mark.parametrize("shape", [(40, 600), (600, 40), (10, 2000), (300, 300)])
def test_a_thin_picture_fits_too(shape: tuple[int, int]) -> None:
    spec = small_spec(max_pixels=16 * 28 * 28)
    picture = spec.encode(Item(None, (np.zeros((*shape, 3), np.uint8),), None))
    (vision,), texts = vision_profiles(spec), text_profiles(spec, 40)
    rooms = [Room(*one.largest["input_ids"]) for one in texts]
    room = Room(*vision.largest["patches"][:2])
    assert split(spec.collate([picture]), rooms, room, 4) == [slice(0, 1)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5))
def test_no_image_has_more_windows_than_its_profile(high: int, wide: int, edge: int) -> None:
    rows, columns, edge = 2 * high, 2 * wide, 2 * edge
    windows = -(-rows // edge) * -(-columns // edge)
    assert windows <= most_windows(rows * columns, edge, 2)
    assert windows <= most_windows(rows * columns + 4, edge, 2)


def test_the_most_windows_are_reached() -> None:
    # 16 patches in windows of 4 x 4: one as a square, two as a strip of 2 x 8.
    assert [most_windows(patches, 4, 2) for patches in (4, 16, 64, 4096)] == [1, 2, 8, 512]


# What RTX no longer needs, TensorRT does.
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)


def test_every_precision_builds(rtx: Any, sample_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(sample_bundle, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    plans = build_with(rtx, bundle, DEVICE)
    assert {path.name.split(".0.")[1] for path in plans} == {
        f"{part}.{precision}.plan"
        for part in ("vision", "text")
        for precision in ("fp32", "fp16", "int8-trt")
    }
    for path in plans:
        about = json.loads(path.with_suffix(".json").read_text())
        assert about["plan"] == sha256(path)
        assert about["capability"] == "87"
        part, precision, _ = path.name.split(".0.")[1].split(".")
        assert about["built_from"] == built_from(bundle, part, Precision(precision))
    (cache,) = (tmp_path / "bundle" / "engines").glob("*.timing.cache")
    assert cache.stat().st_size > 0
    assert Bundle.open(tmp_path / "bundle").manifest == bundle.manifest


@pytest.mark.parametrize("family", [Family.QWEN2_5_VL, Family.QWEN3_VL])
def test_other_families_build(
    rtx: Any, family: Family, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    bundle = small_bundle(family, tmp_path, tokenizer)
    assert len(build_with(rtx, bundle, DEVICE, [Precision.FP32, Precision.FP16])) == 4
    write_int8(tmp_path, calibrate(tmp_path, [small(family).batch(1, 2, 3)]), tmp_path, Form.TRT)
    for part in ("vision", "text"):
        path = tmp_path / f"{part}.int8-trt.onnx"
        to_fp16(path, path)
        assert build_plan(rtx, path, profiles_of(bundle, part)).plan


@pytest.mark.filterwarnings("ignore:Use del obj")
def test_fp32_is_not_rounded_to_tf32(rtx: Any, sample_bundle: Path) -> None:
    bundle, flags = Bundle.open(sample_bundle), []

    class Builder(rtx.Builder):  # type: ignore[misc]
        def build_serialized_network(self, network: Any, config: Any) -> None:
            flags.append(config.get_flag(rtx.BuilderFlag.TF32))

    module = SimpleNamespace(**{**vars(rtx), "Builder": Builder})
    with pytest.raises(PumaError, match="cannot build"):
        build_plan(module, bundle.graph(Precision.FP32, "text"), profiles_of(bundle, "text"))
    assert flags == [False]


def test_an_input_without_a_profile_is_named(rtx: Any, sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    graph = bundle.graph(Precision.FP32, "vision")
    with pytest.raises(PumaError, match="takes patches, for which there is no profile"):
        build_plan(rtx, graph, profiles_of(bundle, "text"))


def test_the_cpus_form_is_refused_in_one_line(rtx: Any, sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    graph = bundle.graph(Precision.INT8, "text")
    with pytest.raises(PumaError, match=r"cannot parse .*zero point") as caught:
        build_plan(rtx, graph, profiles_of(bundle, "text"))
    assert "\n" not in str(caught.value)


@pytest.mark.extra
def test_the_real_shape_builds(rtx: Any, tmp_path: Path) -> None:
    """12 of Qwen2-VL-2B's 28 layers: about 20 GB of disk, 18 GB of memory and a quarter hour."""
    shape = ("shape:qwen2-vl-2b", "--keep-layers", "12", "--max-pixels", "50176")
    wanted = ("--fp16", "--int8-trt", "--gate", "report", "--calibration-items", "16")
    done = puma("export", "--model", *shape, *wanted, cwd=tmp_path, timeout=3600)
    assert done.returncode == 0, done.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    sizes = {path.name.split(".0.")[1]: path.stat().st_size for path in
             build_with(rtx, bundle, DEVICE)}  # fmt: skip
    assert len(sizes) == 6
    for part in ("vision", "text"):
        whole, half, eighth = (sizes[f"{part}.{one}.plan"] for one in ("fp32", "fp16", "int8-trt"))
        assert half < 0.6 * whole
        assert eighth < 0.6 * half
