"""What a corpus of any size takes: bytes, seconds a query, machine-days, machines and money.

    python benchmarks/scale.py                       # the tables of docs/scale.md
    python benchmarks/scale.py --rows 3e8 --text-seconds 0.004 --machine-memory 512 --price 2.5

Arithmetic alone, on the figures measured in real_shape.json and search.json; every one of them can
be given anew. Nothing is run, and only the standard library is needed.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
DAY = 86400
QDRANTS_RULE = 1.5  # bytes in memory for each byte of vectors, as its documentation counts
FILLED = 0.75  # of a machine's memory
LINKS = 136  # bytes of a row in an HNSW graph of M = 16: 32 neighbours of 4 bytes, and those above
CODES = 16  # dimensions that product quantisation turns into one byte


@dataclass(frozen=True)
class Given:
    """What the arithmetic starts from.

    Attributes:
        rows: of the index.
        dimension: numbers in a row.
        table: bytes of a row's id, path, text and metadata, compressed.
        text, image: seconds of a machine for one, embedded alone.
        int8, binary: seconds of a machine for each row that one query goes through.
        memory: GB of a machine that serves.
        copies: replicas of the served index.
        price: of an hour of a machine that embeds.

    """

    rows: float
    dimension: int
    table: float
    text: float
    image: float
    int8: float
    binary: float
    memory: float
    copies: int
    price: float


@dataclass(frozen=True)
class Size:
    """Bytes of an index, by form."""

    fp32: float
    fp16: float
    int8: float
    binary: float
    table: float


def size(given: Given) -> Size:
    """Bytes of the rows: a number, half of it, one and a scale a row, a bit; and of the table."""
    n, d = given.rows, given.dimension
    return Size(4 * d * n, 2 * d * n, (d + 4) * n, d / 8 * n, given.table * n)


def machine_days(given: Given, seconds: float) -> float:
    """Days of one machine that embeds at so many seconds an item."""
    return given.rows * seconds / DAY


def graph_bytes(given: Given, number: int) -> float:
    """Memory of an HNSW graph over rows of numbers of so many bytes."""
    return given.rows * (number * given.dimension + LINKS)


def machines(given: Given, total: float) -> int:
    """Machines whose memory takes so many bytes, each copied."""
    return math.ceil(given.copies * total / (FILLED * given.memory * 1e9))


def defaults() -> dict[str, float]:
    """Read the measured figures: seconds of a machine."""
    shape = json.loads((HERE / "real_shape.json").read_text(encoding="utf-8"))
    rows = shape["kept_layers_12_of_28"]["rows"]
    median = {(row["case"], row["backend"]): row["median_ms"] for row in rows}
    search = json.loads((HERE / "search.json").read_text(encoding="utf-8"))
    one = {row["backend"]: row["ms"] for row in search["table"] if row["queries"] == 1}
    return {
        "text": median["1 text of 32 tokens", "ort-int8"] / 1e3,
        "image": median["1 image", "ort-int8"] / 1e3,
        "int8": one["puma-edge int8"] / 1e3 / search["rows"],
        "binary": one["puma-edge binary"] / 1e3 / search["rows"],
    }


def spell(value: float, unit: str) -> str:
    """`154 GB`, `1.54 TB`, `0.81 s`: three digits."""
    for name, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)) if unit == "B" else ():
        if value >= factor:
            return f"{_digits(value / factor)} {name}{unit}"
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def tables(many: list[Given]) -> list[list[list[str]]]:
    """The page's tables, a list of rows each."""
    rows = [[_digits(one.rows / 1e6) + "M"] for one in many]
    stored = [["rows", "fp32", "fp16", "int8", "binary", "table"]]
    served = [["rows", "exact int8", "binary", "HNSW fp32", "machines", "HNSW int8"]]
    served[0] += ["machines", "PQ codes", "machines"]
    made = [["rows", "texts", "pictures", "texts, money", "pictures, money"]]
    for name, one in zip(rows, many, strict=True):
        kept = size(one)
        stored.append(name + [spell(value, "B") for value in vars(kept).values()])
        line = [spell(one.rows * one.int8, "s"), spell(one.rows * one.binary, "s")]
        wide = one.rows * 4 * one.dimension * QDRANTS_RULE
        for total in (wide, graph_bytes(one, 1), one.rows * one.dimension / CODES):
            line += [spell(total, "B"), _digits(machines(one, total))]
        served.append(name + line)
        days = [machine_days(one, one.text), machine_days(one, one.image)]
        cost = [_digits(day * 24 * one.price) for day in days]
        made.append(name + [f"{_digits(day)} days" for day in days] + cost)
    return [stored, served, made]


def main() -> None:
    """Print the tables as Markdown."""
    known = defaults()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=float, nargs="*", default=[1e6, 5e6, 1e8, 1e10])
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--table-bytes", type=float, default=100, help="of a row, compressed")
    parser.add_argument("--text-seconds", type=float, default=known["text"])
    parser.add_argument("--image-seconds", type=float, default=known["image"])
    parser.add_argument("--int8-seconds", type=float, default=known["int8"], help="a row")
    parser.add_argument("--binary-seconds", type=float, default=known["binary"])
    parser.add_argument("--machine-memory", type=float, default=256, help="GB of one that serves")
    parser.add_argument("--copies", type=int, default=2, help="replicas of what is served")
    parser.add_argument("--price", type=float, default=0.1, help="of an hour of one that embeds")
    told = parser.parse_args()
    seconds = (told.text_seconds, told.image_seconds, told.int8_seconds, told.binary_seconds)
    serve = (told.machine_memory, told.copies, told.price)
    many = [Given(rows, told.dim, told.table_bytes, *seconds, *serve) for rows in told.rows]
    for table in tables(many):
        head, *lines = ("| " + " | ".join(row) + " |" for row in table)
        print(head, "|" + "---|" * len(table[0]), *lines, "", sep="\n")


if __name__ == "__main__":
    main()
