"""Calibrated INT8: float32 graphs and what was seen of them in, Q/DQ graphs out, torch-free."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from puma_edge.calibration.calibrate import (
    PIXELS,
    Calibration,
    Observed,
    QuantSettings,
    calibrate,
    is_ranged,
)
from puma_edge.calibration.linears import Group, divide, find_groups, weight_name
from puma_edge.calibration.onnx_files import load_model, remove_unused_weights, save_model
from puma_edge.calibration.qdq import Activation, Form, Rewriter
from puma_edge.inputs import Batch

Float32 = NDArray[np.float32]

PARTS = ("vision", "text")
# Exact for whole numbers, and so is the signed form.
PIXEL_SCALES = {Form.CPU: Activation(1 / 64, 128), Form.TRT: Activation(1 / 64, 0, signed=True)}


def write_int8(
    folder: Path,
    calibration: Calibration,
    out: Path,
    form: Form = Form.CPU,
    keep_float: Collection[str] = (),
) -> dict[str, Any]:
    """Write `vision.<form>.onnx` and `text.<form>.onnx` into `out`.

    Linear layers and the token table become S8 with one scale per output channel or row, their
    inputs U8, or S8 in TensorRT's form; attention, norms, rotary embedding and pooling stay float.
    No scale depends on other items of a batch.

    Args:
        folder: holds `vision.fp32.onnx` and `text.fp32.onnx`.
        calibration: what was seen of them.
        out: an existing folder, which may be the same.
        form: for which engines.
        keep_float: names of weights that stay in float besides those of the settings.

    Returns:
        a report for the manifest: what was done in each graph.
    """
    reports: dict[str, Any] = {}
    for part in PARTS:
        source = folder / f"{part}.fp32.onnx"
        model, reports[part] = rewrite(source, calibration, part, form, keep_float)
        save_model(model, out / f"{part}.{form.value}.onnx")
    return reports


def rewrite(
    source: Path, calibration: Calibration, part: str, form: Form, keep_float: Collection[str]
) -> tuple[ir.Model, dict[str, int]]:
    """One graph rounded, not written yet, and what was done; see `write_int8`."""
    model, settings = load_model(source), calibration.settings
    kept = settings.keep_float | set(keep_float)
    groups = _groups(model.graph, kept)
    # All divisions come before any rewriting: some go into weights that are still to be rounded.
    plans = [_plan(group, calibration.parts[part][group.name], form, settings) for group in groups]
    rewriter = Rewriter(model.graph, form)
    for plan in plans:
        rewriter.group(plan.group, plan.scale, plan.factors)
    rewriter.tables(kept)
    remove_unused_weights(model.graph)
    return model, {
        "linear_layers": sum(len(plan.group.products) for plan in plans),
        "inputs": len(plans),
        "inputs_with_row_scales": sum(plan.scale is None for plan in plans),
    }


def quantize_bundle_graphs(
    folder: Path, batches: Sequence[Batch], out: Path, settings: QuantSettings | None = None
) -> dict[str, Any]:
    """`calibrate` and `write_int8` in the CPU's form; the report of both."""
    calibration = calibrate(folder, batches, settings)
    return calibration.to_json() | write_int8(folder, calibration, out)


@dataclass(frozen=True)
class _Plan:
    """How the linear layers of one group are rewritten; see `Rewriter.group`."""

    group: Group
    scale: Activation | None
    factors: Float32 | None


def _groups(graph: ir.Graph, kept: Collection[str]) -> list[Group]:
    groups = [
        Group(group.input, tuple(n for n in group.products if weight_name(n) not in kept))
        for group in find_groups(graph)
    ]
    return [group for group in groups if group.products]


def _plan(group: Group, seen: Observed, form: Form, settings: QuantSettings) -> _Plan:
    if group.weights == (PIXELS,):
        return _Plan(group, PIXEL_SCALES[form], None)
    # The norm is looked for before the division, which may put a node in between.
    scale = seen.scale(form, settings.ranges) if is_ranged(group, form, settings) else None
    if seen.factors is not None:
        group = divide(group, seen.factors)
    return _Plan(group, scale, seen.factors)
