"""An index -> a vector database, in batches that a killed run need not send again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.index import Index, SearchSettings
from puma_edge.runtimes.points import Ids, Rows, as_text, point_ids
from puma_edge.runtimes.store import Origin, Points, Store
from puma_edge.runtimes.vectors import Form

TOP = 10
# Two engines add in another order: scores this close are the same score.
_SAME = 1e-5
_PRUNED = 1000  # at once


@dataclass(frozen=True)
class PushSettings:
    """How to push.

    Attributes:
        batch: rows sent at once, None for the store's own measure.
        prune: delete what the collection holds and the index does not.
        check: rows of the index that are looked for afterwards, 0 for none.

    """

    batch: int | None = None
    prune: bool = False
    check: int = 20


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        rows: of the index; after the push the collection holds them all.
        written: of them, those sent by this run.
        there: of them, those that the collection held before.
        removed: points deleted because the index does not have them.
        others: points that the collection holds beside the index's.
        queries: rows that were looked for in the collection.
        recall: share of the ten best rows by exact search that the collection found too; None
            where nothing was looked for.
        seconds: how long it took.

    """

    rows: int
    written: int
    there: int
    removed: int
    others: int
    queries: int
    recall: float | None
    seconds: float


def push(
    index: Index,
    store: Store,
    settings: PushSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Pushed:
    """Send every row that the collection does not hold yet, and look whether it finds them.

    Args:
        index: what is pushed.
        store: where to.
        settings: see `PushSettings`.
        progress: told the rows that are there, and all.

    Raises:
        UsageError: a batch of no rows.
        PumaError: the collection holds another model's rows, or the store refuses.

    """
    started = time.monotonic()
    settings = settings or PushSettings()
    if settings.batch is not None and settings.batch < 1:
        raise UsageError(f"--batch {settings.batch}: give 1 or more")
    if settings.check < 0:
        raise UsageError(f"--check {settings.check}: give 0 or more")
    header = index.header
    store.open(Origin(header.model_id, header.precision, header.dimension))
    ids = point_ids(index.table)
    written = _write(index, store, ids, settings.batch or store.batch, progress)
    removed = _prune(store, Rows(ids)) if settings.prune else 0
    if written or removed:
        store.finish()
    held = store.count()
    if held < len(index):
        raise PumaError(
            f"the collection holds {held} of the index's {len(index)} rows after all were sent; "
            "was it changed meanwhile? the same command sends what is missing"
        )
    # Beside points of something else, the ten best need not be the index's.
    many = min(settings.check, len(index)) if held == len(index) else 0
    return Pushed(
        rows=len(index),
        written=written,
        there=len(index) - written,
        removed=removed,
        others=held - len(index),
        queries=many,
        recall=_recall(index, store, Rows(ids), many) if many else None,
        seconds=time.monotonic() - started,
    )


def _write(
    index: Index,
    store: Store,
    ids: Ids,
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Send what is not there yet; how many rows that was."""
    fresh = store.count() == 0
    start = written = 0
    for records in index.table.blocks(batch):
        end = start + records.num_rows
        names = as_text(ids[start:end])
        known = set() if fresh else store.known(names)
        places = [place for place, name in enumerate(names) if name not in known]
        if places:
            vectors = np.asarray(index.vectors[start:end])[places].astype(np.float32)
            store.write(Points([names[place] for place in places], vectors, records.take(places)))
            written += len(places)
        start = end
        if progress is not None:
            progress(end, len(index))
    return written


def _prune(store: Store, rows: Rows) -> int:
    """Delete what is no row of the index; how many points that was."""
    stale = [
        name
        for page in store.ids()
        for name, row in zip(page, rows.find(page).tolist(), strict=True)
        if row < 0
    ]
    for begin in range(0, len(stale), _PRUNED):
        store.delete(stale[begin : begin + _PRUNED])
    return len(stale)


def _recall(index: Index, store: Store, rows: Rows, many: int) -> float:
    """Compare what the collection finds for some rows with exact search in the index.

    A row counts if its exact score is as good as that of the last of the ten best: of several
    equal ones, either side may take any.
    """
    chosen = np.linspace(0, len(index) - 1, many).astype(np.int64)
    queries = np.asarray(index.vectors)[chosen].astype(np.float32)
    top = min(TOP, len(index))
    exact = index.search(queries, top, SearchSettings(form=Form.EXACT))
    hits = 0
    for query, scores, names in zip(queries, exact.scores, store.search(queries, top), strict=True):
        found = np.unique(rows.find(names))
        found = found[found >= 0]
        near = np.asarray(index.vectors)[found].astype(np.float32) @ query
        hits += int((near >= scores[-1] - _SAME).sum())
    return hits / (many * top)
