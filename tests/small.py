"""A small data set in M-BEIR's format, taken from the emoji set: minutes become seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from puma_edge.data import Dataset, Example, Source
from puma_edge.prompts import Modality

CANDIDATES = 48  # of each pool
QUERIES = {"train": 24, "val": 10, "test": 10}  # of each task


def write_small(data: Dataset, folder: Path) -> Path:
    """Write the first answerable queries of each task and pools of their answers and a few more."""
    for task in data.tasks:
        chosen = {
            split: [one for one in data.examples[split] if one.task == task][:count]
            for split, count in QUERIES.items()
        }
        wanted = [did for many in chosen.values() for one in many for did in one.positives]
        pool = list(dict.fromkeys([*wanted, *data.pools[task][:CANDIDATES]]))
        rows = [_candidate(data, folder, did) for did in pool]
        _write(folder / "cand_pool" / "local" / f"mbeir_small_task{task}_cand_pool.jsonl", rows)
        for split, many in chosen.items():
            rows = [_query(data, folder, one) for one in many]
            _write(folder / "query" / split / f"mbeir_small_task{task}_{split}.jsonl", rows)
    shutil.copytree(data.folder / "instructions", folder / "instructions")
    return folder


def _candidate(data: Dataset, folder: Path, did: str) -> dict[str, Any]:
    source = data.candidates[did]
    modality = Modality.of(has_text=bool(source.text), has_image=bool(source.images))
    image = _copy(data, folder, source)
    return {"did": did, "txt": source.text, "img_path": image, "modality": modality.value}


def _query(data: Dataset, folder: Path, one: Example) -> dict[str, Any]:
    return {
        "qid": one.qid,
        "query_txt": one.query.text,
        "query_img_path": _copy(data, folder, one.query),
        "query_modality": one.query.modality.value,
        "pos_cand_list": list(one.positives),
        "neg_cand_list": [],
    }


def _copy(data: Dataset, folder: Path, source: Source) -> str | None:
    if not source.images:
        return None
    name = source.images[0].relative_to(data.folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.images[0], folder / name)
    return str(name)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
