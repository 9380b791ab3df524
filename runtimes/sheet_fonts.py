"""Fonts and lines of text for the contact sheet, with whatever fonts the machine has."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own font is good-looking but knows ASCII only; these are looked for, in this order, for
# a text with other letters. Pillow searches the system's font folders for them.
_WIDER = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
)


def font_for(text: str, size: int) -> Font:
    """Choose the first font that has every letter of `text`, or the one that lacks fewest."""
    letters = frozenset(text) - frozenset(" \n\u2026")
    return min(_fonts(size), key=lambda font: sum(not _has(font, letter) for letter in letters))


def readable(text: str, font: Font) -> str:
    """Write letters that `font` lacks without their accents, or as a question mark."""
    return "".join(letter if _has(font, letter) else _plain(letter, font) for letter in text)


def wrap(text: str, font: Font, width: float, lines: int) -> list[str]:
    """Break a text into at most `lines` lines of `width` pixels; a cut one ends in an ellipsis."""
    found: list[str] = []
    line = ""
    for word in readable(" ".join(text[:2000].split()), font).split(" "):
        for piece in _pieces(word, font, width):
            longer = f"{line} {piece}" if line else piece
            if font.getlength(longer) <= width:
                line = longer
                continue
            found.append(line)
            line = piece
            if len(found) == lines:
                return [*found[:-1], _cut(f"{found[-1]} {piece}", font, width)]
    return [*found, line] if line else found


def elide(name: str, font: Font, width: float) -> str:
    """Shorten a file name in its middle: its end tells files apart."""
    name = readable(name, font)
    if font.getlength(name) <= width:
        return name
    for kept in range(len(name) - 1, 1, -1):
        short = f"{name[: kept - kept // 2]}\u2026{name[len(name) - kept // 2 :]}"
        if font.getlength(short) <= width:
            return short
    return "\u2026"


def _cut(text: str, font: Font, width: float) -> str:
    while text and font.getlength(text + "\u2026") > width:
        text = text[:-1]
    return text.rstrip(" ,.;:") + "\u2026"


def _pieces(word: str, font: Font, width: float) -> list[str]:
    """Break a word that is wider than a line; scripts without spaces are one such word."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


@lru_cache(maxsize=32)
def _fonts(size: int) -> tuple[Font, ...]:
    found: list[Font] = [ImageFont.load_default(size)]
    names = list(_WIDER)
    plotting = find_spec("matplotlib")  # found, not imported: it brings a font with it
    if plotting is not None and plotting.origin is not None:
        folder = Path(plotting.origin).parent / "mpl-data" / "fonts" / "ttf"
        names.append(str(folder / "DejaVuSans.ttf"))
    for name in names:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(found)


@lru_cache(maxsize=65536)
def _has(font: Font, letter: str) -> bool:
    if letter.isspace() or letter.isascii():
        return letter.isprintable()
    # A font draws every letter it lacks as the same box, this one's included.
    return bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


def _plain(letter: str, font: Font) -> str:
    # Marks that join letters, and what chooses between forms of an emoji, draw nothing themselves.
    if unicodedata.category(letter) in ("Mn", "Me", "Cf", "Cc"):
        return ""
    base = unicodedata.normalize("NFKD", letter)[0]
    return base if base != letter and _has(font, base) else "?"
