"""The contact sheet is drawn whatever the queries and hits are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from puma_edge.errors import PumaError, UsageError
from puma_edge.prompts import Modality
from puma_edge.runtimes import sheet_fonts
from puma_edge.runtimes.searcher import Hit, Query
from puma_edge.runtimes.sheet import Card, SheetRow, draw_sheet, sheet_row, sheet_size
from puma_edge.runtimes.sheet_fonts import elide, font_for, readable, wrap
from tests.edge import encoded, fill, picture


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    files = {f"p{n}.png": encoded(picture(n, 50 + 80 * n, 200 - 50 * n)) for n in range(3)}
    return fill(tmp_path / "corpus", {**files, "broken.png": b"x"})


def test_a_sheet_of_every_kind_of_card(tmp_path: Path, corpus: Path) -> None:
    hits = (
        Card(image=corpus / "p0.png", name="p0.png", score=0.9),
        Card("a text " * 60, name="notes.txt", score=-0.1),
        Card("l'été à Łódź", corpus / "p1.png", "a/very/long/" + "name" * 20 + ".png", 0.5),
        Card(image=corpus / "broken.png", name="broken.png", score=float("-inf")),
        Card(name="nothing"),
    )
    rows = [
        SheetRow(Card("a fox"), hits),
        SheetRow(Card(image=corpus / "p2.png", name="p2.png"), hits[:1]),
        SheetRow(Card("x" * 5000 + "\n\ttabs", corpus / "gone.png"), ()),
    ]
    out = tmp_path / "new" / "hits.png"
    draw_sheet(rows, out, "Title\nmodel, precision, counts")
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.size == sheet_size(rows)
        pixels = np.asarray(image.convert("RGB"))
    left = 36 + 248 + 24
    card = pixels[84 : 84 + 262, left : left + 196]
    assert (card.reshape(-1, 3).std(0) > 5).all()
    # Beside a row with fewer hits there is plain paper.
    assert (
        np.ptp(pixels[84 + 2 * 278 : 84 + 2 * 278 + 262, left:-1].reshape(-1, 3), axis=0).max() == 0
    )


def test_the_same_sheet_has_the_same_bytes(tmp_path: Path, corpus: Path) -> None:
    rows = [SheetRow(Card("a"), (Card(image=corpus / "p0.png", name="p0", score=1.0),))]
    draw_sheet(rows, tmp_path / "a.png", "t")
    draw_sheet(rows, tmp_path / "b.png", "t")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_rows_come_from_hits(corpus: Path) -> None:
    hits = [
        Hit(1, 0.9, 4, "a/p0.png", "p0.png", Modality.IMAGE, ""),
        Hit(2, 0.8, 5, "n.txt", "n.txt", Modality.TEXT, "words"),
        Hit(3, 0.7, 6, "own id", "p1.png", Modality.IMAGE_TEXT, "caption"),
    ]
    row = sheet_row(Query("q", corpus / "p2.png"), hits, corpus)
    assert row.query == Card("q", corpus / "p2.png", "p2.png")
    assert row.hits == (
        Card(None, corpus / "p0.png", "p0.png", 0.9),
        Card("words", None, "n.txt", 0.8),
        Card("caption", corpus / "p1.png", "own id", 0.7),
    )


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png"):
        draw_sheet([SheetRow(Card("a"), ())], tmp_path / "a.jpg", "t")
    with pytest.raises(UsageError, match="at least one"):
        draw_sheet([], tmp_path / "a.png", "t")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PumaError, match="cannot write"):
        draw_sheet([SheetRow(Card("a"), ())], tmp_path / "file" / "a.png", "t")


def test_lines_fit_their_width() -> None:
    for text in ("words and more words " * 9, "x" * 300, "\u72d0\u72f8" * 80, "", "a\n\nb"):
        font = font_for(text, 24)
        lines = wrap(text, font, 150, 4)
        assert len(lines) <= 4
        assert all(font.getlength(line) <= 150 for line in lines)
    short = elide("a_rather_long_file_name.png", font_for("a", 20), 120)
    assert font_for(short, 20).getlength(short) <= 120
    assert short.endswith(".png")


def test_a_machine_with_no_fonts_drops_accents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet_fonts, "_WIDER", ())
    monkeypatch.setattr(sheet_fonts, "find_spec", lambda name: None)
    sheet_fonts._fonts.cache_clear()
    try:
        assert readable("l'été \u72d0", font_for("l'été", 20)) == "l'ete ?"
    finally:
        sheet_fonts._fonts.cache_clear()
