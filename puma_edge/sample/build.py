"""Build the shipped sample from two Debian packages: `emoji.json.gz` and `glyphs.zip`.

    apt-get download fonts-noto-color-emoji unicode-cldr-core
    for package in *.deb; do dpkg -x "$package" root; done
    python -m puma_edge.sample.build root puma_edge/sample

Needs fonttools and a Pillow with raqm (its wheels have it). The font is under the SIL Open Font
License, CLDR under the Unicode License; both texts are copied beside the data.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LANGUAGES = ("en", "de", "fr", "es")
TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
JOINER, EMOJI_STYLE = "\u200d", "\ufe0f"
GLYPH_EDGE = 128  # pixels, of the square picture that ships
STRIKE = 109  # the only size of the font's bitmaps, in pixels per em
TONED_BASES = 60  # gestures and people that also come in five skin tones; the rest would not fit

CLDR = "usr/share/unicode/cldr/common"
FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
LICENCES = {
    "LICENSE-fonts-noto-color-emoji.txt": "usr/share/doc/fonts-noto-color-emoji/copyright",
    "LICENSE-unicode-cldr.txt": "usr/share/doc/unicode-cldr-core/copyright",
}


def read_annotations(root: Path, language: str) -> dict[str, list[str]]:
    """Emoji -> its CLDR short name, then its keywords, in one language."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for folder in ("annotations", "annotationsDerived"):
        tree = ElementTree.parse(root / CLDR / folder / f"{language}.xml")
        for node in tree.getroot().iter("annotation"):
            emoji, text = node.get("cp", ""), node.text or ""
            if node.get("type") == "tts":
                names[emoji] = text
            else:
                keywords[emoji] = [word.strip() for word in text.split("|")]
    return {
        emoji: [name, *(word for word in keywords.get(emoji, ()) if word != name)]
        for emoji, name in names.items()
    }


def choose(annotations: dict[str, dict[str, list[str]]], known: set[int]) -> list[str]:
    """Every emoji the font draws, without skin tones, and `TONED_BASES` of them with all five."""
    english = annotations["en"]
    drawable = [
        emoji
        for emoji in english
        if all(ord(part) in known or part in JOINER + EMOJI_STYLE for part in emoji)
        # Digits and a few signs have glyphs only as parts of keycaps.
        and (len(emoji) > 1 or ord(emoji) > 0xFF)
        and all(emoji in annotations[language] for language in LANGUAGES)
    ]
    plain = [emoji for emoji in drawable if not any(tone in emoji for tone in TONES)]
    bases = [emoji for emoji in plain if all(emoji + tone in english for tone in TONES)]
    step = max(1, len(bases) // TONED_BASES)
    return plain + [base + tone for base in bases[::step][:TONED_BASES] for tone in TONES]


def draw(emoji: str, font: ImageFont.FreeTypeFont) -> bytes:
    """One glyph on white, `GLYPH_EDGE` pixels square, as WebP."""
    canvas = Image.new("RGBA", (160, 160), "white")
    ImageDraw.Draw(canvas).text((12, 12), emoji, font=font, embedded_color=True)
    picture = canvas.convert("RGB").crop((8, 7, 152, 151))
    data = io.BytesIO()
    picture.resize((GLYPH_EDGE, GLYPH_EDGE), Image.Resampling.LANCZOS).save(
        data, "WEBP", quality=75, method=6
    )
    return data.getvalue()


def file_name(emoji: str) -> str:
    """`1f98a.webp` for a fox: code points in hexadecimal, the variation selector left out."""
    return "-".join(f"{ord(part):x}" for part in emoji if part != EMOJI_STYLE) + ".webp"


def build(root: Path, out: Path) -> None:
    """Write the annotations, the glyphs and the licences from unpacked Debian packages."""
    from fontTools.ttLib import TTFont  # a build-time need alone

    annotations = {language: read_annotations(root, language) for language in LANGUAGES}
    chosen = choose(annotations, set(TTFont(root / FONT).getBestCmap()))
    table = [
        {"emoji": emoji, **{language: annotations[language][emoji] for language in LANGUAGES}}
        for emoji in chosen
    ]
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
    (out / "emoji.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    font = ImageFont.truetype(root / FONT, STRIKE, layout_engine=ImageFont.Layout.RAQM)
    with zipfile.ZipFile(out / "glyphs.zip", "w") as archive:
        for emoji in chosen:
            # A fixed date, so that the same packages give the same bytes.
            info = zipfile.ZipInfo(file_name(emoji), date_time=(2022, 1, 1, 0, 0, 0))
            archive.writestr(info, draw(emoji, font))
    for name, source in LICENCES.items():
        shutil.copyfile(root / source, out / name)
    print(f"{len(chosen)} emoji, {(out / 'glyphs.zip').stat().st_size} bytes of glyphs")


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
