"""Settings as they are given: a command's table in `puma-edge.toml`, then its options."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from puma_edge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_FILE = Path("puma-edge.toml")
# The commands that have settings; a table of the file is called as its command.
TABLES = (
    "sample", "train", "merge", "export", "embed", "search", "convert", "push", "bench", "eval",
    "check", "sweep", "info", "doctor", "demo",
)  # fmt: skip

T = TypeVar("T")


def read_config(
    table: str, cls: type[T], path: Path | None = None, default: T | None = None, /, **given: Any
) -> T:
    """Settings of one command: the defaults, then the file's table, then what was given.

    Args:
        table: the command's name, a table of the file.
        cls: its dataclass.
        path: the file; by default `puma-edge.toml` if it is there.
        default: what holds where neither says anything; the class's own defaults if it is None.
        given: values from the command line; None means not given.

    Raises:
        UsageError: the file cannot be read, or has a key that does not exist or a wrong value.
    """
    values = read_table(table, path)
    values |= {name: value for name, value in given.items() if value is not None}
    return _build(cls, values, f"[{table}]", default or cls())


def read_table(table: str, path: Path | None = None) -> dict[str, Any]:
    """One table of the settings' file as it stands there, empty where there is none.

    Args:
        table: a command's name.
        path: the file; by default `puma-edge.toml` if it is there.

    Raises:
        UsageError: the file cannot be read, or has a table that no command reads.
    """
    source = path or CONFIG_FILE
    if path is None and not source.is_file():
        return {}
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{source} cannot be read as settings: {error}") from None
    check_names(tables, TABLES, "table", str(source))
    values = tables.get(table, {})
    if not isinstance(values, dict):
        raise UsageError(f"{source}: {table} = {values!r} given, expected a table [{table}]")
    return values


def check_names(given: Iterable[str], known: Iterable[str], what: str, where: str) -> None:
    """See that every name given is known.

    Raises:
        UsageError: one is not.
    """
    if unknown := sorted(set(given) - set(known)):
        choices = ", ".join(sorted(known))
        raise UsageError(f"unknown {what} {unknown[0]!r} in {where}; expected one of: {choices}")


def _build(cls: type[T], values: dict[str, Any], where: str, default: Any) -> T:
    hints = typing.get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
    check_names(values, known, "setting", where)
    built = {
        name: _convert(hints[name], value, f"{where} {name}", getattr(default, name))
        for name, value in values.items()
    }
    result: T = dataclasses.replace(default, **built)
    return result


def _convert(hint: Any, value: Any, where: str, default: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, where, default)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError:
            choices = ", ".join(str(one.value) for one in hint)
            raise UsageError(f"{where}: {value!r} given, expected one of: {choices}") from None
    if isinstance(hint, UnionType):  # `X | None`: a file has no way to write None
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
        return _convert(hint, value, where, default)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: {value!r} given, expected a list")
        return tuple(_convert(inner, one, where, default) for one in value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        named = "a path in quotes" if hint is Path else hint.__name__
        raise UsageError(f"{where}: {value!r} given, expected {named}")
    return value
