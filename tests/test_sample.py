"""The shipped sample: M-BEIR's format, honest splits, its own limits of size."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from puma_edge.data import Dataset, load_dataset
from puma_edge.sample import base_folder, emoji_folder
from puma_edge.sample.emoji import TASKS, load_emoji
from puma_edge.sample.folder import augment, write_corpus


@pytest.fixture(scope="module")
def emoji() -> Dataset:
    """The emoji set, from the user's cache or written there."""
    return load_dataset(emoji_folder())


def test_all_eight_tasks_have_queries_of_every_split(emoji: Dataset) -> None:
    assert emoji.tasks == sorted(TASKS) == [0, 1, 2, 3, 4, 6, 7, 8]
    for split in ("train", "val", "test"):
        for task, (asked, wanted) in TASKS.items():
            examples = [one for one in emoji.examples[split] if one.task == task]
            assert len(examples) >= 50
            assert {one.query.modality for one in examples} == {asked}
            assert {one.target for one in examples} == {wanted}
            assert {emoji.candidates[did].modality for did in emoji.pools[task]} == {wanted}


def test_every_answer_is_in_its_pool_and_every_task_has_instructions(emoji: Dataset) -> None:
    pools = {task: set(pool) for task, pool in emoji.pools.items()}
    for many in emoji.examples.values():
        for one in many:
            assert set(one.positives) <= pools[one.task]
            assert emoji.instructions[one.modalities]


def test_no_test_query_is_a_training_query(emoji: Dataset) -> None:
    def asked(split: str) -> set[tuple[int, str | None, str]]:
        return {
            (
                one.task,
                one.query.text,
                "".join(f"{path.parent.name}/{path.stem}" for path in one.query.images),
            )
            for one in emoji.examples[split]
        }

    assert not asked("train") & asked("test")
    assert not asked("train") & asked("val")
    texts = {one.query.text for one in emoji.train if one.query.text}
    assert not texts & {one.query.text for one in emoji.examples["test"] if one.query.text}


def test_query_pictures_are_never_a_candidates_bytes(emoji: Dataset) -> None:
    glyphs = {p.read_bytes() for p in (emoji.folder / "images" / "glyph").iterdir()}
    for many in emoji.examples.values():
        for one in many[::7]:
            assert all(path.read_bytes() not in glyphs for path in one.query.images)


def test_a_querys_own_glyph_is_not_its_answer(emoji: Dataset) -> None:
    for many in emoji.examples.values():
        for one in many:
            if one.task in (4, 7, 8):
                own = one.query.images[0].stem.rsplit("-", 1)[0]
                for did in one.positives:
                    assert emoji.candidates[did].images[0].stem != own


def test_augmenting_is_a_function_of_its_key() -> None:
    picture = Image.new("RGB", (128, 128), "red")
    assert augment(picture, "a").tobytes() == augment(picture, "a").tobytes()
    assert augment(picture, "a").tobytes() != augment(picture, "b").tobytes()


def test_the_sample_is_small_enough_to_ship() -> None:
    folder = base_folder().parent
    data = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    assert data <= 5_000_000
    assert sum(path.stat().st_size for path in base_folder().iterdir()) <= 12_000_000
    assert len(load_emoji()) > 1_839


def test_the_corpus_holds_all_three_kinds(tmp_path: Path) -> None:
    counts = write_corpus(tmp_path)
    files = sum(1 for path in tmp_path.rglob("*") if path.is_file())
    assert files == counts["pictures"] + 2 * counts["pictures with text"] + counts["texts"]
    assert min(counts.values()) >= 50
