"""TensorRT engines: profiles and names anywhere, parsing and building with TensorRT-RTX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from puma_edge.bundle import Bundle, Precision, sha256
from puma_edge.errors import PumaError
from puma_edge.export.engines import build_plan, build_with, profiles_of
from puma_edge.runtimes.cuda import Device
from puma_edge.runtimes.plans import plan_file

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
    assert vision.largest["patches"][1] == limits.max_pixels // limits.patch_size**2
    queries, everything = profiles_of(bundle, "text")
    # One word has no image token at all; the longest text beside the largest image fits.
    assert queries.smallest["image_tokens"][0] == 0
    tokens = limits.max_pixels // (limits.patch_size * limits.merge_size) ** 2
    longest = bundle.spec.tokenizer.encode("Find what fits this.", "a " * 2000, (tokens,))
    assert everything.largest["input_ids"][1] >= len(longest)
    assert everything.largest["image_tokens"][0] >= tokens


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)


@pytest.mark.extra
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
        assert about["graph"] in bundle.manifest.files.values()
    (cache,) = (tmp_path / "bundle" / "engines").glob("*.timing.cache")
    assert cache.stat().st_size > 0
    assert Bundle.open(tmp_path / "bundle").manifest == bundle.manifest


@pytest.mark.extra
def test_the_cpus_form_is_refused_in_one_line(rtx: Any, sample_bundle: Path) -> None:
    bundle = Bundle.open(sample_bundle)
    graph = bundle.graph(Precision.INT8, "text")
    with pytest.raises(PumaError, match=r"cannot parse .*zero point") as caught:
        build_plan(rtx, graph, profiles_of(bundle, "text"))
    assert "\n" not in str(caught.value)
