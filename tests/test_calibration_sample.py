"""What calibration reads of a folder: even over modalities and lengths, the same every time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from puma_edge.calibration.sample import draw
from puma_edge.card import GENERIC_INSTRUCTIONS
from puma_edge.errors import PumaError
from puma_edge.export.material import _shares, from_folder
from puma_edge.runtimes.corpus import scan
from tests.edge import encoded, fill, picture, small_spec


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


@pytest.mark.parametrize(("texts", "images"), [(5, 3), (6, 6), (10, 5), (30, 12), (0, 8)])
def test_both_modalities_are_judged_as_queries_and_as_documents(
    texts: int, images: int, tmp_path: Path
) -> None:
    folder, spec = corpus(tmp_path / "a", texts, images), small_spec()
    made = from_folder(spec, folder, GENERIC_INSTRUCTIONS, 256, 0, lambda text: None)
    kinds = ["t", "i"] if texts else ["i"]
    held = made.probe
    assert {pair.name for pair in held.pairs} == {f"{a}->{b}" for a in kinds for b in kinds}
    assert any(len(batch.n_patches) for batch in made.calibration)
    assert made.tuned.pairs
    judged, tuned, rest = _shares(draw(scan(folder), 256, 0).items)
    assert len(judged) == len(held.sizes)
    contents = [{one.content for one in share} for share in (judged, tuned, rest)]
    assert not contents[0] & (contents[1] | contents[2])
    assert len(contents[0] | contents[1] | contents[2]) == texts + images
    if min(texts or images, images) >= 6:
        assert not contents[1] & contents[2]


def test_too_few_pictures_to_judge_the_vision_graph_on(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "a", 10, 2)
    with pytest.raises(PumaError, match="too few pictures to judge") as caught:
        from_folder(small_spec(), folder, GENERIC_INSTRUCTIONS, 256, 0, lambda text: None)
    assert "\n" not in str(caught.value)
