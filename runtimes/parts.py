"""The parts of a document, read from disk: a text, an image's bytes, one line of a JSONL file."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puma_edge.decoding import MAX_FILE_BYTES
from puma_edge.errors import InputError

MAX_TEXT_BYTES = 16 * 2**20
MAX_LINE_BYTES = 4 * 2**20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)

# Where a document stands in a file of many: offset and bytes of a line, or row group and row.
Span = tuple[int, int]


@dataclass(frozen=True)
class Line:
    """One line of a JSONL file, or one row of a table.

    Attributes:
        text: the text, stripped, None where there is none.
        image: path of the image as written, relative to the file; None where there is none.
        id: the id as written, None where there is none.
        metadata: every other key, as JSON; empty where there is none.

    """

    text: str | None
    image: str | None
    id: str | None
    metadata: str


def content_hash(text: str | None, image: bytes | None) -> str:
    """BLAKE2b of a document's parts, in hexadecimal; equal contents have equal hashes."""
    digest = hashlib.blake2b(digest_size=16)
    # What has no text and what has an empty one, or a text that spells an image, must differ.
    for tag, part in ((b"t", None if text is None else text.encode()), (b"i", image)):
        if part is not None:
            digest.update(tag + len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def read_bytes(path: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        InputError: it cannot be read, is no regular file, is empty or too large.

    """
    try:
        info = os.stat(path)
        # A pipe called x.txt would block for ever when opened.
        if not stat.S_ISREG(info.st_mode):
            raise InputError("not a regular file")
        if info.st_size > limit:
            raise InputError(f"{info.st_size} bytes are over the limit of {limit}; split the file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a NUL or a lone surrogate in a name that a JSONL line gave
        raise InputError(f"cannot be read ({error})") from None
    if not data:
        raise InputError("the file is empty")
    if len(data) > limit:
        raise InputError(f"over the limit of {limit} bytes; split the file")
    return data


def read_text(path: str) -> str:
    """Read a text in UTF-8, or in UTF-16 or UTF-32 with its byte order mark; stripped.

    Raises:
        InputError: the file cannot be read, is too large, binary, in another encoding, or empty.

    """
    data = read_bytes(path, MAX_TEXT_BYTES)
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    if data.startswith(_UTF32):  # in little-endian order it begins with UTF-16's mark
        encoding = "utf-32"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"text in no known encoding (byte {error.start}): expected UTF-8"
        ) from None
    if "\0" in text:
        raise InputError("holds NUL bytes, so it is no text: expected UTF-8")
    text = text.strip()
    if not text:
        raise InputError("the text is empty")
    return text


def read_lines(path: str) -> Iterator[tuple[int, int, bytes | None]]:
    """List number (from 1), offset and bytes of each line not blank; None for one too long.

    Raises:
        InputError: the file cannot be read, is not UTF-8 by its first bytes, or has no lines.

    """
    found = False
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError("not a regular file")
        with open(path, "rb") as file:
            number = offset = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number, start, whole = number + 1, offset, len(line) <= MAX_LINE_BYTES
                if not offset and line.startswith(_UTF16):
                    raise InputError("JSONL in UTF-16: expected UTF-8")
                offset += len(line)
                while not whole and not line.endswith(b"\n"):
                    if not (line := file.readline(MAX_LINE_BYTES)):
                        break
                    offset += len(line)
                if not whole or line.removeprefix(codecs.BOM_UTF8).strip():
                    found = True
                    yield number, start, line if whole else None
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})") from None
    if not found:
        raise InputError("the file has no lines")


def read_span(path: str, start: int, size: int) -> bytes:
    """Read one line found by `read_lines`.

    Raises:
        InputError: they are not there any more.

    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(size)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})") from None


def read_entries(path: str) -> Iterator[tuple[int, Span, Line | InputError]]:
    """List number (from 1), offset and length, and content of each line of a JSONL file.

    Raises:
        InputError: see `read_lines`.

    """
    for number, start, data in read_lines(path):
        if data is None:
            yield number, (start, 0), InputError("the line is over the limit of 4 MiB; shorten it")
            continue
        try:
            line: Line | InputError = parse_line(data)
        except InputError as error:
            line = error
        yield number, (start, len(data)), line


def parse_line(data: bytes) -> Line:
    """Read one line: an object with text, image or both, an optional id, and any other keys.

    Raises:
        InputError: the line is none of that.

    """
    return make_line(_parse_object(data))


def make_line(values: dict[str, Any]) -> Line:
    """Check what a line or a row says; it is taken apart.

    Raises:
        InputError: it has no text and no image, or something of another type.

    """
    text, image, name = (values.pop(key, None) for key in ("text", "image", "id"))
    for key, value in (("text", text), ("image", image)):
        if value is not None and not isinstance(value, str):
            raise InputError(f'"{key}" is {type(value).__name__}, expected a string')
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise InputError(f'"id" is {type(name).__name__}, expected a string or a whole number')
    name = None if name is None else str(name)
    try:
        for value in (text, image, name, json.dumps(values, ensure_ascii=False, allow_nan=False)):
            (value or "").encode()
        metadata = json.dumps(values, sort_keys=True) if values else ""
    except UnicodeEncodeError:
        raise InputError("holds half a surrogate pair: expected UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}): expected one object per line") from None
    text = (text or "").strip() or None
    if max(len(text or ""), len(metadata)) > MAX_LINE_BYTES:
        raise InputError("the text or its metadata are over the limit of 4 MiB; shorten them")
    if text is None and not image:
        raise InputError('has neither "text" nor "image"')
    if "\0" in (text or ""):
        raise InputError("holds NUL characters, so it is no text")
    return Line(text, image or None, name, metadata)


def _parse_object(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(
            f"text in no known encoding (byte {error.start}): expected UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}): expected one object per line") from None
    if not isinstance(values, dict):
        raise InputError(f"holds {type(values).__name__}: expected one JSON object per line")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not in JSON")


def printable(name: str) -> str:
    r"""Write a file name as text; bytes that are no UTF-8 become \xNN, as `locate` reads them."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def locate(root: Path, path: str) -> Path:
    """Find the file in the corpus folder `root` whose printable path is `path`."""
    plain = root / path
    if "\\x" not in path or plain.exists():
        return plain
    raw = re.sub(
        rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), path.encode()
    )
    return root / os.fsdecode(raw)
