"""INT8 of a bundle under other settings, and other ways to choose what stays in float.

    python benchmarks/precision.py bundle/ --write docs/precision.md

Torch-free: the float model is the bundle's fp32 graphs. Ranges are calibrated and units scored on
validation queries, everything in the tables is measured on test queries.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from puma_edge.bundle import Bundle, Precision
from puma_edge.calibration.calibrate import Calibration, QuantSettings, calibrate
from puma_edge.calibration.onnx_files import load_model
from puma_edge.calibration.qdq import Form
from puma_edge.calibration.quantize import PARTS, rewrite, write_int8
from puma_edge.calibration.sensitivity import Trial, Unit, find_units, measure_costs
from puma_edge.config import SAMPLE, Ranges
from puma_edge.data import load_dataset
from puma_edge.export.held_out import HeldOut, Limits, embed, from_split
from puma_edge.export.material import Material, from_dataset
from puma_edge.export.precision import to_fp16
from puma_edge.inputs import Float32
from puma_edge.progress import Progress
from puma_edge.retrieval import PairParity, compare_pairs, mean_agreement, mean_recall
from puma_edge.runtimes.ort import CPU, OrtEncoder, open_session, text_feeds, vision_feeds
from puma_edge.sample import emoji_folder

ROUGH = QuantSettings(smooth=0.0)  # in TensorRT's form: where exceptions have most to mend
EXCEPTIONS = (1, 2, 4, 8)
DRAWS = 3


@dataclass(frozen=True)
class Row:
    """One setting and how it serves the test queries."""

    name: str
    mean_cosine: float
    worst_cosine: float
    pairs: tuple[PairParity, ...]
    bytes: int

    @property
    def overlap(self) -> float:
        """Mean over pairs of the share of equal first ten hits."""
        return float(np.mean([one.overlap for one in self.pairs if one.overlap is not None]))


class Bench:
    """A bundle's float graphs in a scratch folder, and the material."""

    def __init__(self, bundle: Bundle, data: Path, folder: Path, judged: Limits) -> None:
        """Copy the float graphs and embed the test items with them."""
        self.folder, self.spec = folder, bundle.spec
        for part in PARTS:
            graph = bundle.graph(Precision.FP32, part)
            for path in graph.parent.glob(f"{graph.name}*"):
                shutil.copy(path, folder)
        dataset = load_dataset(data)
        self.material: Material = from_dataset(self.spec, dataset, 256, 0, judged=None)
        self.held: HeldOut = from_split(self.spec, dataset, "test", judged, 0)
        self.reference = self._embed("fp32", folder)

    def _embed(self, name: str, folder: Path) -> Float32:
        paths = [folder / f"{part}.{name}.onnx" for part in PARTS]
        encoder = OrtEncoder(lambda: paths[0], paths[1])
        return embed(encoder, self.spec, self.held)

    def calibrate(self, settings: QuantSettings) -> Calibration:
        """Observations for both forms."""
        return calibrate(self.folder, self.material.calibration, settings, tuple(Form))

    def row(self, name: str, calibration: Calibration, form: Form, kept: Sequence[str]) -> Row:
        """Write a form with some weights in float, and measure it."""
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            out = Path(work)
            write_int8(self.folder, calibration, out, form, kept)
            if form is Form.TRT:
                for part in PARTS:
                    graph = out / f"{part}.{form.value}.onnx"
                    graph.rename(out / f"{part}.mixed.onnx")
                    to_fp16(out / f"{part}.mixed.onnx", graph)
            found = self._embed(form.value, out)
            size = sum(path.stat().st_size for path in out.glob(f"*.{form.value}.onnx*"))
        near = (self.reference * found).sum(axis=1) / np.linalg.norm(found, axis=1)
        pairs = compare_pairs(self.held.pairs, self.reference, found)
        return Row(name, float(near.mean()), float(near.min()), pairs, size)


def settings_rows(bench: Bench) -> list[Row]:
    """Every kind of range, with and without SmoothQuant, in both forms."""
    rows = []
    with Progress("ranges", 16) as progress:
        for ranges, smooth in product(Ranges, (0.0, 0.5)):
            calibration = bench.calibrate(QuantSettings(smooth=smooth, ranges=ranges))
            for form in Form:
                name = f"{form.value} | {ranges.value} | {smooth:g}"
                rows.append(bench.row(name, calibration, form, ()))
                progress.update(len(rows), name)
    return sorted(rows, key=lambda row: row.name.split(" | ")[0])


def exception_rows(bench: Bench) -> list[Row]:
    """Kept in float: the dearest in retrieval, the worst by tensor error, and any."""
    form, calibration = Form.TRT, bench.calibrate(ROUGH)
    trial = Trial(bench.material.tuned.collated(bench.spec), bench.material.tuned.pairs)
    units = find_units(bench.folder)
    with Progress("what each unit costs", len(units)) as progress:
        costs = measure_costs(
            bench.folder, calibration, form, trial, lambda done, _: progress.update(done)
        )
    orders = {"retrieval": [cost.unit for cost in costs]}
    errors = tensor_errors(bench.folder, calibration, form, trial, units)
    orders["tensor error"] = sorted(units, key=lambda unit: -errors[unit])
    for seed in range(DRAWS):
        orders[f"random {seed}"] = random.Random(seed).sample(units, len(units))
    rows = [bench.row("none | 0", calibration, form, ())]
    with Progress("exceptions", len(orders) * len(EXCEPTIONS)) as progress:
        for (order, ranked), count in product(orders.items(), EXCEPTIONS):
            kept = [name for unit in ranked[:count] for name in unit.weights]
            rows.append(bench.row(f"{order} | {count}", calibration, form, kept))
            progress.update(len(rows) - 1, rows[-1].name)
    return rows


def tensor_errors(
    folder: Path, calibration: Calibration, form: Form, trial: Trial, units: Sequence[Unit]
) -> dict[Unit, float]:
    """Relative square error of each unit's own outputs when it alone is rounded."""
    everything = frozenset(name for unit in units for name in unit.weights)
    vision = open_session(folder / "vision.fp32.onnx", (CPU,), None)
    width = int(vision.get_outputs()[0].shape[-1])
    feeds: dict[str, list[dict[str, Any]]] = {"vision": [], "text": []}
    for _, batch in trial.batches:
        tokens = np.zeros((0, width), np.float32)
        if len(batch.n_patches):
            feeds["vision"].append(vision_feeds(batch))
            tokens = vision.run(None, feeds["vision"][-1])[0]
        feeds["text"].append(text_feeds(batch, tokens))
    errors = {}
    for unit in units:
        source = folder / f"{unit.part}.fp32.onnx"
        plain = load_model(source)
        names = _outputs(plain.graph, unit)
        kept = everything - set(unit.weights)
        rounded, _ = rewrite(source, calibration, unit.part, form, kept)
        values = {str(v.name) for node in rounded.graph for v in node.outputs}
        theirs = [
            next(one for one in (f"{name}.rows", f"{name}.int8") if one in values)
            if name not in ("tokens",)
            else "tokens.int8.rows"
            for name in names
        ]
        names = [_gather_output(plain.graph) if name == "tokens" else name for name in names]
        expected = _run(plain, names, folder, feeds[unit.part])
        found = _run(rounded, theirs, folder, feeds[unit.part])
        wrong = sum(float(((a - b) ** 2).sum()) for a, b in zip(expected, found, strict=True))
        errors[unit] = wrong / sum(float((a**2).sum()) for a in expected)
    return errors


def _outputs(graph: ir.Graph, unit: Unit) -> list[str]:
    """What a unit's products give; the table itself for a table."""
    found = [
        str(node.outputs[0].name)
        for node in graph
        if node.op_type == "MatMul" and node.inputs[1] and node.inputs[1].name in unit.weights
    ]
    return found or list(unit.weights)


def _gather_output(graph: ir.Graph) -> str:
    node = next(
        n for n in graph if n.op_type == "Gather" and n.inputs[0] and n.inputs[0].name == "tokens"
    )
    return str(node.outputs[0].name)


def _run(
    model: ir.Model, names: Sequence[str], folder: Path, feeds: Sequence[dict[str, Any]]
) -> list[Float32]:
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in names)
    path = folder / "error.onnx"
    ir.save(model, path)
    session = open_session(path, (CPU,), None)
    found = [one for each in feeds for one in session.run(list(names), each)]
    path.unlink()
    return found


def settings_table(rows: Sequence[Row]) -> str:
    """Markdown."""
    pairs = rows[0].pairs
    reference = " | ".join(f"{one.reference_recall:.3f}" for one in pairs)
    base = mean_recall(pairs)
    lines = [
        "| form | ranges | smooth | mean cosine | worst cosine | overlap@10 | "
        + " | ".join(one.pair for one in pairs)
        + " | mean recall |",
        "|---" * (7 + len(pairs)) + "|",
        f"| fp32 | | | 1 | 1 | 1 | {reference} | {base[1] if base else 0:.4f} |",
    ]
    for row in rows:
        recall = mean_recall(row.pairs)
        cells = " | ".join(f"{one.recall:.3f}" for one in row.pairs)
        lines.append(
            f"| {row.name} | {row.mean_cosine:.5f} | {row.worst_cosine:.4f} | {row.overlap:.4f} | "
            f"{cells} | {recall[0] if recall else 0:.4f} |"
        )
    return "\n".join(lines)


def exceptions_table(rows: Sequence[Row]) -> str:
    """Markdown; the random draws as their mean."""
    plain, found = rows[0], {}
    for row in rows[1:]:
        order, count = row.name.split(" | ")
        found.setdefault((order.split(" ")[0], int(count)), []).append(row)
    lines = [
        "| kept in float, chosen by | groups | rank agreement | overlap@10 | mean cosine | "
        "mean recall | bytes added |",
        "|---" * 7 + "|",
        _exception_line("nothing", 0, [plain], plain),
    ]
    names = {"tensor": "tensor error", "random": f"chance, mean of {DRAWS}"}
    for (order, count), many in found.items():
        lines.append(_exception_line(names.get(order, order), count, many, plain))
    return "\n".join(lines)


def _exception_line(name: str, count: int, many: Sequence[Row], plain: Row) -> str:
    values = [
        np.mean([mean_agreement(row.pairs) for row in many]),
        np.mean([row.overlap for row in many]),
        np.mean([row.mean_cosine for row in many]),
        np.mean([(mean_recall(row.pairs) or (0.0, 0.0))[0] for row in many]),
        np.mean([row.bytes for row in many]) - plain.bytes,
    ]
    numbers = " | ".join(f"{value:.4f}" for value in values[:4])
    return f"| {name} | {count} | {numbers} | {values[4]:,.0f} |"


def write_tables(path: Path, tables: dict[str, str]) -> None:
    """Put each table between its two marks in a Markdown file."""
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = mark.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("bundle"))
    parser.add_argument("--data", default=SAMPLE, help="folder in M-BEIR's format")
    parser.add_argument("--queries", type=int, default=100, help="of each pair")
    parser.add_argument("--documents", type=int, default=500, help="of each pool")
    parser.add_argument("--only", choices=("ranges", "exceptions"))
    parser.add_argument("--write", type=Path, help="a Markdown file with marks")
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    data = emoji_folder() if given.data == SAMPLE else Path(given.data)
    tables = {}
    with tempfile.TemporaryDirectory() as work:
        limits = Limits(given.queries, given.documents)
        bench = Bench(bundle, data, Path(work), limits)
        if given.only != "exceptions":
            tables["ranges"] = settings_table(settings_rows(bench))
        if given.only != "ranges":
            tables["exceptions"] = exceptions_table(exception_rows(bench))
    note = f"Model {bundle.manifest.model_id}, {json.dumps(len(bench.held.sizes))} test items."
    for table in tables.values():
        print(f"{table}\n\n{note}\n")
    if given.write:
        write_tables(given.write, {name: f"{table}\n\n{note}" for name, table in tables.items()})


if __name__ == "__main__":
    main()
