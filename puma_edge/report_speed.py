"""What commands print of speed: the rows of a benchmark, the points of a sweep."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from puma_edge.report import new_table, print_json, print_table

if TYPE_CHECKING:  # each comes in with the command that makes it
    from puma_edge.bench import BenchReport
    from puma_edge.sweep import SweepReport
    from puma_edge.trade import Point


def show_bench(report: BenchReport, as_json: bool) -> None:
    """Medians with their ratios, then memory and sizes."""
    if as_json:
        print_json(report.to_json())
        return
    bases = list(report.rows[0].speedup)
    table = new_table(
        "case", "backend", "median ms", "p99 ms", *[f"x {b}" for b in bases], "cosine"
    )
    case = ""
    for row in report.rows:
        ratios = [f"{row.speedup[base]:.2f}" for base in bases]
        cosine = "-" if row.cosine is None else f"{row.cosine:.5f}"
        title = row.case if row.case != case else ""
        table.add_row(
            title, row.backend, f"{row.median_ms:.2f}", f"{row.p99_ms:.2f}", *ratios, cosine
        )
        case = row.case
    print_table(table)
    table = new_table("backend", "peak memory MB", "files MB", "load s")
    for name, peak in report.peak_bytes.items():
        size = report.file_bytes.get(name)
        table.add_row(
            name,
            f"{peak / 1e6:.0f}",
            "-" if size is None else f"{size / 1e6:.1f}",
            f"{report.load_seconds[name]:.2f}",
        )
    print_table(table)
    for name, why in report.missing.items():
        print(f"{name} was not timed: {why}")
    about = report.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['device']}, {about['threads']} threads, {versions}, commit {about['commit']}")


def show_sweep(report: SweepReport, picked: Point | None, as_json: bool) -> None:
    """All points by latency, the best trades marked, and the one that was picked."""
    if as_json:
        chosen = None if picked is None else asdict(picked)
        points = [asdict(one) for one in report.points]
        about = {"device": report.device, "threads": report.threads}
        print_json({**about, "points": points, "picked": chosen})
        return
    titles = ("layers", "precision", "pixels", "dim", "recall", "text ms", "image ms")
    table = new_table("", *titles, "memory MB", "files MB")
    for one in report.points:
        table.add_row(
            "*" if one.best else "",
            str(one.layers),
            one.precision,
            str(one.pixels),
            str(one.dimension),
            f"{one.recall:.4f}",
            f"{one.text_ms:.2f}",
            f"{one.image_ms:.2f}",
            f"{one.peak_bytes / 1e6:.0f}",
            f"{one.file_bytes / 1e6:.1f}",
        )
    print_table(table)
    print(f"* no other has both more recall and less latency; {report.device}, ", end="")
    print(f"{report.threads} threads")
    if picked is not None:
        flags = f"--bundle {picked.bundle} --precision {picked.precision} --dim {picked.dimension}"
        print(f"picked: puma-edge embed CORPUS {flags}")
