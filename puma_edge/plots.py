"""Results as pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from puma_edge.bench import BASELINES, BenchReport
from puma_edge.data import TASK_NAMES
from puma_edge.errors import require
from puma_edge.trade import Point

if TYPE_CHECKING:  # it comes with the export, and so with torch
    from puma_edge.sweep import SweepReport

# What a backend's name begins with -> the colours of its precisions, in turn.
COLOURS = {
    "torch": ("#9aa5b1", "#616e7c"),
    "compile": ("#b794f4", "#6b46c1"),
    "ort": ("#63b3ed", "#2b6cb0", "#1a4373"),
    "openvino": ("#68d391", "#2f855a"),
    "trt": ("#f6ad55", "#c05621", "#7b341e"),
}
PRECISIONS = {"fp32": "#616e7c", "fp16": "#63b3ed", "int8": "#2b6cb0", "int8-trt": "#805ad5"}


def _pyplot() -> Any:
    require("matplotlib", "plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_losses(run: Path, out: Path) -> None:
    """Loss of the stages by step, with learning rate and temperatures below, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    logs = {
        title: json.loads((run / stage / "log.json").read_text(encoding="utf-8"))
        for stage, title in (("stage1", "distillation"), ("stage2", "MAC-Loss"))
        if (run / stage).is_dir()
    }
    figure, plots = pyplot.subplots(
        2, len(logs), figsize=(4 * len(logs), 5), sharex="col", height_ratios=(2, 1), squeeze=False
    )
    for (title, rows), (above, below) in zip(logs.items(), plots.T, strict=True):
        steps = [row["step"] for row in rows]
        loss = np.array([row["loss"] for row in rows])
        above.plot(steps, loss, color="#b7cfe8", linewidth=1)
        around = max(1, len(loss) // 20)  # one step says little: batches differ
        means = np.convolve(loss, np.full(around, 1 / around), "valid")
        above.plot(steps[around // 2 :][: len(means)], means, color="#2b6cb0")
        above.set_ylim(bottom=0)
        above.set_title(title, fontsize=10)
        below.plot(steps, [row["learning_rate"] for row in rows], color="#616e7c")
        below.set_xlabel("step")
        below.ticklabel_format(axis="y", scilimits=(0, 0))
        if "tau_hard" in rows[0]:
            right = below.twinx()
            for name, colour in (("tau_hard", "#c05621"), ("tau_norm", "#dd9c6b")):
                right.plot(steps, [row[name] for row in rows], color=colour, label=name)
            right.set_ylim(0, 0.035)
            right.set_ylabel("temperature")
            right.legend(fontsize=7, frameon=False, loc=(0.1, 0.05))
            right.spines[["top"]].set_visible(False)
        for plot in (above, below):
            plot.spines[["top", "right"]].set_visible(False)
    plots[0, 0].set_ylabel("loss")
    plots[1, 0].set_ylabel("learning rate")
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def draw_bench(report: BenchReport, out: Path) -> None:
    """A bar for each backend in each case, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    backends = list(report.peak_bytes)
    colours = _colours(backends)
    cases = list(dict.fromkeys(row.case for row in report.rows))
    size = (3.4 * len(cases), 3.6)
    figure, (plots,) = pyplot.subplots(1, len(cases), figsize=size, squeeze=False)
    for plot, case in zip(plots, cases, strict=True):
        rows = {row.backend: row for row in report.rows if row.case == case}
        for place, backend in enumerate(backends):
            value = rows[backend].median_ms
            plot.barh(place, value, color=colours[place], height=0.7)
            faster = rows[backend].speedup.get(BASELINES[0])
            label = "" if faster is None else f" {faster:.1f}x"
            plot.text(value, place, label, va="center", fontsize=9)
        plot.set_yticks(range(len(backends)), backends if plot is plots[0] else [])
        plot.invert_yaxis()
        plot.set_xlim(0, 1.25 * max(row.median_ms for row in rows.values()))
        plot.set_title(case, fontsize=10)
        plot.set_xlabel("median, ms")
        plot.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report.about['device']}, {report.about['threads']} threads", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def _colours(backends: Sequence[str]) -> list[str]:
    kinds = [name.partition("-")[0] for name in backends]
    shades = [COLOURS[kind] for kind in kinds]
    return [shade[kinds[:place].count(kinds[place]) % len(shade)]
            for place, shade in enumerate(shades)]  # fmt: skip


def draw_recall(rows: Mapping[str, Mapping[int, float]], out: Path) -> None:
    """Recall of each target by task, bars side by side, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    tasks = sorted({task for row in rows.values() for task in row})
    figure, plot = pyplot.subplots(figsize=(1.5 + 1.1 * len(tasks), 3.4))
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        places = [place + (number - (len(rows) - 1) / 2) * width for place in range(len(tasks))]
        plot.bar(places, [row.get(task, 0.0) for task in tasks], width, label=name)
    plot.set_xticks(range(len(tasks)), [TASK_NAMES.get(task, str(task)) for task in tasks])
    plot.set_ylim(0, 1)
    plot.set_ylabel("recall")
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False, fontsize=8, loc="lower center", ncols=4, bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def draw_sweep(report: SweepReport, picked: Point | None, out: Path) -> None:
    """Recall against the slower query's latency, the best trades joined by a line, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, plot = pyplot.subplots(figsize=(7.5, 4.8))
    best = [one for one in report.points if one.best]
    places = [one.latency_ms for one in best], [one.recall for one in best]
    plot.step(*places, where="post", color="#9aa5b1", linewidth=1, zorder=1, label="best trades")
    for precision, colour in PRECISIONS.items():
        some = [one for one in report.points if one.precision == precision]
        if some:
            plot.scatter(
                [one.latency_ms for one in some],
                [one.recall for one in some],
                color=colour,
                label=precision,
                s=[46 if one.best else 16 for one in some],
                zorder=2,
            )
    for one in best:
        # Above and left of a best trade there is no point: it would be a better one.
        name = f"{one.layers} layers, {one.pixels:,} px, {one.dimension} dim. "
        where = (one.latency_ms, one.recall)
        plot.annotate(name, where, (-4, 3), textcoords="offset points", fontsize=7, ha="right")
    if picked is not None:
        plot.scatter(
            picked.latency_ms,
            picked.recall,
            s=160,
            facecolors="none",
            edgecolors="#c05621",
            label="picked",
        )
    plot.set_xlabel("the slower of one text and one picture query, median ms")
    plot.set_ylabel("mean recall")
    plot.margins(x=0.06, y=0.1)
    left, right = plot.get_xlim()
    plot.set_xlim(left - 0.25 * (right - left), right)  # room for the first name
    plot.spines[["top", "right"]].set_visible(False)
    legend = plot.legend(
        frameon=False, fontsize=8, loc="lower center", ncols=6, bbox_to_anchor=(0.5, 1.0)
    )
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([30])
    figure.suptitle(f"{report.device}, {report.threads} threads", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, dpi=150)
    pyplot.close(figure)
