"""Retrieval quality of an encoder on a data set; torch-free, so a bundle is judged alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from puma_edge.data import Dataset, Example, Source, SourceEncoder
from puma_edge.inputs import Float32, InputSpec
from puma_edge.metrics import Pool, ndcg_of, recall_of, top_k
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.vectors import shorten

RECALL_AT = 5
# M-BEIR judges the two fashion sets, whose answers have many look-alikes, by their first ten.
WIDER = {"fashion200k": 10, "fashioniq": 10}
BATCH = 64
BLOCK = 256  # queries that are scored at once: against half a million candidates in half a GB

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Score:
    """The queries of one data set and task.

    Attributes:
        task: M-BEIR's task number.
        dataset: the data set's name.
        k: how many hits were looked at.
        recall: per query, 1 where an answer is among the first k.
        ndcg: per query, nDCG@k.
    """

    task: int
    dataset: str
    k: int
    recall: NDArray[np.float32]
    ndcg: NDArray[np.float32]


def evaluate(
    encoder: Encoder,
    spec: InputSpec,
    data: Dataset,
    split: str,
    *,
    k: int | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[int, float]:
    """Recall@k over local pools: task -> mean over its data sets; arguments as in `measure`."""
    return by_task(measure(encoder, spec, data, split, k=k, progress=progress))


def by_task(scores: Sequence[Score]) -> dict[int, float]:
    """Task -> mean over its data sets of their mean recall."""
    means: dict[int, list[float]] = {}
    for score in scores:
        means.setdefault(score.task, []).append(float(score.recall.mean()))
    return {task: sum(values) / len(values) for task, values in means.items()}


def mean(recall: dict[int, float]) -> float:
    """The mean over tasks: every task counts the same."""
    return sum(recall.values()) / len(recall)


@dataclass(frozen=True)
class Embedded:
    """A split's queries and candidates as embeddings, ready to be ranked.

    Attributes:
        examples: the queries.
        queries: their embeddings [queries, d].
        among: (task, data set) -> ids of the candidates its answers are looked for among.
        row_of: candidate id -> row of `documents`.
        documents: embeddings [candidates, d].
    """

    examples: list[Example]
    queries: Float32
    among: dict[tuple[int, str], list[str]]
    row_of: dict[str, int]
    documents: Float32


def measure(
    encoder: Encoder,
    spec: InputSpec,
    data: Dataset,
    split: str,
    *,
    k: int | None = None,
    pool: Pool = Pool.LOCAL,
    progress: Progress = lambda done, total: None,
) -> list[Score]:
    """Embed a split and rank it; arguments as in `embed_split` and `rank`."""
    return rank(embed_split(encoder, spec, data, split, pool=pool, progress=progress), k=k)


def embed_split(
    encoder: Encoder,
    spec: InputSpec,
    data: Dataset,
    split: str,
    *,
    pool: Pool = Pool.LOCAL,
    progress: Progress = lambda done, total: None,
) -> Embedded:
    """Embed a split's queries, instructions as in M-BEIR (the first of the list), and candidates.

    Args:
        encoder: any engine.
        spec: how its inputs are made.
        data: the data set.
        split: "val" or "test".
        pool: among which candidates answers are looked for.
        progress: told how many items of how many are encoded.
    """
    load = SourceEncoder(spec)
    examples = [one for one in data.examples[split] if one.task in data.pools]
    groups = sorted({(one.task, one.name) for one in examples})
    if pool is Pool.GLOBAL:
        among = dict.fromkeys(groups, sorted({did for pool in data.pools.values() for did in pool}))
    else:
        among = {group: list(data.local_pool(*group, split)) for group in groups}
    wanted = sorted({did for dids in among.values() for did in dids})
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
    return Embedded(examples, queries, among, row_of, documents)


def rank(split: Embedded, *, k: int | None = None, dimension: int | None = None) -> list[Score]:
    """Rank candidates for every query.

    Args:
        split: its embeddings.
        k: how many hits are looked at; by default M-BEIR's 5, or 10 for the fashion sets.
        dimension: numbers of each embedding that are used; all by default.

    Returns:
        a score for each data set and task that has queries, by task.
    """
    queries, documents = (shorten(one, dimension) for one in (split.queries, split.documents))
    scores = []
    for (task, name), places in split.among.items():
        asked = [
            row for row, one in enumerate(split.examples) if (one.task, one.name) == (task, name)
        ]
        looked_at = k or WIDER.get(name, RECALL_AT)
        pool = documents[[split.row_of[did] for did in places]]
        top = np.concatenate(
            [
                top_k(queries[asked[start : start + BLOCK]] @ pool.T, looked_at)
                for start in range(0, len(asked), BLOCK)
            ]
        )
        place = {did: number for number, did in enumerate(places)}
        relevant = [
            [place[did] for did in split.examples[row].positives if did in place] for row in asked
        ]
        recall, ndcg = recall_of(top, relevant), ndcg_of(top, relevant, looked_at)
        scores.append(Score(task, name, looked_at, recall, ndcg))
    return scores


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
        result[rows] = encoder.encode(spec.collate(load.many([sources[row] for row in rows])))
        progress(start + len(rows))
    return result
