"""Merged model -> graphs -> precisions -> parity -> bundle; all or nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from puma_edge.bundle import TOKENIZER, Manifest, seal
from puma_edge.config import SHAPE_PREFIX, ExportConfig, Gate
from puma_edge.data import Dataset
from puma_edge.errors import PumaError
from puma_edge.export.fallback import Fallback
from puma_edge.export.graph_inputs import graph_inputs
from puma_edge.export.graphs import check_model, export_graphs
from puma_edge.export.held_out import Limits, embed
from puma_edge.export.material import PROBE, Material, from_dataset, from_folder
from puma_edge.export.parity import Parity
from puma_edge.export.precisions import Precisions, chosen, graph_bytes, graph_files
from puma_edge.export.probe import Probe, write_probe
from puma_edge.folders import replace_folder
from puma_edge.identity import model_id
from puma_edge.inputs import Float32, InputSpec
from puma_edge.model import Checkpoint
from puma_edge.progress import Progress
from puma_edge.runtimes.encoder import Encoder
from puma_edge.torch_encoder import TorchEncoder

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")
SHAPE_PROBE = Limits(queries=1, documents=4)  # without weights: minutes instead of an hour
Step = Callable[[str], None]


@dataclass(frozen=True)
class ExportReport:
    """What an export came to.

    Attributes:
        bundle: its folder.
        manifest: the sealed manifest.
        parity: precision -> comparison with PyTorch.
        sizes: precision -> bytes of its two graphs.
        fallbacks: precision -> layers that went back to float.
    """

    bundle: Path
    manifest: Manifest
    parity: dict[str, Parity]
    sizes: dict[str, int]
    fallbacks: dict[str, Fallback] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What the fp32 PyTorch model says of the material.

    Attributes:
        probe: the probe, its items embedded alone.
        judged: [n, d], of what the gate looks at; the probe's where there is nothing else.
    """

    probe: Probe
    judged: Float32


class ParityError(PumaError):
    """A precision failed the gate, and nothing was written.

    Attributes:
        report: what was measured.
    """

    def __init__(self, message: str, report: ExportReport) -> None:
        """Carry the report beside the message."""
        super().__init__(message)
        self.report = report


def export(
    checkpoint: Checkpoint, data: Dataset | None, config: ExportConfig, step: Step
) -> ExportReport:
    """Write a bundle, prove it against PyTorch, and put it in the place of the old one.

    Args:
        checkpoint: a merged model in fp32; its weights are released on the way.
        data: labelled data to judge on; None compares how the engines rank the folder's own items.
        config: precisions, gate and folders.
        step: told what is being done.

    Raises:
        ParityError: a precision failed the gate; what stood at `config.out` is untouched then.
        PumaError: the model cannot be exported.
    """
    check_model(checkpoint.model)
    material = _material(checkpoint, data, config, step)
    step("embedding the held-out items with PyTorch")
    reference = _reference(TorchEncoder(checkpoint.model), checkpoint.spec, material)
    with replace_folder(Path(config.out)) as work:
        step("exporting the graphs")
        export_graphs(checkpoint.model, work)
        checkpoint.tokenizer.save(str(work / TOKENIZER))
        manifest = describe(checkpoint, config.model)
        # The graphs hold the weights now; a model of billions must not lie in memory twice.
        checkpoint.model.to_empty(device="meta")
        gc.collect()  # the exporter's programs hold its weights too, in cycles
        write_probe(work, reference.probe)
        precisions = Precisions(work, checkpoint.spec, material, reference, config, step)
        parity = {one.value: precisions.make(one) for one in chosen(config)}
        failures = [f"{name}: {why}" for name, one in parity.items() for why in one.failures]
        manifest = replace(
            manifest,
            graphs={one.value: graph_files(one) for one in chosen(config)},
            inputs=graph_inputs(work, checkpoint.tower),
            parity={name: one.to_json() for name, one in parity.items()},
            calibration=precisions.calibration_report(),
            gate="reported" if failures else "passed",
        )
        sizes = {one.value: graph_bytes(work, one) for one in chosen(config)}
        report = ExportReport(
            Path(config.out), seal(work, manifest), parity, sizes, precisions.fallbacks
        )
        if failures and config.gate is Gate.FAIL:
            raise ParityError(
                f"parity failed, nothing was written ({'; '.join(failures)}); keep another "
                "precision, calibrate on more items, or record the failure with --gate report",
                report,
            )
    return report


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
    checkpoint: Checkpoint, data: Dataset | None, config: ExportConfig, step: Step
) -> Material:
    spec, count, seed = checkpoint.spec, config.calibration_items, config.seed
    is_shape = config.model.startswith(SHAPE_PREFIX)
    own = None
    if config.calibration:
        folder = Path(config.calibration)
        if not folder.is_dir():
            raise PumaError(f"no folder at --calibration {folder}; give one of images and texts")
        own = from_folder(spec, folder, checkpoint.card.instructions, count, seed, step)
        if data is None:
            return own
    if data is None:
        raise PumaError("nothing to calibrate and judge on; give --data or --calibration")
    judged = None if is_shape else Limits(config.judged_queries, config.judged_documents)
    labelled = from_dataset(
        spec, data, count, seed, judged=judged, probe=SHAPE_PROBE if is_shape else PROBE
    )
    if own is None:
        return labelled
    return replace(labelled, calibration=own.calibration, source=own.source)


def _reference(encoder: Encoder, spec: InputSpec, material: Material) -> Reference:
    held = material.probe
    items = [held.load(row) for row in range(len(held.sizes))]
    with Progress("embedding the probe with PyTorch", len(items)) as progress:
        rows = []
        for item in items:
            rows.append(encoder.encode(spec.collate([item])))
            progress.update(len(rows))
    probe = Probe(items, np.concatenate(rows), held.pairs)
    if material.judged is None or material.judged is held:
        return Reference(probe, probe.embeddings)
    with Progress("embedding with PyTorch", len(material.judged.sizes)) as progress:
        judged = embed(encoder, spec, material.judged, lambda done, _: progress.update(done))
    return Reference(probe, judged)
