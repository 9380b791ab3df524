"""What commands print: results as tables or JSON on stdout, remarks on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What one command alone prints with comes in with it: a search has to answer within a second.
if TYPE_CHECKING:
    from rich.table import Table

    from puma_edge.bench import BenchReport
    from puma_edge.evaluate import Score
    from puma_edge.export.pipeline import ExportReport
    from puma_edge.retrieval import PairParity
    from puma_edge.runtimes.convert import Conversion
    from puma_edge.runtimes.embedder import Report
    from puma_edge.runtimes.searcher import Hit, Query
    from puma_edge.sweep import SweepReport
    from puma_edge.trade import Point
    from puma_edge.train import TrainReport


def say(text: str) -> None:
    """A remark, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """Names and values."""
    if as_json:
        _print_json(values)
        return
    table = _table(show_header=False, box=None)
    for name, value in values.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        table.add_row(name, str(text))
    _print(table)


def show_recall(rows: Mapping[str, Mapping[int, float]], as_json: bool) -> None:
    """Recall@5 of models, a column per task."""
    if as_json:
        _print_json({n: {"mean": _mean(r), "task": r} for n, r in rows.items() if r})
        return
    from puma_edge.data import TASK_NAMES

    tasks = sorted({task for recall in rows.values() for task in recall})
    table = _table("recall@5", *[TASK_NAMES.get(task, str(task)) for task in tasks], "mean")
    for name, recall in rows.items():
        if recall:
            cells = [f"{recall[task]:.3f}" for task in tasks]
            table.add_row(name, *cells, f"{_mean(recall):.3f}")
    _print(table)


def show_scores(rows: Mapping[str, Sequence[Score]], as_json: bool) -> None:
    """Scores of one or several targets, with intervals, and differences to the first."""
    from puma_edge.data import TASK_NAMES
    from puma_edge.metrics import bootstrap

    first = next(iter(rows.values()))
    if as_json:
        _print_json({name: _scores(scores, first) for name, scores in rows.items()})
        return
    for name, scores in rows.items():
        table = _table("task", "data", "queries", "recall", "95%", "nDCG", title=name)
        for one in scores:
            low, high = bootstrap([one.recall])
            table.add_row(
                TASK_NAMES.get(one.task, str(one.task)),
                one.dataset,
                str(len(one.recall)),
                f"{one.recall.mean():.3f} @{one.k}",
                f"{low:.3f} to {high:.3f}",
                f"{one.ndcg.mean():.3f}",
            )
        told = _scores(scores, first)
        low, high = told["interval"]
        table.add_row("mean", "", "", f"{told['mean']:.3f}", f"{low:.3f} to {high:.3f}")
        _print(table)
        if scores is not first:
            low, high = told["difference_interval"]
            change = f"{told['difference']:+.4f} (95% {low:+.4f} to {high:+.4f})"
            print(f"{name} against {next(iter(rows))}: {change}")


def _scores(scores: Sequence[Score], first: Sequence[Score]) -> dict[str, Any]:
    import numpy as np

    from puma_edge.evaluate import by_task
    from puma_edge.metrics import bootstrap

    told: dict[str, Any] = {
        "mean": _mean(by_task(scores)),
        "interval": bootstrap([one.recall for one in scores]),
        "rows": [
            {
                "task": one.task,
                "data": one.dataset,
                "queries": len(one.recall),
                "k": one.k,
                "recall": float(one.recall.mean()),
                "interval": bootstrap([one.recall]),
                "ndcg": float(one.ndcg.mean()),
            }
            for one in scores
        ],
    }
    if scores is not first:
        # Query by query: what both find hard is no difference between them.
        changes = [one.recall - base.recall for one, base in zip(scores, first, strict=True)]
        told["difference"] = float(np.mean([change.mean() for change in changes]))
        told["difference_interval"] = bootstrap(changes)
    return told


def show_training(report: TrainReport, as_json: bool) -> None:
    """A run's recall before and after."""
    rows = {"teacher": report.teacher, "cut, untrained": report.cut, "student": report.student}
    if as_json:
        means = {n: {"mean": _mean(r), "task": r} for n, r in rows.items() if r}
        _print_json({"run": str(report.run), "recall": means})
        return
    show_recall(rows, as_json=False)
    if report.teacher:
        share = _mean(report.student) / max(_mean(report.teacher), 1e-9)
        print(f"the student keeps {share:.1%} of the teacher's mean recall")
    print(f"run: {report.run}")


def show_export(report: ExportReport, as_json: bool) -> None:
    """Each precision's size and parity, pair by pair, and what went back to float."""
    if as_json:
        _print_json(
            {
                "bundle": str(report.bundle),
                "model_id": report.manifest.model_id,
                "bytes": report.sizes,
                "parity": {name: one.to_json() for name, one in report.parity.items()},
                "fallback": {name: one.to_json() for name, one in report.fallbacks.items()},
            }
        )
        return
    from puma_edge.retrieval import mean_recall

    labelled = any(mean_recall(one.pairs) for one in report.parity.values())
    last = "recall@5 (PyTorch)" if labelled else "least overlap"
    table = _table("precision", "MB", "worst cosine", "mean cosine", "any batch", last, "gate")
    for name, one in report.parity.items():
        score = "-" if one.overlap is None else f"{one.overlap:.3f}"
        if recall := mean_recall(one.pairs):
            score = f"{recall[0]:.4f} ({recall[1]:.4f})"
        table.add_row(
            name,
            f"{report.sizes[name] / 1e6:.1f}",
            f"{one.worst_cosine:.6f}",
            f"{one.mean_cosine:.6f}",
            f"{one.batch_cosine:.6f}",
            score,
            "passed" if one.passed else f"failed ({len(one.failures)})",
        )
    _print(table)
    for name, one in report.parity.items():
        if name != "fp32":
            _show_pairs(name, one.pairs)
    for name, fallback in report.fallbacks.items():
        print(f"{name}: {fallback.describe()}")
    for name, one in report.parity.items():
        for why in one.failures:
            print(f"{name} failed: {why}")


def _show_pairs(name: str, pairs: Sequence[PairParity]) -> None:
    columns = ("mean cosine", "worst cosine", "top-10 overlap", "recall (PyTorch)", "difference")
    table = _table(name, "queries", "candidates", *columns)
    for one in pairs:
        recall = ("-", "-")
        if one.recall is not None and one.reference_recall is not None:
            difference = f"{-one.recall_lost:+.3f}"
            recall = (f"{one.recall:.3f} @{one.k} ({one.reference_recall:.3f})", difference)
        table.add_row(
            one.pair,
            str(one.queries),
            str(one.candidates),
            f"{one.mean_cosine:.6f}",
            f"{one.worst_cosine:.6f}",
            f"{one.overlap:.3f}",
            *recall,
        )
    _print(table)


def show_embedding(report: Report, out: Path, as_json: bool) -> None:
    """What was embedded."""
    if as_json:
        _print_json({"index": str(out), **asdict(report)})
        return
    print(
        f"{out}: {report.seen} seen = {report.embedded} embedded + {report.duplicates} duplicates"
        f" + {report.quarantined} quarantined, {report.seconds:.1f} s"
    )
    if report.changes is not None:
        counts = ", ".join(f"{count} {name}" for name, count in asdict(report.changes).items())
        print(f"of the index before: {counts}; {report.reused} embeddings were there already")


def show_hits(queries: Sequence[Query], hits: Sequence[Sequence[Hit]], as_json: bool) -> None:
    """The hits of each query."""
    if as_json:
        _print_json(
            [
                {
                    "query": {
                        "text": query.text,
                        "image": str(query.image or "") or None,
                        **({"like": query.like} if query.like is not None else {}),
                    },
                    "hits": [{**asdict(hit), "modality": hit.modality.value} for hit in found],
                }
                for query, found in zip(queries, hits, strict=True)
            ]
        )
        return
    for query, found in zip(queries, hits, strict=True):
        name = " + ".join(part for part in (str(query.image or ""), query.text or "") if part)
        name = name if query.like is None else f"like {query.like}"
        table = _table("", "score", "file", "text", title=name, title_justify="left")
        for hit in found:
            table.add_row(str(hit.rank), f"{hit.score:.3f}", hit.id, hit.text)
        _print(table)


def show_conversion(made: Conversion, as_json: bool) -> None:
    """What was written, and the recall that it costs."""
    if as_json:
        values = {**asdict(made), "index": str(made.index), "to": made.to.value}
        _print_json(values)
        return
    for name, size in made.sizes.items():
        print(f"{made.index.with_name(name)}: {size / 1e6:.1f} MB")
    if made.recall is None:
        print("recall was not measured: it takes two rows at least")
        return
    print(
        f"recall@10 {made.recall:.4f} of the rows as they were, {made.queries} of them as queries"
    )


def show_bench(report: BenchReport, as_json: bool) -> None:
    """Medians with their ratios, then memory and sizes."""
    if as_json:
        _print_json(report.to_json())
        return
    bases = list(report.rows[0].speedup)
    table = _table("case", "backend", "median ms", "p99 ms", *[f"x {b}" for b in bases], "cosine")
    case = ""
    for row in report.rows:
        ratios = [f"{row.speedup[base]:.2f}" for base in bases]
        cosine = "-" if row.cosine is None else f"{row.cosine:.5f}"
        title = row.case if row.case != case else ""
        table.add_row(
            title, row.backend, f"{row.median_ms:.2f}", f"{row.p99_ms:.2f}", *ratios, cosine
        )
        case = row.case
    _print(table)
    table = _table("backend", "peak memory MB", "files MB", "load s")
    for name, peak in report.peak_bytes.items():
        size = report.file_bytes.get(name)
        table.add_row(
            name,
            f"{peak / 1e6:.0f}",
            "-" if size is None else f"{size / 1e6:.1f}",
            f"{report.load_seconds[name]:.2f}",
        )
    _print(table)
    for name, why in report.missing.items():
        print(f"without {name}: {why}")
    about = report.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['device']}, {about['threads']} threads, {versions}, commit {about['commit']}")


def show_sweep(report: SweepReport, picked: Point | None, as_json: bool) -> None:
    """All points by latency, the best trades marked, and the one that was picked."""
    if as_json:
        chosen = None if picked is None else asdict(picked)
        points = [asdict(one) for one in report.points]
        about = {"device": report.device, "threads": report.threads}
        _print_json({**about, "points": points, "picked": chosen})
        return
    titles = ("layers", "precision", "pixels", "dim", "recall", "text ms", "image ms")
    table = _table("", *titles, "memory MB", "files MB")
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
    _print(table)
    print(f"* no other has both more recall and less latency; {report.device}, ", end="")
    print(f"{report.threads} threads")
    if picked is not None:
        flags = f"--bundle {picked.bundle} --precision {picked.precision} --dim {picked.dimension}"
        print(f"picked: puma-edge embed CORPUS {flags}")


def show_check(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Each precision against the embeddings in the bundle."""
    if as_json:
        _print_json(rows)
        return
    names = ("worst_cosine", "mean_cosine", "batch_cosine", "overlap")
    columns = ("worst cosine", "mean cosine", "any batch", "least overlap")
    table = _table("precision", "engine", *columns, "result")
    for row in rows:
        numbers = ["-" if row.get(name) is None else f"{row[name]:.6f}" for name in names]
        result = "passed" if row["passed"] else "; ".join(row["failures"])
        table.add_row(row["precision"], row["engine"], *numbers, result)
    _print(table)


def _mean(recall: Mapping[int, float]) -> float:
    return sum(recall.values()) / len(recall)


def _table(*headers: str, **options: Any) -> Table:
    from rich.table import Table

    return Table(*headers, **options)


def _print(table: Table) -> None:
    from rich.console import Console

    # A pipe has no width: rich would cut the table at 80 columns. What stands in brackets is no
    # markup: it would take the extra out of a command that says what to install.
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=2, ensure_ascii=False))
