"""How commands print: names and values, tables, or JSON on stdout; remarks on stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

# A search has to answer within a second, and prints JSON without it.
if TYPE_CHECKING:
    from rich.table import Table

# A terminal obeys these, and a file's name or text may hold them; lines and tabs stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Make what a file says harmless in a terminal."""
    return _CONTROL.sub("\ufffd", text)


def say(text: str) -> None:
    """A remark, on stderr."""
    print(visible(text), file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """`1 item`, `2 items`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def show(values: Mapping[str, Any], as_json: bool) -> None:
    """Names and values."""
    if as_json:
        print_json(values)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
        table.add_row(visible(name), visible(str(value)))
    print_table(table)


def new_table(*headers: str, title: str | None = None) -> Table:
    """A table with these columns, to be filled and printed."""
    from rich.table import Table

    return Table(*headers, title=title, title_justify="left")


def print_table(table: Table) -> None:
    """Print a table on stdout; file names and texts stay as they are, brackets and colons too."""
    from rich.console import Console

    # A pipe has no width: rich would cut the table at 80 columns.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, markup=False, emoji=False).print(table)


def print_json(values: Any) -> None:
    """Print values as JSON on stdout."""
    text = json.dumps(values, indent=2, ensure_ascii=False)
    # JSON escapes the other control characters itself.
    print(re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text))
