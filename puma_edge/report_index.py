"""What commands print of an index: how it was made, what was found in it, what a form costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from puma_edge.report import new_table, print_json, print_table, visible

if TYPE_CHECKING:  # each comes in with the command that makes it
    from puma_edge.runtimes.convert import Conversion
    from puma_edge.runtimes.embedder import Report
    from puma_edge.runtimes.push import Pushed
    from puma_edge.runtimes.searcher import Hit, Query
    from puma_edge.runtimes.store import Address


def show_embedding(report: Report, out: Path, as_json: bool) -> None:
    """What was embedded."""
    if as_json:
        print_json({"index": str(out), **asdict(report)})
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
        print_json(
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
        table = new_table("", "score", "file", "text", title=visible(name))
        for hit in found:
            table.add_row(str(hit.rank), f"{hit.score:.3f}", visible(hit.id), visible(hit.text))
        print_table(table)


def show_conversion(made: Conversion, as_json: bool) -> None:
    """What was written, and the recall that it costs."""
    if as_json:
        values = {**asdict(made), "index": str(made.index), "to": made.to.value}
        print_json(values)
        return
    for name, size in made.sizes.items():
        print(f"{made.index.with_name(name)}: {size / 1e6:.1f} MB")
    if made.recall is None:
        print("recall was not measured: it takes two rows at least")
        return
    print(
        f"recall@10 {made.recall:.4f} of the rows as they were, {made.queries} of them as queries"
    )


def show_push(done: Pushed, address: Address, as_json: bool) -> None:
    """What was sent where, and what of it the other side finds."""
    if as_json:
        print_json({"url": address.shown, "collection": address.collection, **asdict(done)})
        return
    print(
        f"{address.collection} at {address.shown}: {done.rows} rows = {done.written} written + "
        f"{done.there} there before, {done.removed} removed, {done.seconds:.1f} s"
    )
    if done.others:
        print(f"it holds {done.others} others, which --prune deletes; its hits were not compared")
    if done.recall is not None:
        print(
            f"recall@10 {done.recall:.4f} of exact search in the index, {done.queries} of its "
            "rows as queries"
        )
