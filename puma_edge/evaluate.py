"""Recall of an encoder on a data set, task by task; torch-free, so a bundle is judged alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from puma_edge.data import Dataset, Source, SourceEncoder
from puma_edge.inputs import Encoded, Float32, InputSpec
from puma_edge.metrics import recall_at_k
from puma_edge.runtimes.encoder import Encoder

RECALL_AT = 5
BATCH = 64

Progress = Callable[[int, int], None]


def evaluate(
    encoder: Encoder,
    spec: InputSpec,
    data: Dataset,
    split: str,
    *,
    k: int = RECALL_AT,
    progress: Progress = lambda done, total: None,
) -> dict[int, float]:
    """Recall@k over the local pool of each task, instructions as in M-BEIR (the first of the list).

    Args:
        encoder: any engine.
        spec: how its inputs are made.
        data: the data set.
        split: "val" or "test".
        k: how many hits are looked at.
        progress: told how many items of how many are encoded.

    Returns:
        task -> mean recall@k.
    """
    load = SourceEncoder(spec)
    examples = [one for one in data.examples[split] if one.task in data.pools]
    tasks = sorted({one.task for one in examples})
    wanted = sorted({did for task in tasks for did in data.pools[task]})
    total = len(wanted) + len(examples)
    documents = encode_all(
        encoder,
        spec,
        [(data.candidates[did], None) for did in wanted],
        load,
        lambda done: progress(done, total),
    )
    queries = encode_all(
        encoder,
        spec,
        [(one.query, data.instructions[one.modalities][0]) for one in examples],
        load,
        lambda done: progress(len(wanted) + done, total),
    )
    row_of = {did: row for row, did in enumerate(wanted)}
    result = {}
    for task in tasks:
        asked = [row for row, one in enumerate(examples) if one.task == task]
        pool = data.pools[task]
        place = {did: number for number, did in enumerate(pool)}
        scores = queries[asked] @ documents[[row_of[did] for did in pool]].T
        answers = [examples[row].positives for row in asked]
        relevant = [[place[did] for did in dids if did in place] for dids in answers]
        result[task] = float(recall_at_k(scores, relevant, k).mean())
    return result


def mean(recall: dict[int, float]) -> float:
    """The mean over tasks: every task counts the same."""
    return sum(recall.values()) / len(recall)


def encode_all(
    encoder: Encoder,
    spec: InputSpec,
    sources: Sequence[tuple[Source, str | None]],
    load: SourceEncoder,
    progress: Callable[[int], None] = lambda done: None,
) -> Float32:
    """Embeddings [n, d] of sources with their instructions, in their order.

    Items of one length and kind go together, so that little is spent on padding.
    """
    # Tokenising everything twice is cheaper than holding every image's patches at once.
    lengths = [
        (len(source.images), len(source.text or "") + len(instruction or ""))
        for source, instruction in sources
    ]
    order = sorted(range(len(sources)), key=lengths.__getitem__)
    result = np.zeros((len(sources), encoder.dimension), np.float32)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        items: list[Encoded] = [load(*sources[row]) for row in rows]
        result[rows] = encoder.encode(spec.collate(items))
        progress(start + len(rows))
    return result
