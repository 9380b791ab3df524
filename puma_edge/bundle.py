"""The bundle: the one folder in which the training half and the edge half meet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from puma_edge.errors import PumaError
from puma_edge.feeds import makers
from puma_edge.images import PixelLimits
from puma_edge.inputs import InputSpec, Norm, Pooling, Positions
from puma_edge.prompts import PromptFormat, PromptTokenizer, golden
from puma_edge.tower import PLAIN, Tower

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
PROBE = "probe.npz"


class Precision(str, Enum):
    """The arithmetic of a pair of graphs."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_TRT = "int8-trt"


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and how it was proved.

    Attributes:
        model_id: hash of merged weights, layers, tokenizer, preprocessing, prompts, pooling, norm
            and positions; the same for every precision.
        base_model: the name or folder the model was made from.
        source: what was exported: a merged model's folder, or a shape; `bench` compares with it.
        kept_layers: indices of the decoder layers that were kept.
        total_layers: decoder layers of the base.
        dimension: length of an embedding.
        pooling: whose hidden state is taken.
        norm: at which point of the decoder it is taken.
        tower: how the vision tower differs from the plain one: what its graph is fed besides.
        matryoshka: lengths to which training has made it fit to be cut.
        positions: how tokens are numbered.
        limits: pixel limits.
        prompt: the prompt format.
        golden: rendered prompts, compared when the bundle is opened.
        instructions: the generic instruction `search` uses for each query modality.
        graphs: precision -> "vision" or "text" -> file name.
        inputs: graph -> input -> its "dtype", "shape" (free axes by name) and "feed", the function
            of `puma_edge.feeds` that makes it; empty in bundles of the first version.
        files: file name -> SHA-256.
        parity: precision -> report of the comparison with PyTorch.
        calibration: what the INT8 ranges were taken from.
        gate: "passed", or "reported" where a failure was only recorded (`--gate report`).
        versions: packages that made the bundle.
    """

    model_id: str
    base_model: str
    source: str
    kept_layers: tuple[int, ...]
    total_layers: int
    dimension: int
    limits: PixelLimits
    prompt: PromptFormat
    matryoshka: tuple[int, ...] = ()
    positions: Positions = Positions.MROPE
    pooling: Pooling = Pooling.RET
    norm: Norm = Norm.FINAL
    tower: Tower = PLAIN
    golden: Mapping[str, str] = field(default_factory=dict)
    instructions: Mapping[str, str] = field(default_factory=dict)
    graphs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    gate: str = "passed"
    versions: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: Path) -> Manifest:
        """Read `manifest.json`.

        Raises:
            PumaError: the text is no manifest, or one of another format version.
        """
        try:
            values = json.loads(text)
            version = values["format_version"]
        except (ValueError, TypeError, KeyError) as error:
            raise PumaError(
                f"{source} is no bundle manifest ({error}); export it again: puma-edge export"
            ) from None
        if version != FORMAT_VERSION:
            raise PumaError(
                f"{source} has format version {version}, this puma-edge reads {FORMAT_VERSION}; "
                "export the bundle again, or install the puma-edge that wrote it"
            )
        try:
            values["kept_layers"] = tuple(values["kept_layers"])
            values["matryoshka"] = tuple(values["matryoshka"])
            values["limits"] = PixelLimits(**values["limits"])
            values["prompt"] = PromptFormat(**values["prompt"])
            values["positions"] = Positions(values["positions"])
            values["pooling"] = Pooling(values["pooling"])
            values["norm"] = Norm(values["norm"])
            if "tower" in values:
                values["tower"] = Tower.from_dict(values["tower"])
            return cls(**values)
        except (TypeError, KeyError, ValueError) as error:
            raise PumaError(
                f"{source} is damaged ({error}); write the bundle again: puma-edge export"
            ) from None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; files are verified when they are asked for, and only those.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read a bundle's manifest and check that this version renders its prompts the same.

        Raises:
            PumaError: no bundle there, of another version, or with other prompts.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise PumaError(
                f"{folder} is no bundle (it has no {MANIFEST}); make one with: puma-edge export"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PumaError(f"{path} cannot be read ({error}); export the bundle again") from None
        manifest = Manifest.from_json(text, path)
        if dict(manifest.golden) != golden(manifest.prompt):
            raise PumaError(
                f"{folder} was made with other prompt templates than this puma-edge renders; "
                "export the bundle again"
            )
        _check_inputs(folder, manifest)
        return cls(folder, manifest)

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files, its bytes verified.

        Raises:
            PumaError: the file is missing, or not the one that was exported.
        """
        path = self.folder / name
        expected = self.manifest.files.get(name)
        if expected is None or Path(name).name != name or not path.is_file():
            raise PumaError(f"{self.folder} lacks {name}; export the bundle again")
        found = sha256(path)
        if found != expected:
            raise PumaError(
                f"{path} is not the file that was exported (SHA-256 {found[:12]}..., expected "
                f"{expected[:12]}...); copy or export the bundle again"
            )
        return path

    def graph(self, precision: Precision, part: str) -> Path:
        """The verified path of the "vision" or "text" graph in `precision`.

        Raises:
            PumaError: the bundle has no such precision, or the file is damaged.
        """
        parts = self.manifest.graphs.get(precision.value)
        if parts is None:
            have = ", ".join(self.manifest.graphs) or "none"
            raise PumaError(
                f"{self.folder} has no {precision.value} graphs (it has: {have}); "
                f"export them, or choose one of these with --precision"
            )
        name = parts[part]
        if f"{name}.data" in self.manifest.files:
            self.file(f"{name}.data")
        return self.file(name)

    @cached_property
    def spec(self) -> InputSpec:
        """How items become arrays for this bundle's graphs."""
        tokenizer = Tokenizer.from_file(str(self.file(TOKENIZER)))
        prompts = PromptTokenizer(tokenizer, self.manifest.prompt)
        manifest = self.manifest
        return InputSpec(prompts, manifest.limits, manifest.positions, manifest.tower)


def _check_inputs(folder: Path, manifest: Manifest) -> None:
    """Refuse graphs with inputs that nothing here makes, before an engine does so obscurely."""
    made = makers(manifest.tower)
    for part, inputs in manifest.inputs.items():
        if unknown := sorted(set(inputs) - set(made.get(part, ()))):
            raise PumaError(
                f"{folder}: its {part} graph takes {', '.join(unknown)}, which this puma-edge "
                "cannot make; install the puma-edge that wrote it, or export the bundle again"
            )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file in `folder` into the manifest and write `manifest.json` there."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    sealed = replace(manifest, files=files, golden=golden(manifest.prompt))
    (folder / MANIFEST).write_text(sealed.to_json(), encoding="utf-8")
    return sealed
