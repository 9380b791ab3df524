"""Merged model -> graphs -> precisions -> parity -> bundle; all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from puma_edge.bundle import TOKENIZER, Manifest, Precision, replace_folder, seal
from puma_edge.calibration.quantize import quantize_bundle_graphs
from puma_edge.config import SHAPE_PREFIX, ExportConfig, Gate
from puma_edge.data import Dataset
from puma_edge.errors import PumaError
from puma_edge.evaluate import evaluate
from puma_edge.export.graph_inputs import graph_inputs
from puma_edge.export.graphs import check_model, export_graphs
from puma_edge.export.material import COMPARED, Material, from_dataset, from_folder
from puma_edge.export.parity import Parity, agreement, batch_cosine, compare, judge
from puma_edge.export.precision import to_fp16
from puma_edge.export.probe import write_probe
from puma_edge.identity import model_id
from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.model import Checkpoint
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.ort import OrtEncoder
from puma_edge.torch_encoder import TorchEncoder

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")
SHAPE_COMPARED = 8  # items of a real shape without weights: minutes instead of an hour
Step = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What an export came to.

    Attributes:
        bundle: its folder.
        manifest: the sealed manifest.
        parity: precision -> comparison with PyTorch.
        sizes: precision -> bytes of its two graphs.
    """

    bundle: Path
    manifest: Manifest
    parity: dict[str, Parity]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Reference:
    """What the fp32 PyTorch model says of the material.

    Attributes:
        documents: [n, d].
        queries: [q, d].
        recall: task -> recall@k on the test queries; empty without labels.
    """

    documents: Float32
    queries: Float32
    recall: dict[int, float]


def export(
    checkpoint: Checkpoint, data: Dataset | None, config: ExportConfig, step: Step
) -> ExportReport:
    """Write a bundle, prove it against PyTorch, and put it in the place of the old one.

    Args:
        checkpoint: a merged model in fp32; its weights are released on the way.
        data: labelled data to judge on; None compares the engines' own top hits.
        config: precisions, gate and folders.
        step: told what is being done.

    Raises:
        PumaError: the model cannot be exported, or a precision failed the gate; what stood at
            `config.out` is untouched then.
    """
    check_model(checkpoint.model)
    spec = checkpoint.spec
    is_shape = config.model.startswith(SHAPE_PREFIX)
    material = _material(checkpoint, data, config, SHAPE_COMPARED if is_shape else COMPARED)
    judged = None if is_shape else data
    step("embedding the held-out items with PyTorch")
    reference = _reference(TorchEncoder(checkpoint.model), spec, material, judged)
    with replace_folder(Path(config.out)) as work:
        step("exporting the graphs")
        export_graphs(checkpoint.model, work)
        checkpoint.tokenizer.save(str(work / TOKENIZER))
        manifest = describe(checkpoint, config.model)
        # The graphs hold the weights now; a model of billions must not lie in memory twice.
        checkpoint.model.to_empty(device="meta")
        calibration = _write_precisions(work, material, config, step)
        items = [*material.documents, *material.queries]
        write_probe(work, items, np.concatenate([reference.documents, reference.queries]))
        parity = {}
        for precision in precisions(config):
            step(f"checking {precision.value} against PyTorch")
            encoder = open_encoder(work, precision)
            parity[precision.value] = _check(
                encoder, spec, material, reference, judged, precision, config
            )
            del encoder
        failures = [f"{name}: {why}" for name, one in parity.items() for why in one.failures]
        if failures and config.gate is Gate.FAIL:
            raise PumaError(
                f"parity failed, nothing was written ({'; '.join(failures)}); keep another "
                "precision, calibrate on more items, or record the failure with --gate report"
            )
        manifest = replace(
            manifest,
            graphs={one.value: graph_files(one) for one in precisions(config)},
            inputs=graph_inputs(work, checkpoint.tower),
            parity={name: one.to_json() for name, one in parity.items()},
            calibration=calibration,
            gate="reported" if failures else "passed",
        )
        sealed = seal(work, manifest)
        sizes = {one.value: _size(work, one) for one in precisions(config)}
    return ExportReport(Path(config.out), sealed, parity, sizes)


def precisions(config: ExportConfig) -> list[Precision]:
    """Those a bundle will hold, fp32 always among them."""
    chosen = [Precision.FP32]
    chosen += [Precision.FP16] if config.fp16 else []
    return chosen + ([Precision.INT8] if config.int8 else [])


def graph_files(precision: Precision) -> dict[str, str]:
    """The names of a precision's two graphs."""
    return {part: f"{part}.{precision.value}.onnx" for part in ("vision", "text")}


def open_encoder(folder: Path, precision: Precision) -> OrtEncoder:
    """ONNX Runtime over the graphs of a bundle that is not sealed yet."""
    names = graph_files(precision)
    return OrtEncoder(lambda: folder / names["vision"], folder / names["text"])


def describe(checkpoint: Checkpoint, source: str) -> Manifest:
    """The manifest of a checkpoint, before it has files."""
    card = checkpoint.card
    return Manifest(
        model_id=model_id(checkpoint),
        base_model=card.base_model,
        source=source,
        kept_layers=card.kept_layers,
        total_layers=card.total_layers,
        dimension=checkpoint.dimension,
        matryoshka=card.matryoshka,
        limits=card.limits,
        prompt=card.prompt,
        positions=card.positions,
        pooling=card.pooling,
        norm=card.norm,
        tower=checkpoint.tower,
        instructions=card.instructions,
        versions={name: metadata.version(name) for name in PACKAGES},
    )


def _material(
    checkpoint: Checkpoint, data: Dataset | None, config: ExportConfig, compared: int
) -> Material:
    count = config.calibration_items
    if config.calibration:
        folder = Path(config.calibration)
        if not folder.is_dir():
            raise PumaError(f"no folder at --calibration {folder}; give one of images and texts")
        instructions = checkpoint.card.instructions
        return from_folder(checkpoint.spec, folder, instructions, count, compared, config.seed)
    if data is None:
        raise PumaError("nothing to calibrate and judge on; give --data or --calibration")
    return from_dataset(checkpoint.spec, data, count, compared, config.seed)


def _reference(
    encoder: Encoder, spec: InputSpec, material: Material, data: Dataset | None
) -> Reference:
    return Reference(
        documents=_alone(encoder, spec, material.documents),
        queries=_alone(encoder, spec, material.queries),
        recall={} if data is None else evaluate(encoder, spec, data, "test"),
    )


def _alone(encoder: Encoder, spec: InputSpec, items: list[Encoded]) -> Float32:
    rows: Float32 = np.concatenate([encoder.encode(spec.collate([item])) for item in items])
    return rows


def _write_precisions(
    work: Path, material: Material, config: ExportConfig, step: Step
) -> dict[str, Any]:
    if config.fp16:
        step("converting to fp16")
        for part in ("vision", "text"):
            to_fp16(work / f"{part}.fp32.onnx", work / f"{part}.fp16.onnx")
    if not config.int8:
        return {}
    step("calibrating and quantising to int8")
    report = quantize_bundle_graphs(work, material.calibration, work)
    return {"source": material.source, **report}


def _check(
    encoder: Encoder,
    spec: InputSpec,
    material: Material,
    reference: Reference,
    data: Dataset | None,
    precision: Precision,
    config: ExportConfig,
) -> Parity:
    documents = _alone(encoder, spec, material.documents)
    queries = _alone(encoder, spec, material.queries)
    expected = np.concatenate([reference.documents, reference.queries])
    difference, cosines = compare(expected, np.concatenate([documents, queries]))
    kept = (reference.queries, reference.documents)
    parity = Parity(
        items=len(expected),
        max_difference=difference,
        mean_cosine=float(cosines.mean()),
        worst_cosine=float(cosines.min()),
        batch_cosine=batch_cosine(encoder, spec, [*material.documents, *material.queries][:16]),
        recall={} if data is None else evaluate(encoder, spec, data, "test"),
        reference_recall=reference.recall,
        agreement=agreement(queries, documents, kept) if data is None else None,
    )
    return replace(parity, failures=judge(parity, precision.value, config.max_recall_loss))


def _size(folder: Path, precision: Precision) -> int:
    names = graph_files(precision).values()
    return sum(path.stat().st_size for name in names for path in folder.glob(f"{name}*"))
