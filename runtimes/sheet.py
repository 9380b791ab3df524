"""A contact sheet: each query on the left, what was found for it beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageDraw, ImageOps

from puma_edge.decoding import decode
from puma_edge.errors import InputError, UsageError
from puma_edge.prompts import Modality
from puma_edge.runtimes.files import disk_errors, write_bytes
from puma_edge.runtimes.parts import locate
from puma_edge.runtimes.searcher import Hit, Query
from puma_edge.runtimes.sheet_fonts import elide, font_for, wrap

# Pixels of the finished sheet; everything is drawn twice as large and scaled down, because Pillow
# draws round corners without smoothing.
SCALE = 2
MARGIN, GAP, PAD, ROUND = 36, 16, 12, 12
TITLE_HEIGHT = 84
QUERY_WIDTH, HIT_WIDTH, CARD_HEIGHT = 248, 196, 262
MAX_HITS, MAX_ROWS = 12, 60

PAPER, CARD, EDGE = "#f4f5f7", "#ffffff", "#e2e5ea"
INK, GREY, ACCENT, TINT, WELL = "#1d2430", "#6c7482", "#3b5bdb", "#eaeefc", "#f8f9fb"


@dataclass(frozen=True)
class Card:
    """One thing on the sheet.

    Attributes:
        text: its text, None for none.
        image: its picture, None for none; one that cannot be read is drawn as missing.
        name: what stands below it.
        score: similarity to the query, None for the query itself.

    """

    text: str | None = None
    image: Path | None = None
    name: str = ""
    score: float | None = None


@dataclass(frozen=True)
class SheetRow:
    """A query and what was found for it, best first."""

    query: Card
    hits: tuple[Card, ...]


def sheet_row(query: Query, hits: Sequence[Hit], corpus: Path) -> SheetRow:
    """Make a row of the sheet from a query and its hits.

    Args:
        query: what was looked for.
        hits: what was found.
        corpus: the folder that the hits' paths are relative to.

    """
    asked = Card(query.text, query.image, "" if query.image is None else query.image.name)
    cards = [
        Card(
            text=hit.text or None,
            image=None if hit.modality is Modality.TEXT else locate(corpus, hit.path),
            name=PurePosixPath(hit.id).name,
            score=hit.score,
        )
        for hit in hits
    ]
    return SheetRow(asked, tuple(cards))


def sheet_size(rows: Sequence[SheetRow]) -> tuple[int, int]:
    """Width and height in pixels of the sheet for these rows."""
    columns = max(1, max(len(row.hits[:MAX_HITS]) for row in rows))
    width = 2 * MARGIN + QUERY_WIDTH + GAP // 2 + columns * (HIT_WIDTH + GAP)
    count = len(rows[:MAX_ROWS])
    return width, TITLE_HEIGHT + count * (CARD_HEIGHT + GAP) + MARGIN - GAP


def draw_sheet(queries: Sequence[SheetRow], out: Path, title: str) -> None:
    """Write the contact sheet as a PNG.

    Args:
        queries: at least one row; the first 60 are drawn, with 12 hits each.
        out: the file to write.
        title: the heading; lines after the first are set small.

    Raises:
        UsageError: there is no row, or `out` is no .png.
        PumaError: the file cannot be written.

    """
    if out.suffix.lower() != ".png":
        raise UsageError(f"--sheet {out} does not end in .png; name it like hits.png")
    if not queries:
        raise UsageError("a contact sheet needs at least one query")
    size = sheet_size(queries)
    sheet = Image.new("RGB", size, PAPER)
    sheet.paste(_title(title, size[0]), (0, 0))
    for number, row in enumerate(queries[:MAX_ROWS]):
        top = TITLE_HEIGHT + number * (CARD_HEIGHT + GAP)
        sheet.paste(_row(row, size[0]), (0, top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, buffer.getvalue())


class _Canvas:
    """A strip of the sheet, drawn at twice its size; all measures are those of the sheet."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def finish(self) -> Image.Image:
        width, height = self.image.size
        return self.image.resize((width // SCALE, height // SCALE), Image.Resampling.BOX)

    def box(self, at: tuple[int, int, int, int], fill: str, edge: str | None = None) -> None:
        """Draw a card at (left, top, width, height)."""
        left, top, width, height = (SCALE * value for value in at)
        corner = (left, top, left + width - 1, top + height - 1)
        self.draw.rounded_rectangle(corner, SCALE * ROUND, fill, edge, width=SCALE)

    def picture(self, picture: Image.Image, at: tuple[int, int, int, int]) -> None:
        """Fit a picture into (left, top, width, height), round its corners."""
        left, top, width, height = (SCALE * value for value in at)
        # Small pictures are enlarged too, but never more than four times.
        room = (min(width, 4 * SCALE * picture.width), min(height, 4 * SCALE * picture.height))
        fitted = ImageOps.contain(picture, room, Image.Resampling.LANCZOS)
        mask = Image.new("L", fitted.size, 0)
        edge = (0, 0, fitted.width - 1, fitted.height - 1)
        ImageDraw.Draw(mask).rounded_rectangle(edge, SCALE * ROUND // 2, 255)
        place = (left + (width - fitted.width) // 2, top + (height - fitted.height) // 2)
        self.image.paste(fitted, place, mask)

    def text(self, text: str, at: tuple[int, int, int, int], size: int, ink: str) -> int:
        """Set a text in (left, top, width, lines); returns the height it took."""
        left, top, width, lines = at
        font = font_for(text, SCALE * size)
        step = round(size * 1.35)
        pieces = wrap(text, font, SCALE * width, lines)
        for number, piece in enumerate(pieces):
            place = (SCALE * left, SCALE * (top + number * step + size))
            self.draw.text(place, piece, ink, font, anchor="ls")
        return step * len(pieces)

    def label(self, text: str, at: tuple[int, int], size: int, ink: str, anchor: str) -> None:
        """Set one short line at its base point."""
        place = (SCALE * at[0], SCALE * at[1])
        self.draw.text(place, text, ink, font_for(text, SCALE * size), anchor=anchor)

    def name(self, name: str, at: tuple[int, int, int], size: int) -> None:
        """Set a file name at (left, base, width)."""
        left, base, width = at
        font = font_for(name, SCALE * size)
        text = elide(name, font, SCALE * width)
        self.draw.text((SCALE * left, SCALE * base), text, GREY, font, anchor="ls")


def _title(title: str, width: int) -> Image.Image:
    canvas = _Canvas(width, TITLE_HEIGHT)
    first, _, rest = title.partition("\n")
    room = width - 2 * MARGIN
    canvas.text(first, (MARGIN, 22 if rest else 30, room, 1), 22, INK)
    canvas.text(rest, (MARGIN, 52, room, 1), 13, GREY)
    return canvas.finish()


def _row(row: SheetRow, width: int) -> Image.Image:
    canvas = _Canvas(width, CARD_HEIGHT)
    _query(canvas, row.query)
    left = MARGIN + QUERY_WIDTH + GAP + GAP // 2
    for rank, card in enumerate(row.hits[:MAX_HITS], 1):
        _hit(canvas, left, card, rank)
        left += HIT_WIDTH + GAP
    return canvas.finish()


def _query(canvas: _Canvas, card: Card) -> None:
    canvas.box((MARGIN, 0, QUERY_WIDTH, CARD_HEIGHT), TINT, "#d3dbf8")
    left, room = MARGIN + PAD + 4, QUERY_WIDTH - 2 * PAD - 8
    canvas.label("QUERY", (left, 28), 11, ACCENT, "ls")
    text = (card.text or "").strip()
    if card.image is None:
        canvas.text(text, (left, 42, room, 6), 24, INK)
        return
    height = CARD_HEIGHT - 40 - PAD - (52 if text else 24)
    _thumbnail(canvas, card.image, (left, 40, room, height))
    if text:
        canvas.text(text, (left, 40 + height + 8, room, 2), 16, INK)
    else:
        canvas.name(card.name, (left, CARD_HEIGHT - PAD - 4, room), 12)


def _hit(canvas: _Canvas, left: int, card: Card, rank: int) -> None:
    canvas.box((left, 0, HIT_WIDTH, CARD_HEIGHT), CARD, EDGE)
    room = HIT_WIDTH - 2 * PAD
    text = (card.text or "").strip()
    if card.image is not None:
        caption = 36 if text else 0
        height = CARD_HEIGHT - PAD - 52 - caption
        _thumbnail(canvas, card.image, (left + PAD, PAD, room, height))
        canvas.text(text, (left + PAD, PAD + height + 4, room, 2), 12, INK)
    else:
        height = CARD_HEIGHT - PAD - 52
        canvas.box((left + PAD, PAD, room, height), WELL)
        canvas.text(text or "(no text)", (left + 2 * PAD, PAD + 10, room - 2 * PAD, 9), 14, INK)
    line = CARD_HEIGHT - 31
    canvas.label(f"{rank}", (left + PAD, line), 15, ACCENT, "ls")
    if card.score is not None:
        canvas.label(f"{card.score:.3f}", (left + HIT_WIDTH - PAD, line), 14, INK, "rs")
    canvas.name(card.name, (left + PAD, CARD_HEIGHT - 12, room), 11)


def _thumbnail(canvas: _Canvas, path: Path, at: tuple[int, int, int, int]) -> None:
    try:
        picture = Image.fromarray(decode(path))
    except InputError:
        canvas.box(at, WELL)
        center = (at[0] + at[2] // 2, at[1] + at[3] // 2)
        canvas.label("picture not found", center, 12, GREY, "mm")
        return
    canvas.picture(picture, at)
