"""Engines that were built: found by their names, refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer

from puma_edge.bundle import Bundle, Precision, seal
from puma_edge.calibration.onnx_files import load_model, save_model, weight_of
from puma_edge.errors import PumaError
from puma_edge.export.engines import worth_building
from puma_edge.runtimes.cuda import Device
from puma_edge.runtimes.plans import NoPlanError, PlanName, find_plan, plan_file
from puma_edge.runtimes.trt import TrtEncoder
from tests.models import exported, tiny_bundle
from tests.pretend_gpu import DEVICE, pretend, write_engines


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
    about.write_text(json.dumps({**values, "built_from": {}}))
    with pytest.raises(PumaError, match="was built from another text graph"):
        find_plan(bundle, DEVICE, "text", Precision.FP16)
    about.write_text(json.dumps(values))
    text.write_text(text.read_text() + " ")
    with pytest.raises(PumaError, match="is not the file that was built"):
        find_plan(bundle, DEVICE, "text", Precision.FP16)
    about.write_text("no")
    with pytest.raises(PumaError, match="cannot be read"):
        find_plan(bundle, DEVICE, "text", Precision.FP16)


def test_an_engine_is_known_by_the_weights_beside_its_graph_and_by_the_model(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of two trainings of one shape: their graphs are the same file, to the byte."""
    monkeypatch.setattr("puma_edge.calibration.onnx_files.INLINE_BYTES", 0)
    folder, found = bundle.folder, []
    for factor in (1.0, 1.1):
        model = load_model(exported().folder / "text.fp32.onnx")
        weight = model.graph.initializers["layers.0.gate.weight"]
        values = np.asarray(weight_of(weight) * np.float32(factor))
        weight.const_value = ir.tensor(values, name=weight.name)
        save_model(model, folder / "text.fp32.onnx")
        found.append(replace(bundle, manifest=seal(folder, bundle.manifest)))
    other, mine = found
    graph = "text.fp32.onnx"
    assert other.manifest.files[graph] == mine.manifest.files[graph]
    assert other.manifest.files[f"{graph}.data"] != mine.manifest.files[f"{graph}.data"]
    write_engines(mine, Precision.FP32)
    find_plan(mine, DEVICE, "text", Precision.FP32)
    for changed in (other, replace(mine, manifest=replace(mine.manifest, model_id="another"))):
        with pytest.raises(PumaError, match="was built from another text graph"):
            find_plan(changed, DEVICE, "text", Precision.FP32)


def test_fp32_engines_are_built_only_where_there_is_nothing_smaller(bundle: Bundle) -> None:
    assert worth_building(bundle) == [Precision.FP16]
    graphs = {"fp32": bundle.manifest.graphs["fp32"], "int8": bundle.manifest.graphs["fp16"]}
    alone = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    assert worth_building(alone) == [Precision.FP32]


@pytest.mark.parametrize("line", [["--trt"], []])
def test_engines_of_a_bundle_are_asked_for_without_torch(bundle: Bundle, line: list[str]) -> None:
    code = """
import sys
from puma_edge.cli import main
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
        if not line:  # said in the settings, beside what is for other exports
            settings = "[export]\ntrt = true\nint8 = true\n"
            (bundle.folder / "puma-edge.toml").write_text(settings)
        done = subprocess.run(
            [sys.executable, "-c", code, "export", "bundle", *line],
            cwd=bundle.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "puma-edge[trt]" in done.stderr
