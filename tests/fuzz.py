"""Folders of damaged files: no crash, no lost row, the same outcome twice.

`python -m tests.fuzz FOLDER --seconds 60` goes on for a minute and says how much it tried.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from puma_edge import decoding
from puma_edge.errors import PumaError
from puma_edge.runtimes.corpus import IMAGE_SUFFIXES, scan
from puma_edge.runtimes.embedder import Settings, embed_corpus
from puma_edge.runtimes.index import Index
from tests.edge import STAMP, HashEncoder, encoded, fill, picture, small_spec

SUFFIXES = (*IMAGE_SUFFIXES, ".txt", ".md", ".jsonl", ".parquet", ".heic", ".pdf", ".mp4", "")


def seeds() -> list[bytes]:
    """Make files of every kind that a folder may hold, and of some it may not."""
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))
    real = Image.open(_photograph()).convert("RGB").resize((160, 120))
    made = [encoded(picture(2, mode=mode)) for mode in ("1", "L", "LA", "P", "RGBA", "RGB")]
    made += [encoded(grey), encoded(grey, "TIFF"), encoded(picture(7, 1, 1))]
    made += [encoded(real, kind) for kind in ("JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000")]
    made += [encoded(real, "JPEG", progressive=True, exif=turned), encoded(real, "PPM")]
    made += [encoded(real, "TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "packbits")]
    made += [encoded(picture(3, mode="CMYK"), "JPEG"), encoded(picture(4), "ICO")]
    made += [
        encoded(real, kind, save_all=True, append_images=[real.rotate(90), real.rotate(9)])
        for kind in ("GIF", "WEBP", "TIFF", "PNG")
    ]
    words = "A fox, größer, 狐狸 🦊\nand more\n"
    made += [words.encode(name) for name in ("utf-8", "utf-8-sig", "utf-16", "utf-32")]
    made += [words.encode("latin-1", "replace"), b"\x7fELF\2\1\1" + bytes(60), b"%PDF-1.7\n%", b""]
    lines = [{"text": "one", "id": 3, "more": [1, {"a": None}]}, {"image": "0.png"}, {"text": 2}]
    made += ["".join(json.dumps(line) + "\n" for line in lines).encode()]
    buffer = io.BytesIO()
    table = pa.table({"text": ["a", None, "b"], "image": ["0.png", None, "../x"], "n": [1, 2, 3]})
    pq.write_table(table, buffer)
    return [*made, buffer.getvalue()]


def _photograph() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def damage(data: bytes, chance: random.Random) -> bytes:
    """Change, cut, repeat or leave a file."""
    changed = bytearray(data)
    kind = chance.choice(["keep", "bytes", "head", "cut", "insert", "swap", "zeros"])
    for _ in range(chance.randint(1, 8)):
        if not changed:
            break
        place = chance.randrange(len(changed))
        match kind:
            case "bytes":
                changed[place] = chance.randrange(256)
            case "head":
                changed[chance.randrange(min(64, len(changed)))] = chance.choice([0, 1, 127, 255])
            case "cut":
                del changed[place:]
            case "insert":
                changed[place:place] = changed[place : place + chance.randint(1, 40)]
            case "swap":
                changed[place:] = changed[place:][::-1]
            case "zeros":
                end = min(len(changed), place + chance.randint(1, 64))
                changed[place:end] = bytes(end - place)
            case _:
                pass
    return bytes(changed)


def one_folder(folder: Path, files: list[bytes], chance: random.Random) -> int:
    """Embed a folder of damaged files and check the counts; give how many files it had."""
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "corpus"
    names = {f"{n}{chance.choice(SUFFIXES)}": chance.choice(files) for n in range(24)}
    fill(root, {name: damage(data, chance) for name, data in names.items()})
    (root / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"a name that is no UTF-8")
    (root / "loop").symlink_to(".")
    (root / "self.png").symlink_to("self.png")
    corpus, out = scan(root), folder / "index.npy"
    assert corpus == scan(root)
    files_of_many = (".jsonl", ".parquet")
    single = sum(not name.endswith(files_of_many) for name in names)
    placed = {entry.place for entry in corpus.documents} | {x.path for x in corpus.quarantine}
    whole = {name for name in placed if "#" not in name and not name.endswith(files_of_many)}
    # Two of the files were put there beside them; what is not supported is counted apart.
    assert len(whole) + sum(corpus.unsupported.values()) == single + 2
    try:
        report = embed_corpus(
            corpus, out, small_spec(), HashEncoder(), STAMP, Settings(update=True)
        )
    except PumaError as error:
        raise AssertionError(f"nothing could be embedded: {error}") from error
    assert report.seen == corpus.seen == report.embedded + report.quarantined + report.duplicates
    assert len(Index.open(out)) == report.embedded + report.duplicates
    lines = out.with_name("index.quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == report.quarantined
    assert all(json.loads(line)["reason"].strip() for line in lines)
    return len(names)


def fuzz(folder: Path, seconds: float, seed: int) -> tuple[int, int]:
    """Try folders for so long; give how many folders and files there were."""
    chance, files = random.Random(seed), seeds()
    decoding.MAX_DECODED_PIXELS = 4_000_000  # a header that says "huge" stays cheap
    ends, folders, count = time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends or not folders:
        try:
            count += one_folder(folder, files, chance)
        except BaseException:
            print(f"seed {seed}, folder {folders}: kept in {folder}")
            raise
        folders += 1
    return folders, count


def main() -> None:
    """Try, and say how much was tried."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    folders, count = fuzz(given.folder, given.seconds, given.seed)
    print(f"{folders} folders of {count} damaged files: none crashed, none lost")


if __name__ == "__main__":
    main()
