"""Commands print names and texts as they are, and JSON that says the same."""

from __future__ import annotations

import json

import pytest

from puma_edge import report, report_index
from puma_edge.prompts import Modality
from puma_edge.runtimes.searcher import Hit, Query

# To rich the first two are markup, the third a picture.
NAMES = ("[red]draft[/red].txt", "[/b].jpg", ":fox_face:")


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
