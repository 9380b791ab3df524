"""Which training queries a stage sees."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from puma_edge.data import Example, Source
from puma_edge.pairs import balanced
from puma_edge.prompts import Modality


def examples(sizes: dict[int, int]) -> list[Example]:
    """So many queries of each task."""
    return [
        Example(f"1:{task * 1000 + n}", task, "1", Source(str(n)), ("1:1",), Modality.TEXT)
        for task, size in sizes.items()
        for n in range(size)
    ]


@given(
    st.dictionaries(st.sampled_from([0, 1, 2, 3, 4, 6, 7, 8]), st.integers(1, 40), min_size=1),
    st.integers(1, 500),
    st.integers(0, 3),
)
def test_tasks_are_drawn_alike_however_few_queries_they_have(
    sizes: dict[int, int], count: int, seed: int
) -> None:
    drawn = balanced(examples(sizes), count, seed)
    share = max(1, min(count // len(sizes), max(sizes.values())))
    assert Counter(one.task for one in drawn) == dict.fromkeys(sizes, share)
    for task, size in sizes.items():
        seen = Counter(one.qid for one in drawn if one.task == task)
        assert len(seen) == min(size, share)  # each once, before one comes twice
        assert max(seen.values()) - min(seen.values()) <= 1
    assert drawn == balanced(examples(sizes), count, seed)
