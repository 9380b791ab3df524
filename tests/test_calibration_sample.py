"""What calibration reads of a folder: even over modalities and lengths, the same every time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from puma_edge.calibration.sample import draw
from puma_edge.errors import PumaError
from puma_edge.runtimes.corpus import scan
from tests.edge import encoded, fill, picture


def corpus(root: Path, texts: int = 30, images: int = 12) -> Path:
    files: dict[str, bytes | str | list[object]] = {
        f"{n}.txt": f"text {n} " + "word " * n for n in range(texts)
    }
    files |= {f"p{n}.png": encoded(picture(n, 30 + 5 * n)) for n in range(images)}
    return fill(root, files)


def test_a_sample_is_even_over_modalities_and_lengths(tmp_path: Path) -> None:
    found = draw(scan(corpus(tmp_path / "a")), 12, 0)
    strata = [one.stratum for one in found.items]
    assert sorted(strata) == sorted(
        2
        * [f"{kind}, {size}" for kind in ("text", "image") for size in ("short", "middle", "long")]
    )
    assert sorted(strata[:6]) == sorted(set(strata))
    assert draw(scan(tmp_path / "a"), 1000, 0).items[:12] != ()
    assert len(draw(scan(tmp_path / "a"), 1000, 0).items) == 42


def test_a_sample_knows_contents_not_names(tmp_path: Path) -> None:
    corpus(tmp_path / "a")
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for path in (tmp_path / "a").iterdir():
        shutil.copy(path, tmp_path / "b" / "deep" / f"x{path.name}")
    first, second = (draw(scan(tmp_path / name), 12, 0) for name in "ab")
    assert [one.content for one in first.items] == [one.content for one in second.items]
    other = draw(scan(tmp_path / "a"), 12, 1)
    assert {one.content for one in other.items} != {one.content for one in first.items}


def test_samples_that_are_too_small_or_of_one_kind(tmp_path: Path) -> None:
    with pytest.raises(PumaError, match=r"has 5 readable items; calibration needs 8 at least"):
        draw(scan(corpus(tmp_path / "few", 3, 2)), 64, 0)
    with pytest.raises(PumaError, match="texts only"):
        draw(scan(corpus(tmp_path / "texts", 20, 0)), 64, 0)
    (few, only) = draw(scan(corpus(tmp_path / "images", 0, 10)), 64, 0).warnings
    assert "has 10 readable items" in few
    assert "pictures only" in only
