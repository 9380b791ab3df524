"""M-BEIR folders: read as they are, refused with one clear line where they are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from puma_edge.data import Source, SourceEncoder, load_dataset
from puma_edge.errors import InputError, PumaError
from puma_edge.evaluate import Embedded, by_task, evaluate, mean, measure, rank
from puma_edge.inputs import Batch, Float32
from puma_edge.metrics import Pool
from puma_edge.prompts import Modality
from tests.edge import small_spec


def write(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    """A JSON lines file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two text-to-text queries over three candidates, as M-BEIR has them."""
    candidates = [
        {"did": f"7:{n}", "txt": word, "img_path": None, "modality": "text", "src_content": None}
        for n, word in enumerate(("fox", "dog", "cat"), start=1)
    ]
    write(tmp_path, "cand_pool/local/mbeir_x_task1_cand_pool.jsonl", candidates)
    queries = [
        {
            "qid": f"7:{n}",
            "query_txt": word,
            "query_img_path": None,
            "query_modality": "text",
            "query_src_content": None,
            "pos_cand_list": [f"7:{n}"],
            "neg_cand_list": [],
            "task_id": 1,
        }
        for n, word in enumerate(("fox", "dog"), start=1)
    ]
    for split in ("train", "test"):
        write(tmp_path, f"query/{split}/mbeir_x_task1_{split}.jsonl", queries)
    path = tmp_path / "instructions" / "query_instructions.tsv"
    path.parent.mkdir()
    header = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"
    path.write_text(header + "text\ttext\tx\t7\tFind it.\tFind that.\n")
    return tmp_path


def test_a_folder_is_read_as_it_is(folder: Path) -> None:
    data = load_dataset(folder)
    assert {split: len(many) for split, many in data.examples.items()} == {
        "train": 2,
        "val": 0,
        "test": 2,
    }
    assert data.pools == {1: ["7:1", "7:2", "7:3"]}
    example = data.train[0]
    assert (example.qid, example.positives, example.target) == ("7:1", ("7:1",), Modality.TEXT)
    assert data.instructions[example.modalities] == ["Find it.", "Find that."]


class LookUp:
    """An encoder that knows each text's embedding: one axis for each word."""

    provider = "test"
    dimension = 3

    def __init__(self, words: dict[bytes, int]) -> None:
        """Take the axis of each token sequence."""
        self._words = words

    def encode(self, batch: Batch) -> Float32:
        """One-hot embeddings [B, 3]."""
        result = np.zeros((len(batch), 3), np.float32)
        for row, (ids, mask) in enumerate(zip(batch.input_ids, batch.attention_mask, strict=True)):
            result[row, self._words[ids[mask == 1].tobytes()]] = 1
        return result


@pytest.mark.parametrize(("second", "expected"), [(1, 1.0), (2, 0.5)])
def test_recall_counts_the_queries_whose_answer_comes_first(
    folder: Path, second: int, expected: float
) -> None:
    data, spec = load_dataset(folder), small_spec()

    def key(text: str, instruction: str | None) -> bytes:
        return spec.encode_patches(instruction, text, ()).input_ids.tobytes()

    axes = {key(word, None): axis for axis, word in enumerate(("fox", "dog", "cat"))}
    axes |= {key("fox", "Find it."): 0, key("dog", "Find it."): second}
    recall = evaluate(LookUp(axes), spec, data, "test", k=1)
    assert recall == {1: expected}
    assert mean({1: 1.0, 2: 0.0}) == 0.5


def test_answers_are_looked_for_in_the_data_sets_own_pool_or_in_all(folder: Path) -> None:
    # A second data set of the same task, whose one candidate is what both queries look like.
    row = {"did": "8:1", "txt": "fox", "img_path": None, "modality": "text"}
    write(folder, "cand_pool/local/mbeir_other_task1_test_cand_pool.jsonl", [row])
    query = {"qid": "8:1", "query_txt": "fox", "query_img_path": None, "query_modality": "text"}
    rows = [{**query, "pos_cand_list": ["8:1"]}]
    write(folder, "query/test/mbeir_other_task1_test.jsonl", rows)
    instructions = folder / "instructions" / "query_instructions.tsv"
    instructions.write_text(instructions.read_text() + "text\ttext\tother\t8\tFind it.\n")
    data, spec = load_dataset(folder), small_spec()
    assert data.local_pool(1, "other", "test") == ["8:1"]
    assert data.local_pool(1, "x", "test") == ["7:1", "7:2", "7:3"]
    assert len(data.pools[1]) == 4

    def key(text: str, instruction: str | None) -> bytes:
        return spec.encode_patches(instruction, text, ()).input_ids.tobytes()

    axes = {key(word, None): axis for axis, word in enumerate(("fox", "dog", "cat"))}
    axes |= {key("fox", "Find it."): 0, key("dog", "Find it."): 1}
    local = measure(LookUp(axes), spec, data, "test", k=1)
    assert {(one.dataset, one.k, float(one.recall.mean())) for one in local} == {
        ("other", 1, 1.0), ("x", 1, 1.0),
    }  # fmt: skip
    everywhere = measure(LookUp(axes), spec, data, "test", k=1, pool=Pool.GLOBAL)
    # "fox" stands in both pools: among all, the first by id comes first.
    assert {one.dataset: float(one.recall.mean()) for one in everywhere} == {"other": 0.0, "x": 1.0}
    assert by_task(everywhere) == {1: 0.5}


def test_large_pools_are_ranked_in_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    queries, documents = (draw.normal(size=(count, 4)).astype(np.float32) for count in (7, 30))
    data = load_dataset(folder)
    ids = [str(number) for number in range(30)]
    examples = [replace(data.train[0], positives=(ids[number * 3],)) for number in range(7)]
    rows = {did: row for row, did in enumerate(ids)}
    split = Embedded(examples, queries, {(1, examples[0].name): ids}, rows, documents)
    (whole,) = rank(split, k=9)
    order = np.argsort(-(queries @ documents.T), axis=1)[:, :9]
    assert whole.recall.tolist() == [float(3 * n in row) for n, row in enumerate(order)]
    assert 0 < whole.recall.mean() < 1
    monkeypatch.setattr("puma_edge.evaluate.BLOCK", 3)
    (parts,) = rank(split, k=9)
    assert np.array_equal(parts.recall, whole.recall)
    assert np.array_equal(parts.ndcg, whole.ndcg)


def test_training_answers_may_stand_in_the_pool_for_training(folder: Path) -> None:
    row = {"qid": "7:9", "query_txt": "bird", "pos_cand_list": ["7:9"]}
    queries = folder / "query" / "train" / "mbeir_x_task1_train.jsonl"
    queries.write_text(queries.read_text() + json.dumps(row) + "\n")
    with pytest.raises(PumaError, match=r"1 answers of training queries .* \(7:9, ...\)"):
        load_dataset(folder)
    pool = [{"did": f"7:{n}", "txt": word, "modality": "text"} for n, word in
            ((1, "another fox"), (8, "nobody's"), (9, "a bird"))]  # fmt: skip
    write(folder, "cand_pool/global/mbeir_union_train_cand_pool.jsonl", pool)
    data = load_dataset(folder)
    assert {did: one.text for did, one in data.candidates.items()} == {
        "7:1": "fox", "7:2": "dog", "7:3": "cat", "7:9": "a bird",
    }  # fmt: skip
    assert data.pools == {1: ["7:1", "7:2", "7:3"]}  # nobody looks for it there


def test_a_bad_picture_is_named(folder: Path) -> None:
    load = SourceEncoder(small_spec())
    (folder / "a.jpg").write_bytes(b"garbage")
    for name, says in (("a.jpg", "not an image"), ("b.jpg", "cannot read the file")):
        with pytest.raises(InputError, match=f"{name}: {says}.*take its line out of the data"):
            load(Source(None, (folder / name,)))


@pytest.mark.parametrize("room", [0, 700_000, 2**30])
def test_several_sources_at_once_are_what_each_is_alone(tmp_path: Path, room: int) -> None:
    draw = np.random.default_rng(0)
    for number in range(6):
        pixels = draw.integers(0, 255, (60 + 40 * number, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    sources: list[tuple[Source, str | None]] = [
        (Source("a fox" if number % 2 else None, (tmp_path / f"{number % 6}.png",)), "Find it.")
        for number in range(9)
    ]
    sources.append((Source("words alone"), None))
    alone = [SourceEncoder(small_spec())(*one) for one in sources]
    load = SourceEncoder(small_spec(), room)
    for _ in range(2):
        for one, other in zip(load.many(sources), alone, strict=True):
            assert np.array_equal(one.input_ids, other.input_ids)
            for mine, its in zip(one.images, other.images, strict=True):
                assert np.array_equal(mine.pixels, its.pixels)
        if room == 2**30:  # then nothing is read again
            for path in tmp_path.glob("*.png"):
                path.unlink()


def lose_instructions(folder: Path) -> None:
    """No instructions."""
    (folder / "instructions" / "query_instructions.tsv").unlink()


def ask_without_instruction(folder: Path) -> None:
    """A query of a kind that has none."""
    row = {"qid": "9:1", "query_txt": "fox", "pos_cand_list": ["7:1"]}
    write(folder, "query/val/mbeir_x_task1_val.jsonl", [row])


def leave_the_folder(folder: Path) -> None:
    """An image outside."""
    row = {"did": "7:9", "txt": None, "img_path": "../secret.png", "modality": "image"}
    write(folder, "cand_pool/local/mbeir_y_task1_cand_pool.jsonl", [row])


def no_json(folder: Path) -> None:
    """A line that is no JSON."""
    path = folder / "query" / "train" / "mbeir_x_task1_train.jsonl"
    path.write_text(path.read_text() + "{no json\n")


def no_pool(folder: Path) -> None:
    """Queries of a task without candidates."""
    write(folder, "query/train/mbeir_x_task3_train.jsonl", [{"qid": "7:1", "pos_cand_list": []}])


def no_field(folder: Path) -> None:
    """A query without answers."""
    write(folder, "query/train/mbeir_x_task1_b.jsonl", [{"qid": "7:1"}])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lose_instructions, "query_instructions.tsv"),
        (ask_without_instruction, "no instruction from text to text for data set 9"),
        (leave_the_folder, "leaves the data folder"),
        (no_json, "line 3: not JSON"),
        (no_pool, "no candidate pool for task 3"),
        (no_field, "no 'pos_cand_list'"),
    ],
)
def test_a_wrong_folder_is_one_clear_line(
    folder: Path, harm: Callable[[Path], None], says: str
) -> None:
    harm(folder)
    with pytest.raises(PumaError, match=says):
        load_dataset(folder)


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    with pytest.raises(PumaError, match="holds no M-BEIR data"):
        load_dataset(tmp_path)
    with pytest.raises(PumaError, match="no data folder"):
        load_dataset(tmp_path / "nowhere")
