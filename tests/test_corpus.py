"""Any folder becomes documents and reasons, and nothing is lost in between."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puma_edge.errors import InputError, PumaError
from puma_edge.prompts import Modality
from puma_edge.runtimes import parts
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.documents import Corpus, load
from puma_edge.runtimes.parts import content_hash, locate
from tests.edge import encoded, fill, picture, write_rows
from tests.vectors import units

PNG = encoded(picture(1))


def reasons(corpus: Corpus) -> dict[str, str]:
    return {entry.path: entry.reason for entry in corpus.quarantine}


def test_each_kind_of_document(tmp_path: Path) -> None:
    lines: list[object] = [
        {"text": "a fox", "id": 7, "price": 3, "tags": ["x"]},
        {"image": "../b.png"},
        {"image": "../b.png", "text": "both", "id": "own"},
    ]
    fill(
        tmp_path,
        {
            "a.txt": "\ufeff hello \n",
            "b.png": PNG,
            "c.JPG": PNG,
            "c.txt": "cap",
            "d/l.jsonl": lines,
        },
    )
    (tmp_path / "u.md").write_bytes("größer".encode("utf-16"))
    corpus = scan(tmp_path)
    found = [(item.id, item.path, item.modality, item.text) for item in corpus.documents]
    assert found == [
        ("a.txt", "a.txt", Modality.TEXT, "hello"),
        ("7", "d/l.jsonl", Modality.TEXT, "a fox"),
        ("u.md", "u.md", Modality.TEXT, "größer"),
        ("b.png", "b.png", Modality.IMAGE, ""),
        ("d/l.jsonl#2", "b.png", Modality.IMAGE, ""),
        ("c.JPG", "c.JPG", Modality.IMAGE_TEXT, "cap"),
        ("own", "b.png", Modality.IMAGE_TEXT, "both"),
    ]
    assert not corpus.quarantine
    assert json.loads(corpus.documents[1].metadata) == {"price": 3, "tags": ["x"]}
    loaded = load(tmp_path, corpus.documents[-1])
    assert loaded.text == "both"
    assert loaded.image == PNG


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", ["plain", "größer", "狐", "🦊 fox\r\nline"])
def test_every_encoding_that_says_what_it_is(tmp_path: Path, encoding: str, text: str) -> None:
    corpus = scan(fill(tmp_path, {"a.txt": text.encode(encoding)}))
    assert [item.text for item in corpus.documents] == [text]
    assert load(tmp_path, corpus.documents[0]).text == text


@pytest.mark.parametrize("order", ["be", "le"])
def test_marks_of_both_byte_orders(tmp_path: Path, order: str) -> None:
    files = {f"{bits}.txt": f"\ufefffox {bits}".encode(f"utf-{bits}-{order}") for bits in (16, 32)}
    assert [item.text for item in scan(fill(tmp_path, files)).documents] == ["fox 16", "fox 32"]


def test_captions_go_to_every_image_of_their_name(tmp_path: Path) -> None:
    files = {"a.png": PNG, "a.gif": PNG, "a.txt": "caption", "a.md": "a text of its own"}
    corpus = scan(fill(tmp_path, files))
    assert [(item.id, item.text) for item in corpus.documents] == [
        ("a.md", "a text of its own"),
        ("a.gif", "caption"),
        ("a.png", "caption"),
    ]


def test_bad_texts_are_quarantined_with_a_reason(tmp_path: Path) -> None:
    cases = {
        "latin.txt": ("grün".encode("latin-1"), "expected UTF-8"),
        "binary.txt": (b"\x7fELF\0\0\1", "NUL"),
        "half.txt": (b"\xff\xfea", "expected UTF-8"),
        "utf16be.txt": ("words".encode("utf-16-be"), "NUL"),
        "utf32le.txt": ("words".encode("utf-32-le"), "NUL"),
        "half32.txt": (b"\xff\xfe\0\0a", "expected UTF-8"),
        "empty.txt": (b"", "empty"),
        "blank.md": (b" \n\t ", "empty"),
        "long.txt": (b"a" * (parts.MAX_TEXT_BYTES + 1), "over the limit"),
        "utf16.jsonl": ('{"text": "a"}'.encode("utf-16"), "expected UTF-8"),
        "empty.jsonl": (b"\n \n", "no lines"),
    }
    corpus = scan(fill(tmp_path, {name: data for name, (data, _) in cases.items()}))
    assert not corpus.documents
    found = reasons(corpus)
    assert found.keys() == cases.keys()
    for name, (_, words) in cases.items():
        assert words in found[name], found[name]


BAD_LINES = {
    b"{": "not JSON",
    b'{"text": NaN}': "not JSON",
    b"[" * 100_000: "not JSON",
    b'["a"]': "expected one JSON object",
    b"{}": "neither",
    b'{"text": "  "}': "neither",
    b'{"text": 3}': "expected a string",
    b'{"image": ["a"]}': "expected a string",
    b'{"text": "a", "id": true}': "whole number",
    b'{"text": "\\ud800"}': "surrogate",
    b'{"text": "a\\u0000b"}': "NUL",
    b'{"text": "\xff"}': "expected UTF-8",
    b'{"image": "gone.png"}': "cannot be read",
    b'{"image": "a\\u0000.png"}': "cannot be read",
    b'{"image": "\\ud800.png"}': "surrogate",
    b'{"text": "a", "n": ["\\udfff"]}': "surrogate",
    b'{"text": "a", "\\udfff": 1}': "surrogate",
    b'{"text": "a", "n": 1e400}': "not JSON",
    b'{"image": "../secret.png"}': "outside",
    b'{"image": "x/../../secret.png"}': "outside",
    b'{"image": "/etc/hostname"}': "outside",
    b'{"image": "."}': "not a regular file",
    b'{"text": "' + b"a" * parts.MAX_LINE_BYTES + b'"}': "over the limit",
}


def test_bad_lines_are_quarantined_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    root = fill(tmp_path / "corpus", {})
    good = b'\n{"text": "good"}\n'
    (root / "l.jsonl").write_bytes(b"\xef\xbb\xbf" + good + good.join(BAD_LINES) + good)
    corpus = scan(root)
    assert [item.text for item in corpus.documents] == ["good"] * (len(BAD_LINES) + 1)
    assert load(root, corpus.documents[-1]).text == "good"
    found = {int(name.partition("#")[2]): reason for name, reason in reasons(corpus).items()}
    assert len(found) == len(BAD_LINES)
    for (_, reason), words in zip(sorted(found.items()), BAD_LINES.values(), strict=True):
        assert words in reason


def test_files_that_are_no_files(tmp_path: Path) -> None:
    fill(tmp_path, {"a/ok.txt": "ok"})
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "again").symlink_to("a")
    (tmp_path / "folder.txt").mkdir()
    corpus = scan(tmp_path)
    assert [item.id for item in corpus.documents] == ["a/ok.txt"]
    found = reasons(corpus)
    assert sorted(found) == ["gone.jpg", "pipe.jsonl", "pipe.txt", "self.png"]
    assert "not a regular file" in found["pipe.txt"]
    assert "cannot be read" in found["gone.jpg"]


def test_an_unlistable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a/x.txt": "x", "b/y.txt": "y"})
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    corpus = scan(tmp_path)
    assert [item.id for item in corpus.documents] == ["b/y.txt"]
    assert reasons(corpus) == {"a": "folder cannot be listed (Permission denied)"}


def test_unsupported_files_are_named_and_ours_passed_over(tmp_path: Path) -> None:
    names = ["a.pdf", "b.MP4", "c.heic", "d.svg", "e.mp4", "Makefile", ".hidden.txt", ".git/a.txt"]
    ours = ["index.quarantine.jsonl", "index.npy.partial/x.json"]
    ours += ["index.npy.partial/ready/index.quarantine.jsonl"]
    write_rows(tmp_path / "index.npy", units(3))
    corpus = scan(fill(tmp_path, dict.fromkeys(names + ours, b"x")))
    assert corpus.seen == 0
    expected = {"(no suffix)": 1, ".heic": 1, ".mp4": 2, ".pdf": 1, ".svg": 1}
    assert dict(corpus.unsupported) == expected
    assert corpus.describe_unsupported().startswith(
        "2 .mp4 (video), 1 (no suffix), 1 .heic (image)"
    )


def test_of_many_suffixes_the_commonest_are_named(tmp_path: Path) -> None:
    corpus = scan(fill(tmp_path, {f"mail.{n}": b"" for n in range(50)} | {"a.x": b"", "b.x": b""}))
    assert corpus.describe_unsupported().startswith("2 .x, 1 .0, 1 .1, 1 .10,")
    assert corpus.describe_unsupported().endswith(", 41 others")
    assert sum(corpus.unsupported.values()) == 52


def test_tables_of_indexes_are_told_from_documents(tmp_path: Path) -> None:
    write_rows(tmp_path / "index.npy", units(3))
    fill(tmp_path, {"a.txt": "a fox", "train.json": "{}", "train.npy": "x"})
    pq.write_table(pa.table({"id": ["7"], "text": ["one"]}), tmp_path / "train.parquet")
    assert [item.id for item in scan(tmp_path).documents] == ["a.txt", "7"]
    (tmp_path / "index.npy").unlink()  # as after a kill, before the last file was in place
    assert [item.id for item in scan(tmp_path).documents] == ["a.txt", "7"]


def test_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / name).write_bytes(PNG)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "back\\x41.txt").write_text("a name with a backslash")
    corpus = scan(tmp_path)
    assert [item.id for item in corpus.documents] == ["back\\x41.txt", "caf\\xe9.png"]
    for document in corpus.documents:
        document.id.encode()
        assert locate(tmp_path, document.path).is_file()
    assert load(tmp_path, corpus.documents[1]).image == PNG


def test_a_broken_caption_keeps_its_image_out_with_the_reason(tmp_path: Path) -> None:
    corpus = scan(fill(tmp_path, {"a.png": PNG, "a.txt": b"\xff\xfe\xff"}))
    assert corpus.seen == 1
    assert "its text a.txt: text in no known encoding" in reasons(corpus)["a.png"]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PumaError, match="does not exist"):
        scan(tmp_path / "nothing")
    file = tmp_path / "a.txt"
    file.write_text("a")
    with pytest.raises(PumaError, match="is a file"):
        scan(file)


def test_hashes_depend_on_the_parts_alone(tmp_path: Path) -> None:
    files = {"a.txt": "same", "b/c.md": "\ufeffsame\n", "l.jsonl": [{"text": "same", "id": 1}]}
    corpus = scan(fill(tmp_path, files))
    assert len({item.content for item in corpus.documents}) == 1
    assert content_hash("a", None) != content_hash(None, b"a")
    assert content_hash("ab", b"") != content_hash("a", b"b")


def test_a_file_that_changes_under_the_run_is_not_embedded(tmp_path: Path) -> None:
    corpus = scan(fill(tmp_path, {"a.txt": "before"}))
    (tmp_path / "a.txt").write_text("after")
    with pytest.raises(InputError, match="changed"):
        load(tmp_path, corpus.documents[0])


CONTENT = st.sampled_from([b"", b"text", b"other", b"\xff", b"a\0", PNG, b'{"text": "t"}\n{\n\n3'])
NAMES = st.tuples(
    st.sampled_from(["", "a/", "a/b/"]),
    st.sampled_from(["x", "y", "z"]),
    st.sampled_from([".txt", ".md", ".png", ".jsonl", ".pdf", ".JPG"]),
).map("".join)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=st.dictionaries(NAMES, CONTENT, max_size=14))
def test_every_file_is_accounted_for(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = fill(tmp_path_factory.mktemp("corpus"), files)
    corpus = scan(root)
    assert corpus == scan(root)
    lines = sum(
        len([line for line in data.split(b"\n") if line.strip()]) or 1
        for name, data in files.items()
        if name.endswith(".jsonl")
    )
    plain = [name for name in files if not name.endswith((".jsonl", ".pdf"))]
    images = {name.rpartition(".")[0] for name in plain if name.endswith((".png", ".JPG"))}
    texts = [name for name in plain if name.endswith((".txt", ".md"))]
    captions = {name.rpartition(".")[0] for name in texts} & images
    assert corpus.seen == lines + len(plain) - len(captions)
    assert sum(corpus.unsupported.values()) == sum(name.endswith(".pdf") for name in files)
    order = [list(Modality).index(item.modality) for item in corpus.documents]
    assert order == sorted(order)
