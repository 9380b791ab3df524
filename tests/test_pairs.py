"""Which training queries a stage sees."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from puma_edge.data import Dataset, Example, Source
from puma_edge.pairs import balanced, recombined
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


def emoji_like(folder: Path) -> Dataset:
    """Two tasks of one data set: words to picture, picture and words to words."""
    train = [
        Example("1:1", 0, "1", Source("red fox"), ("1:p1",), Modality.IMAGE, "x"),
        Example("1:2", 0, "1", Source("blue dog runs"), ("1:p2",), Modality.IMAGE, "x"),
        Example(
            "1:3", 6, "1", Source("in Spanish", (folder / "a",)), ("1:t1",), Modality.TEXT, "x"
        ),
        Example("1:4", 6, "1", Source("German", (folder / "b",)), ("1:t2",), Modality.TEXT, "x"),
    ]
    asked = {"train": train, "val": [], "test": []}
    pools = {0: ["1:p1", "1:p2", "1:p3"], 6: ["1:t1", "1:t2"]}
    candidates = {did: Source(did) for many in pools.values() for did in many}
    instructions = {one.modalities: ["Find it."] for one in train}
    return Dataset(folder, asked, pools, candidates, instructions)


@given(st.integers(1, 60), st.integers(0, 5))
def test_recombined_queries_are_made_of_what_training_queries_hold(count: int, seed: int) -> None:
    data = emoji_like(Path("somewhere"))
    made = recombined(data, count, seed)
    assert len(made) == count
    by_task = Counter(one.task for one in made)
    assert abs(by_task[0] - by_task[6]) <= 1
    for one in made:
        words = set((one.query.text or "").split())
        assert words
        if one.task == 0:
            assert not one.query.images
            assert words <= {"red", "fox", "blue", "dog", "runs"}
        else:
            assert {image.name for image in one.query.images} <= {"a", "b"}
            assert words <= {"in", "Spanish", "German"}
    assert made == recombined(data, count, seed)


def test_recombined_queries_are_new_ones() -> None:
    data = emoji_like(Path("somewhere"))
    asked = {one.query for one in data.train}
    made = {one.query for one in recombined(data, 200, seed=0)}
    assert len(made - asked) > len(asked)
    assert {one.positives[0] for one in recombined(data, 200, seed=0)} == set(data.candidates)
