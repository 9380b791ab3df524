"""What commands print of quality: recall of models, parity of what was exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from puma_edge.report import new_table, print_json, print_table

if TYPE_CHECKING:  # each comes in with the command that makes it
    from puma_edge.evaluate import Score
    from puma_edge.export.pipeline import ExportReport
    from puma_edge.retrieval import PairParity
    from puma_edge.train import TrainReport


def show_scores(rows: Mapping[str, Sequence[Score]], as_json: bool) -> None:
    """Scores of one or several targets, with intervals, and differences to the first."""
    from puma_edge.data import TASK_NAMES
    from puma_edge.metrics import bootstrap

    first = next(iter(rows.values()))
    if as_json:
        print_json({name: _scores(scores, first) for name, scores in rows.items()})
        return
    for name, scores in rows.items():
        table = new_table("task", "data", "queries", "recall", "95%", "nDCG", title=name)
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
        print_table(table)
        if scores is not first:
            low, high = told["difference_interval"]
            change = f"{told['difference']:+.4f} (95% {low:+.4f} to {high:+.4f})"
            print(f"{name} against {next(iter(rows))}: {change}")


def _scores(scores: Sequence[Score], first: Sequence[Score]) -> dict[str, Any]:
    from puma_edge.evaluate import by_task
    from puma_edge.metrics import bootstrap

    tasks = [one.task for one in scores]
    # As in the mean, all tasks weigh alike, and so do the data sets of each.
    weights = [1 / len(set(tasks)) / tasks.count(task) for task in tasks]
    told: dict[str, Any] = {
        "mean": _mean(by_task(scores)),
        "interval": bootstrap([one.recall for one in scores], weights),
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
        told["difference"] = told["mean"] - _mean(by_task(first))
        told["difference_interval"] = bootstrap(changes, weights)
    return told


def show_training(report: TrainReport, as_json: bool) -> None:
    """A run's recall before and after."""
    rows = {"teacher": report.teacher, "cut, untrained": report.cut, "student": report.student}
    if as_json:
        means = {n: {"mean": _mean(r), "task": r} for n, r in rows.items() if r}
        print_json({"run": str(report.run), "recall": means})
        return
    _show_recall(rows)
    if report.teacher:
        share = _mean(report.student) / max(_mean(report.teacher), 1e-9)
        print(f"the student keeps {share:.1%} of the teacher's mean recall")
    print(f"run: {report.run}")


def _show_recall(rows: Mapping[str, Mapping[int, float]]) -> None:
    """Recall@5 of models, a column per task."""
    from puma_edge.data import TASK_NAMES

    tasks = sorted({task for recall in rows.values() for task in recall})
    table = new_table("recall@5", *[TASK_NAMES.get(task, str(task)) for task in tasks], "mean")
    for name, recall in rows.items():
        if recall:
            cells = [f"{recall[task]:.3f}" for task in tasks]
            table.add_row(name, *cells, f"{_mean(recall):.3f}")
    print_table(table)


def show_export(report: ExportReport, as_json: bool) -> None:
    """Each precision's size and parity, pair by pair, and what went back to float."""
    if as_json:
        print_json(
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
    table = new_table("precision", "MB", "worst cosine", "mean cosine", "any batch", last, "gate")
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
    print_table(table)
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
    table = new_table(name, "queries", "candidates", *columns)
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
            "-" if one.overlap is None else f"{one.overlap:.3f}",
            *recall,
        )
    print_table(table)


def show_check(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Each precision against the embeddings in the bundle."""
    if as_json:
        print_json(rows)
        return
    names = ("worst_cosine", "mean_cosine", "batch_cosine", "overlap")
    columns = ("worst cosine", "mean cosine", "any batch", "least overlap")
    table = new_table("precision", "engine", *columns, "result")
    for row in rows:
        numbers = ["-" if row.get(name) is None else f"{row[name]:.6f}" for name in names]
        result = "passed" if row["passed"] else "; ".join(row["failures"])
        table.add_row(row["precision"], row["engine"], *numbers, result)
    print_table(table)


def _mean(recall: Mapping[int, float]) -> float:
    return sum(recall.values()) / len(recall)
