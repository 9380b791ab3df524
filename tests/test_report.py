"""Commands print names and texts as they are, and JSON that says the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from puma_edge import report, report_index
from puma_edge.evaluate import Score
from puma_edge.prompts import Modality
from puma_edge.report_quality import show_scores
from puma_edge.runtimes.searcher import Hit, Query

# To rich the first two are markup, the third a picture.
NAMES = ("[red]draft[/red].txt", "[/b].jpg", ":fox_face:")


def test_difference_and_intervals_are_of_the_mean_that_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw = np.random.default_rng(0)

    def scores(shares: tuple[float, ...]) -> list[Score]:
        """Three data sets of one task, one of another."""
        return [
            Score(task, f"set{n}", 5, *[(draw.random(500) < share).astype(np.float32)] * 2)
            for n, (task, share) in enumerate(zip((1, 1, 1, 2), shares, strict=True))
        ]

    rows = {"a": scores((0.2, 0.3, 0.4, 0.9)), "b": scores((0.5, 0.6, 0.7, 0.9))}
    show_scores(rows, as_json=True)
    told = json.loads(capsys.readouterr().out)
    for one in told.values():
        assert one["interval"][0] < one["mean"] < one["interval"][1]
    change = told["b"]["mean"] - told["a"]["mean"]
    assert told["b"]["difference"] == pytest.approx(change)
    assert 0.1 < change < 0.2  # not .225, the mean of the four
    low, high = told["b"]["difference_interval"]
    assert low < change < high


def hits(name: str) -> list[list[Hit]]:
    return [[Hit(1, 0.5, 0, name, name, Modality.TEXT, f"about {name}")]]


@pytest.mark.parametrize("name", NAMES)
def test_names_and_texts_are_printed_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report_index.show_hits([Query(name)], hits(name), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == name
    assert f"about {name}" in lines[-2]
    assert lines[-2].count(name) == 2
    report.show({name: name}, as_json=False)
    assert capsys.readouterr().out.split() == [name, name]
    report_index.show_hits([Query(name)], hits(name), as_json=True)
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["query"]["text"], answer["hits"][0]["id"]) == (name, name)


def test_nothing_that_a_terminal_obeys_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    name = "".join(map(chr, range(0xA0))) + "a.txt"
    report_index.show_hits([Query(name), Query(like=name)], hits(name) * 2, as_json=False)
    report.show({name: name, "nested": {name: 1}}, as_json=False)
    report.say(name)
    report_index.show_hits([Query(name)], hits(name), as_json=True)
    printed = capfd.readouterr()
    controls = {one for one in printed.out + printed.err if one < " " or "\x7f" <= one < "\xa0"}
    assert controls == set("\t\n")
    (answer,) = json.loads(printed.out[printed.out.rindex("\n[") :])
    assert answer["query"]["text"] == name
