"""Many queries from a file: one a line, or JSONL with words and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puma_edge.errors import UsageError
from puma_edge.runtimes.searcher import Query

_MOST_BYTES = 64 * 2**20
_KEYS = ("text", "image", "instruction")


def read_queries(path: Path, instruction: str | None = None) -> list[Query]:
    """Read queries; blank lines are passed over.

    Args:
        path: JSONL if it ends in .jsonl: objects with `text`, `image` (a path, relative to the
            file's folder) or both, and `instruction` if it is another one; else words, a query a
            line.
        instruction: for queries without one of their own.

    Raises:
        UsageError: the file cannot be read, holds no query, or a line is none.

    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"--queries {path} is larger than {_MOST_BYTES >> 20} MB; split it")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--queries {path} cannot be read as UTF-8 text: {error}") from None
    lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UsageError(f"--queries {path} holds no query; give one a line")
    if path.suffix.lower() != ".jsonl":
        return [Query(line, None, instruction) for _, line in lines]
    return [_parse(line, f"{path} line {n}", path.parent, instruction) for n, line in lines]


def _parse(line: str, where: str, folder: Path, instruction: str | None) -> Query:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--queries {where} is no JSON ({error})") from None
    good = isinstance(values, dict) and set(values) <= set(_KEYS)
    if not good or any(not isinstance(one, str) for one in values.values() if one is not None):
        raise UsageError(
            f'--queries {where}: expected an object like {{"text": "a fox", "image": "q.jpg"}} '
            f"with no other keys than {', '.join(_KEYS)}"
        )
    text, image, own = (values.get(key) for key in _KEYS)
    if not (text or "").strip() and not image:
        raise UsageError(f"--queries {where} has neither text nor image")
    return Query(text, folder / image if image else None, instruction if own is None else own)
