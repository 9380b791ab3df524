"""The bundle: verified before use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from puma_edge.bundle import MANIFEST, TOKENIZER, Bundle, Manifest, Precision, seal
from puma_edge.errors import PumaError
from puma_edge.images import PixelLimits
from puma_edge.prompts import PromptFormat


@pytest.fixture
def bundle(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A sealed bundle whose graphs are a few bytes each."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    tokenizer.save(str(folder / TOKENIZER))
    (folder / "text.fp32.onnx").write_bytes(b"text")
    (folder / "vision.fp32.onnx").write_bytes(b"vision")
    manifest = Manifest(
        "id", "base", "merged", (0, 1), 4, 8, PixelLimits(), PromptFormat(),
        graphs={"fp32": {"text": "text.fp32.onnx", "vision": "vision.fp32.onnx"}},
    )  # fmt: skip
    seal(folder, manifest)
    return folder


def test_it_opens_as_it_was_sealed(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.kept_layers == (0, 1)
    assert opened.graph(Precision.FP32, "text").read_bytes() == b"text"
    assert opened.spec.tokenizer.encode(None, "a fox")[-1] > 0
    assert Manifest.from_json(opened.manifest.to_json(), bundle) == opened.manifest


@pytest.mark.parametrize("name", ["text.fp32.onnx", TOKENIZER])
def test_a_changed_byte_is_refused(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(PumaError, match="not the file that was exported"):
        Bundle.open(bundle).file(name)


def test_another_version_is_refused(bundle: Path) -> None:
    values = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**values, "format_version": 99}))
    with pytest.raises(PumaError, match="format version 99, this puma-edge reads 1"):
        Bundle.open(bundle)


def test_other_prompts_are_refused(bundle: Path) -> None:
    values = json.loads((bundle / MANIFEST).read_text())
    values["golden"]["text"] += "!"
    (bundle / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(PumaError, match="other prompt templates"):
        Bundle.open(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}', "\x00"])
def test_a_damaged_manifest_is_one_clear_line(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(PumaError) as caught:
        Bundle.open(bundle)
    assert "puma-edge export" in str(caught.value)


def test_what_is_not_there(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    with pytest.raises(PumaError, match="no int8 graphs"):
        opened.graph(Precision.INT8, "text")
    with pytest.raises(PumaError, match=r"lacks \.\./secret"):
        opened.file("../secret")
    with pytest.raises(PumaError, match="is no bundle"):
        Bundle.open(tmp_path / "nowhere")


def test_a_manifest_may_not_point_out_of_its_folder(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"text")
    opened = Bundle.open(bundle)
    files = {**opened.manifest.files, "../secret": opened.manifest.files["text.fp32.onnx"]}
    forged = Bundle(bundle, replace(opened.manifest, files=files))
    with pytest.raises(PumaError):
        forged.file("../secret")
