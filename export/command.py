"""`puma-edge export`: find the model and the data, then run the pipeline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from puma_edge.bundle import MANIFEST, TOKENIZER
from puma_edge.config import SAMPLE, SHAPE_PREFIX, ExportConfig
from puma_edge.data import Dataset
from puma_edge.errors import UsageError
from puma_edge.export.pipeline import ExportReport, Step, export
from puma_edge.folders import check_target
from puma_edge.layer_choice import choose_layers
from puma_edge.model import load, prune
from puma_edge.run_folder import METRICS, SETTINGS, newest_run
from puma_edge.shapes import build_shape, find_shape, shape_tower
from puma_edge.tower import Tower
from puma_edge.train import open_data

MERGED = "merged"


def run_export(config: ExportConfig, step: Step) -> ExportReport:
    """Export what `config` names.

    Raises:
        PumaError: no such model, run or data; a failed parity check.
        UsageError: a layer count the model does not have, or an `out` that holds no bundle.
    """
    model, run = _find(config.model)
    config = replace(config, model=model)
    read = [Path(one) for one in (model, config.data, config.calibration) if one]
    check_target(Path(config.out), (MANIFEST, TOKENIZER), read)
    step(f"loading {model}")
    if model.startswith(SHAPE_PREFIX):
        layers = _kept(config, find_shape(model).layers, shape_tower(model))
        checkpoint = build_shape(model, seed=config.seed, layers=layers)
    else:
        checkpoint = load(model)
        layers = _kept(config, len(checkpoint.card.kept_layers), checkpoint.tower)
        if len(layers) < len(checkpoint.card.kept_layers):
            checkpoint = prune(checkpoint, layers)
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


def _kept(config: ExportConfig, total: int, tower: Tower) -> tuple[int, ...]:
    """Which layers of a model of `total` stay; all, if nothing else was asked for."""
    return choose_layers(
        total,
        config.keep_layers or (0 if config.layers else total),
        with_last=config.with_last,
        layers=config.layers,
        features=tower.features,
    )


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
