"""Data sets: a folder in M-BEIR's format, or JSON lines of pairs."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from puma_edge.decoding import decode
from puma_edge.errors import InputError, PumaError
from puma_edge.images import Patches, patchify
from puma_edge.inputs import Encoded, InputSpec
from puma_edge.prompts import Modality

SPLITS = ("train", "val", "test")
# The eight tasks of M-BEIR by number; it has no task 5 (image to image and text).
TASK_NAMES = {
    0: "t->i", 1: "t->t", 2: "t->(i,t)", 3: "i->t",
    4: "i->i", 6: "(i,t)->t", 7: "(i,t)->i", 8: "(i,t)->(i,t)",
}  # fmt: skip
FILE_NAME = re.compile(
    r"(?:mbeir_)?(?P<name>.*)_task(?P<task>\d+)_(?P<split>[a-z]+(?=_cand_pool))?"
)


@dataclass(frozen=True)
class Source:
    """A query's or a candidate's parts, images still on disk.

    Attributes:
        text: its text, if any.
        images: its image files, none or one in M-BEIR.
    """

    text: str | None
    images: tuple[Path, ...] = ()

    @property
    def modality(self) -> Modality:
        """Text, image, or both."""
        return Modality.of(has_text=bool(self.text), has_image=bool(self.images))


@dataclass(frozen=True)
class Example:
    """A query with its answers.

    Attributes:
        qid: the query's id.
        task: M-BEIR's task number.
        dataset: the data set's number, the first part of the id.
        query: what is asked.
        positives: ids of the right candidates, at least one.
        target: the candidates' modality.
        name: the data set's name, from the file's.
    """

    qid: str
    task: int
    dataset: str
    query: Source
    positives: tuple[str, ...]
    target: Modality
    name: str = ""

    @property
    def modalities(self) -> tuple[str, str, str]:
        """What its instructions are filed under: query and candidate modality, data set."""
        return self.query.modality.value, self.target.value, self.dataset


@dataclass(frozen=True)
class Dataset:
    """An M-BEIR folder.

    Attributes:
        folder: where it lies.
        examples: split -> queries of all tasks.
        pools: task -> ids of every candidate of its local pool.
        candidates: id -> candidate, of all pools, and of training queries' answers.
        instructions: (query modality, candidate modality, data set) -> prompts.
        local_pools: (task, data set's name, split) -> ids of that file's candidates; the split is
            empty for a pool that serves all.
    """

    folder: Path
    examples: dict[str, list[Example]]
    pools: dict[int, list[str]]
    candidates: dict[str, Source]
    instructions: dict[tuple[str, str, str], list[str]]
    local_pools: dict[tuple[int, str, str], list[str]] = field(default_factory=dict)

    def local_pool(self, task: int, name: str, split: str) -> list[str]:
        """The candidates among which a data set's queries of a task look for their answers."""
        for one in (split, ""):
            if (task, name, one) in self.local_pools:
                return self.local_pools[task, name, one]
        return self.pools[task]

    @property
    def train(self) -> list[Example]:
        """The training queries."""
        return self.examples["train"]

    @cached_property
    def tasks(self) -> list[int]:
        """The numbers of the tasks that have a pool."""
        return sorted(self.pools)


def load_dataset(folder: Path) -> Dataset:
    """Read a folder in M-BEIR's format.

    Raises:
        PumaError: no such folder, no queries in it, or a line that is not M-BEIR's.
    """
    if not folder.is_dir():
        raise PumaError(f"no data folder at {folder}; give a folder in M-BEIR's format with --data")
    local_pools: dict[tuple[int, str, str], list[str]] = {}
    candidates: dict[str, Source] = {}
    targets: dict[int, Modality] = {}
    for path in sorted((folder / "cand_pool" / "local").glob("*_cand_pool.jsonl")):
        name, task, split = _file_name(path)
        pool = local_pools.setdefault((task, name, split), [])
        for row in read_jsonl(path):
            did = _field(row, "did", path)
            candidates.setdefault(did, _source(folder, row, "txt", "img_path", path))
            pool.append(did)
            targets[task] = Modality(row["modality"])
    examples = {
        split: [
            example
            for path in sorted((folder / "query" / split).glob("*.jsonl"))
            for example in _examples(folder, path, targets)
        ]
        for split in SPLITS
    }
    pools: dict[int, list[str]] = {}
    for (task, _, _), dids in local_pools.items():
        pools[task] = list(dict.fromkeys([*pools.get(task, []), *dids]))
    if not pools or not examples["train"] + examples["val"] + examples["test"]:
        raise PumaError(
            f"{folder} holds no M-BEIR data; expected query/<split>/*_task<n>_*.jsonl and "
            "cand_pool/local/*_task<n>_cand_pool.jsonl"
        )
    _add_training_answers(folder, examples["train"], candidates)
    instructions = _instructions(folder)
    for one in (one for split in SPLITS for one in examples[split]):
        if not instructions.get(one.modalities):
            asked, found, number = one.modalities
            raise PumaError(
                f"{folder}/instructions/query_instructions.tsv has no instruction from {asked} to "
                f"{found} for data set {number} (query {one.qid}); add its line"
            )
    return Dataset(folder, examples, pools, candidates, instructions, local_pools)


def _add_training_answers(
    folder: Path, train: list[Example], candidates: dict[str, Source]
) -> None:
    """Find the training answers that no local pool has in M-BEIR's pool for training.

    Raises:
        PumaError: some are nowhere.
    """
    wanted = {did for one in train for did in one.positives} - candidates.keys()
    for path in sorted((folder / "cand_pool" / "global").glob("*train_cand_pool.jsonl")):
        for row in read_jsonl(path) if wanted else ():
            if row.get("did") in wanted:
                did = row["did"]
                candidates[did] = _source(folder, row, "txt", "img_path", path)
                wanted.discard(did)
    if wanted:
        raise PumaError(
            f"{len(wanted)} answers of training queries are in no candidate pool of {folder} "
            f"({min(wanted)}, ...); expected them in cand_pool/local/ or in "
            "cand_pool/global/*train_cand_pool.jsonl"
        )


def _file_name(path: Path) -> tuple[str, int, str]:
    """Data set, task and split that a file's name tells; a pool for all splits names none."""
    match = FILE_NAME.match(path.name)
    if match is None:
        raise PumaError(f"{path} names no task; expected *_task<n>_* in the file name")
    return match["name"], int(match["task"]), match["split"] or ""


def _examples(folder: Path, path: Path, targets: dict[int, Modality]) -> Iterator[Example]:
    name, task, _ = _file_name(path)
    if task not in targets:
        raise PumaError(f"{path}: there is no candidate pool for task {task} in {folder}")
    for row in read_jsonl(path):
        qid = _field(row, "qid", path)
        positives = tuple(_field(row, "pos_cand_list", path))
        if not positives:
            continue
        query = _source(folder, row, "query_txt", "query_img_path", path)
        yield Example(qid, task, qid.split(":")[0], query, positives, targets[task], name)


def _field(row: dict[str, Any], name: str, path: Path) -> Any:
    if name not in row:
        raise PumaError(f"{path}: a line has no {name!r}; expected M-BEIR's fields")
    return row[name]


def _source(folder: Path, row: dict[str, Any], text: str, image: str, path: Path) -> Source:
    name = row.get(image)
    if not name:
        return Source(row.get(text) or None)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise PumaError(f"{path}: image path {name!r} leaves the data folder")
    return Source(row.get(text) or None, (folder / name,))


def _instructions(folder: Path) -> dict[tuple[str, str, str], list[str]]:
    path = folder / "instructions" / "query_instructions.tsv"
    if not path.is_file():
        raise PumaError(f"{folder} has no instructions/query_instructions.tsv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return {(row[0], row[1], row[3]): [text for text in row[4:] if text] for row in rows if row}


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file.

    Raises:
        PumaError: a line is no JSON object; names the line.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise PumaError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise PumaError(f"{path}, line {number}: expected a JSON object")
            yield row


class SourceEncoder:
    """Makes sources ready for an encoder; cuts each image once while there is room to keep it."""

    def __init__(self, spec: InputSpec, room: int = 2**30) -> None:
        """Keep at most `room` bytes of patches."""
        self._spec = spec
        self._room = room
        self._known: dict[Path, Patches] = {}

    def __call__(self, source: Source, instruction: str | None = None) -> Encoded:
        """Tokens, positions and patches of one source.

        Raises:
            InputError: an image cannot be read.
        """
        return self.many([(source, instruction)])[0]

    def many(self, sources: Sequence[tuple[Source, str | None]]) -> list[Encoded]:
        """Those of several, their images decoded on all of this process's cores.

        Raises:
            InputError: an image cannot be read.
        """
        paths = {image: None for source, _ in sources for image in source.images}
        patches = {path: self._known[path] for path in paths if path in self._known}
        if new := [path for path in paths if path not in patches]:
            # Threads, as in the feeder: decoding and resizing release the interpreter's lock.
            with ThreadPoolExecutor(min(len(new), len(os.sched_getaffinity(0)))) as pool:
                patches.update(zip(new, pool.map(self._cut, new), strict=True))
        for path in new:
            if patches[path].pixels.nbytes <= self._room:
                self._room -= patches[path].pixels.nbytes
                self._known[path] = patches[path]
        return [
            self._spec.encode_patches(
                instruction, source.text, tuple(patches[path] for path in source.images)
            )
            for source, instruction in sources
        ]

    def _cut(self, path: Path) -> Patches:
        try:
            return patchify(decode(path), self._spec.limits)
        except InputError as error:
            raise InputError(
                f"{path}: {error}; repair it, or take its line out of the data"
            ) from None
