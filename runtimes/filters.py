"""Which rows of an index may be found: by modality, path, or what their metadata says."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puma_edge.errors import PumaError, UsageError
from puma_edge.prompts import Modality
from puma_edge.runtimes.records import Table

_METADATA = "metadata"
_COLUMNS = ("id", "path", "modality", "hash", "text")


@dataclass(frozen=True)
class Filters:
    """What a row must fulfil, all of it.

    Attributes:
        modalities: it has one of these; none for any.
        path: a pattern such as `photos/*.jpg`, which its whole path matches; `*` goes through
            folders too. None for any.
        where: (column, value): the column, or key of the metadata, has that value, or holds it if
            it is a list. Numbers and true, false, null are written as in JSON.

    """

    modalities: tuple[Modality, ...] = ()
    path: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.modalities or self.path is not None or self.where)

    def rows(self, table: Table, count: int) -> NDArray[np.bool_]:
        """Say of each of the table's rows whether it fulfils them: [count].

        Raises:
            UsageError: no row has a key that is asked for.
            PumaError: the table is damaged.

        """
        allowed = np.ones(count, bool)
        if self.modalities:
            wanted = {one.value for one in self.modalities}
            allowed &= _each(table.column("modality"), wanted.__contains__)
        if self.path is not None:
            pattern = re.compile(fnmatch.translate(self.path))
            allowed &= _each(table.column("path"), lambda path: pattern.match(path) is not None)
        keys = [one for one in self.where if one[0] not in _COLUMNS]
        for column, value in set(self.where) - set(keys):
            allowed &= _each(table.column(column), value.__eq__)
        return _by_metadata(table, keys, allowed) if keys else allowed


def parse_where(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Take `column=value` apart.

    Raises:
        UsageError: there is no `=`.

    """
    pairs = []
    for one in given:
        column, sign, value = one.partition("=")
        if not sign or not column:
            raise UsageError(f"--where {one!r}: give column=value, like --where lang=en")
        pairs.append((column, value))
    return tuple(pairs)


def _each(values: Sequence[str], test: Callable[[str], bool]) -> NDArray[np.bool_]:
    return np.fromiter((test(value) for value in values), bool, len(values))


def _by_metadata(
    table: Table, wanted: Sequence[tuple[str, str]], allowed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    missing = {key for key, _ in wanted}
    known: set[str] = set()
    result = np.zeros(len(allowed), bool)
    for row, text in enumerate(table.column(_METADATA)):
        if not text:
            continue
        values = _read(table, text)
        known.update(values)
        if allowed[row]:
            result[row] = all(key in values and _is(values[key], value) for key, value in wanted)
    if absent := sorted(missing - known):
        have = ", ".join([*_COLUMNS, *sorted(known)])
        raise UsageError(f"--where {absent[0]}=...: no row has {absent[0]!r}; there are: {have}")
    return result


def _read(table: Table, text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PumaError(f"the metadata in {table.path} is damaged ({error})") from None
    return values if isinstance(values, dict) else {}


def _is(found: Any, value: str) -> bool:
    every = found if isinstance(found, list) else [found]
    return any(value == (one if isinstance(one, str) else json.dumps(one)) for one in every)
