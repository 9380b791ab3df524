"""`puma-edge export`: find the model and the data, then run the pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from puma_edge.config import SAMPLE, SHAPE_PREFIX, ExportConfig
from puma_edge.data import Dataset
from puma_edge.errors import UsageError
from puma_edge.export.pipeline import ExportReport, Step, export
from puma_edge.model import Checkpoint, choose_layers, load, prune
from puma_edge.run_folder import METRICS, SETTINGS, newest_run
from puma_edge.shapes import build_shape
from puma_edge.train import open_data

MERGED = "merged"


def run_export(config: ExportConfig, step: Step) -> ExportReport:
    """Export what `config` names.

    Raises:
        PumaError: no such model, run or data; a failed parity check.
        UsageError: a layer count the model does not have.
    """
    model, run = _find(config.model)
    config = replace(config, model=model)
    step(f"loading {model}")
    if model.startswith(SHAPE_PREFIX):
        checkpoint = build_shape(model, config.keep_layers, config.seed)
    else:
        checkpoint = _cut(load(model), config.keep_layers)
    if config.max_pixels:
        limits = replace(checkpoint.card.limits, max_pixels=config.max_pixels)
        checkpoint = replace(checkpoint, card=replace(checkpoint.card, limits=limits))
    return export(checkpoint, _data(config, run), config, step)


def _find(name: str) -> tuple[str, Path | None]:
    """The model's name, and the run it comes from if it comes from one."""
    if name.startswith(SHAPE_PREFIX):
        return name, None
    if not name:
        run = newest_run()
    elif (Path(name) / METRICS).is_file():
        run = Path(name)
    else:
        return name, Path(name).parent if (Path(name).parent / SETTINGS).is_file() else None
    return str(run / MERGED), run


def _cut(checkpoint: Checkpoint, keep: int) -> Checkpoint:
    total = len(checkpoint.card.kept_layers)
    if not keep or keep == total:
        return checkpoint
    return prune(checkpoint, choose_layers(total, keep))


def _data(config: ExportConfig, run: Path | None) -> Dataset | None:
    """Labelled data: what was named, or what the run was trained on; the sample for a shape."""
    if config.data:
        return open_data(config.data)
    if config.model.startswith(SHAPE_PREFIX):
        return None if config.calibration else open_data(SAMPLE)
    if run is not None:
        settings = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
        return open_data(settings["data"])
    if config.calibration:
        return None
    raise UsageError(
        f"nothing to calibrate and judge {config.model} on; give --data (M-BEIR's format) or "
        "--calibration (a folder of images and texts)"
    )
