"""`embed --update`: what has not changed is not embedded again, and every row is right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puma_edge.errors import PumaError
from puma_edge.inputs import Batch
from puma_edge.resize import Resizer
from puma_edge.runtimes.corpus import scan
from puma_edge.runtimes.embedder import Changes, Report, Settings, Stamp, embed_corpus
from puma_edge.runtimes.index import Index
from puma_edge.runtimes.vectors import Storage
from puma_edge.runtimes.watch import Start, Watch
from tests.edge import STAMP, HashEncoder, embed, encoded, fill, mixed, picture, small_spec

UPDATE = Settings(update=True)


def update(root: Path, out: Path) -> tuple[Report, int]:
    """Update an index; the report, and how many items the encoder was given."""
    encoder = HashEncoder()
    report = embed_corpus(scan(root), out, small_spec(), encoder, STAMP, UPDATE)
    return report, sum(encoder.batches)


def test_counts_of_an_update(tmp_path: Path) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    embed(root, out)
    report, computed = update(root, out)
    assert computed == 0
    assert (report.embedded, report.reused, report.duplicates) == (21, 21, 1)
    assert report.changes == Changes(kept=22, new=0, changed=0, removed=0)
    fill(root, {"texts/003.txt": "another text", "fresh.txt": "new", "moved.txt": "text number 7"})
    (root / "texts" / "004.txt").unlink()
    (root / "images" / "002.png").write_bytes(b"broken now")
    (root / "broken.png").write_bytes(encoded(picture(1)))
    shutil.copy(root / "images" / "001.png", root / "again.png")
    report, computed = update(root, out)
    # Computed are 003.txt, fresh.txt and broken.png, which is whole now.
    assert computed == 3
    assert report.changes == Changes(kept=19, new=4, changed=1, removed=2)
    assert report.seen == report.embedded + report.quarantined + report.duplicates
    embed(root, tmp_path / "whole.npy")
    assert Index.open(out).header == Index.open(tmp_path / "whole.npy").header
    np.testing.assert_array_equal(np.load(out), np.load(tmp_path / "whole.npy"))
    whole = (tmp_path / "whole.parquet").read_bytes()
    assert out.with_suffix(".parquet").read_bytes() == whole


NAMES = st.sampled_from(["a.txt", "b.txt", "b.png", "c/a.txt", "c/l.jsonl", "m.jsonl"])
PIECES = st.sampled_from(
    [
        *(b"", b"one", b"two", b"\xff", encoded(picture(1)), encoded(picture(2))),
        b'{"text": "one", "id": "x"}\n{"text": "two", "id": "x"}\n{',
        b'{"text": "two", "id": "x"}\n{"text": "three", "id": "y"}',
    ]
)
FOLDERS = st.dictionaries(NAMES, PIECES, max_size=6)


@settings(max_examples=30, deadline=None)
@given(FOLDERS, FOLDERS)
def test_any_folder_after_any_other(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    work = tmp_path_factory.mktemp("any")
    out = work / "index.npy"
    old, new = fill(work / "old", first), fill(work / "new", second)
    try:
        embed(old, out)
        embed(new, work / "whole.npy")
    except PumaError:
        return
    before = Index.open(out)
    ids = [entry.id for entry in before.records(range(len(before)))]
    known = {entry.hash for entry in before.records(range(len(before)))}
    report, computed = update(new, out)
    assert report.changes is not None
    changes = report.changes
    assert changes.kept + changes.new + changes.changed == report.embedded + report.duplicates
    assert changes.kept + changes.changed + changes.removed == len(ids)
    assert report.seen == report.embedded + report.quarantined + report.duplicates
    after = Index.open(out)
    assert computed == len({entry.hash for entry in after.records(range(len(after)))} - known)
    assert Index.open(out).header == Index.open(work / "whole.npy").header
    np.testing.assert_array_equal(np.load(out), np.load(work / "whole.npy"))


def test_an_update_without_an_index_embeds_everything(tmp_path: Path) -> None:
    report, computed = update(mixed(tmp_path / "corpus"), tmp_path / "index.npy")
    assert (report.changes, report.reused) == (None, 0)
    assert computed == report.embedded


def test_rows_of_another_kind_are_not_mixed_in(tmp_path: Path) -> None:
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    embed(root, out)
    before = out.read_bytes()
    cases = {
        "model_id model-a, this run model-b": (UPDATE, Stamp("model-b", "fp32")),
        "precision fp32, this run int8": (UPDATE, Stamp("model-a", "int8")),
        "dimension 24, this run 8": (Settings(update=True, dimension=8), STAMP),
        "float16": (Settings(update=True, storage=Storage.FLOAT16), STAMP),
    }
    for words, (options, stamp) in cases.items():
        with pytest.raises(PumaError, match=words):
            embed(root, out, options, stamp)
    assert out.read_bytes() == before


def test_pictures_resized_by_another_program_are_told_of(tmp_path: Path) -> None:
    def run(resizer: Resizer) -> tuple[Report, str]:
        began: list[Start] = []
        options = Settings(update=True, resizer=resizer)
        watch = Watch(begin=began.append)
        report = embed_corpus(scan(root), out, small_spec(), HashEncoder(), STAMP, options, watch)
        return report, began[0].remark

    pytest.importorskip("cykooz_resizer", reason="the extra fast is not installed")
    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    (root / "broken.png").unlink()  # it would be tried again each time
    assert run(Resizer.PILLOW)[1] == ""
    before = np.load(out)
    assert Index.open(out).header.resizer == "pillow"
    fill(root, {"zz.txt": "new"})
    assert run(Resizer.SIMD)[1] == ""  # no picture among what is new
    assert Index.open(out).header.resizer == "pillow"
    fill(root, {"zy.png": encoded(picture(77, 400, 300))})
    report, remark = run(Resizer.SIMD)
    assert "resized by simd now, and were by pillow" in remark
    assert "\n" not in remark
    assert (report.reused, report.embedded) == (22, 23)
    header = Index.open(out).header
    assert header.resizer == "pillow, simd"
    paths = [record.path for record in Index.open(out).records(range(header.rows))]
    kept = [row for row, path in enumerate(paths) if not path.startswith("z")]
    np.testing.assert_array_equal(np.load(out)[kept], before)
    # An index from before there was a note of it.
    note = out.with_suffix(".json")
    values = json.loads(note.read_text())
    del values["resizer"]
    note.write_text(json.dumps(values))
    fill(root, {"zx.png": encoded(picture(78, 400, 300))})
    assert "were by unknown" in run(Resizer.SIMD)[1]
    assert Index.open(out).header.resizer == "simd, unknown"


def test_an_update_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    class Dies(HashEncoder):
        def encode(self, batch: Batch) -> np.ndarray:
            if self.batches:
                raise KeyboardInterrupt
            return super().encode(batch)

    root, out = mixed(tmp_path / "corpus"), tmp_path / "index.npy"
    embed(root, out)
    fill(root, {"fresh.txt": "new", "other.png": encoded(picture(77))})
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(scan(root), out, small_spec(), Dies(), STAMP, UPDATE)
    assert len(Index.open(out)) == 22
    report, computed = update(root, out)
    assert (report.resumed, computed, report.reused) == (1, 1, 21)
    assert len(Index.open(out)) == 24
