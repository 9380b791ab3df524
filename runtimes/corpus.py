"""A folder of files -> the sorted list of documents in it, and what could not be read and why."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from puma_edge.errors import InputError, PumaError
from puma_edge.prompts import Modality
from puma_edge.runtimes.documents import Corpus, Document, Quarantined, commonest
from puma_edge.runtimes.parts import (
    Line,
    Span,
    content_hash,
    printable,
    read_bytes,
    read_entries,
    read_text,
)
from puma_edge.runtimes.tables import TABLE_SUFFIX, read_table

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXT_SUFFIXES = (".txt", ".md")
LINES_SUFFIX = ".jsonl"
SNIPPET_CHARACTERS = 200

_ORDER = {Modality.TEXT: 0, Modality.IMAGE: 1, Modality.IMAGE_TEXT: 2}


def scan(root: Path, progress: Callable[[int, int], None] | None = None) -> Corpus:
    """Find every document below `root`; links are followed, each folder is read once.

    Args:
        root: the folder.
        progress: called with the documents and the bytes read so far.

    Raises:
        PumaError: `root` is no folder that can be listed.

    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise PumaError(f"{root} {what}; expected a folder of images and texts")
    scanner = _Scanner(root, progress)
    for folder, names in _folders(root, scanner.refuse):
        if names is not None:
            scanner.folder(folder, names)
        elif not folder:
            raise PumaError(f"{root} cannot be listed; make it readable")
    found = sorted(scanner.found, key=lambda entry: (_ORDER[entry[2].modality], *entry[:2]))
    quarantine = sorted(scanner.quarantine, key=lambda entry: (entry.path, entry.reason))
    unsupported = commonest(scanner.unsupported)
    return Corpus(root, tuple(entry[2] for entry in found), tuple(quarantine), unsupported)


def _folders(
    root: Path, refuse: Callable[[str, str], None]
) -> Iterator[tuple[str, list[str] | None]]:
    """List each folder once, relative to `root`, with its files (None: it cannot be listed)."""
    folders, links = [""], list[str]()
    known: set[tuple[int, int]] = set()
    # Folders reached through links come last: what a link repeats is then listed by its own name.
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        path = os.path.join(root, folder)
        try:
            info = os.stat(path)
            if (info.st_dev, info.st_ino) in known:
                continue
            known.add((info.st_dev, info.st_ino))
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            refuse(folder, f"folder cannot be listed ({error.strerror})")
            yield folder, None
            continue
        names: list[str] = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith(".npy.partial"):
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(
                    posixpath.join(folder, entry.name)
                )
            else:
                names.append(entry.name)
        yield folder, names


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _ours(names: list[str]) -> set[str]:
    """List the files of indexes in the corpus; their tables are known by their columns."""
    there = set(names)
    stems = [name[:-4] for name in names if name.endswith(".npy") and f"{name[:-4]}.json" in there]
    return {stem + end for stem in stems for end in (".npy", ".json")}


class _Scanner:
    """Collects documents folder by folder."""

    def __init__(self, root: Path, progress: Callable[[int, int], None] | None) -> None:
        self.root = root
        self.progress = progress
        self.found: list[tuple[bytes, int, Document]] = []
        self.quarantine: list[Quarantined] = []
        self.unsupported: Counter[str] = Counter()
        self.size = 0

    def refuse(self, place: str, reason: str) -> None:
        self.quarantine.append(Quarantined(printable(place), reason))

    def folder(self, folder: str, names: list[str]) -> None:
        ours = _ours(names)
        texts: dict[str, str] = {}
        images: list[tuple[str, str]] = []
        alone: list[str] = []
        for name in names:
            stem, suffix = os.path.splitext(name)
            suffix = suffix.lower()
            if name in ours or name.endswith(".quarantine.jsonl"):
                continue
            if suffix in IMAGE_SUFFIXES:
                images.append((stem, name))
            elif suffix in TEXT_SUFFIXES:
                # Of a.md and a.txt beside a.jpg, the .txt (the later name) is the caption.
                alone += [texts[stem]] if stem in texts else []
                texts[stem] = name
            elif suffix == LINES_SUFFIX:
                self._lines(posixpath.join(folder, name), read_entries)
            elif suffix == TABLE_SUFFIX:
                self._lines(posixpath.join(folder, name), read_table)
            else:
                self.unsupported[printable(suffix) or "(no suffix)"] += 1
        paired = {stem for stem, _ in images}
        alone += [name for stem, name in texts.items() if stem not in paired]
        for stem, name in images:
            self._file(folder, name, texts.get(stem))
        for name in alone:
            self._file(folder, None, name)

    def _file(self, folder: str, image_name: str | None, text_name: str | None) -> None:
        image_file = None if image_name is None else posixpath.join(folder, image_name)
        text_file = None if text_name is None else posixpath.join(folder, text_name)
        name = image_file or text_file or ""
        place = printable(name)
        try:
            image = None if image_file is None else self._read(image_file)
        except InputError as error:
            return self.refuse(name, str(error))
        try:
            text = None if text_file is None else read_text(os.path.join(self.root, text_file))
        except InputError as error:
            if image is None:
                return self.refuse(name, str(error))
            return self.refuse(name, f"its text {printable(text_file or '')}: {error}")
        self._add(
            name,
            0,
            Document(
                id=place,
                place=place,
                path=place,
                modality=Modality.of(has_text=text is not None, has_image=image is not None),
                content=content_hash(text, image),
                size=len(image or b"") + len((text or "").encode()),
                text_file=text_file,
                image_file=image_file,
                text=(text or "")[:SNIPPET_CHARACTERS],
            ),
        )

    def _lines(
        self, name: str, read: Callable[[str], Iterable[tuple[int, Span, Line | InputError]]]
    ) -> None:
        try:
            for number, span, line in read(os.path.join(self.root, name)):
                try:
                    if isinstance(line, InputError):
                        raise line
                    self._line(name, number, span, line)
                except InputError as error:
                    self.refuse(f"{name}#{number}", str(error))
        except InputError as error:
            self.refuse(name, str(error))

    def _line(self, name: str, number: int, span: Span, line: Line) -> None:
        image_file = None if line.image is None else _inside(name, line.image)
        image = None
        if image_file is not None:
            try:
                image = self._read(image_file)
            except InputError as error:
                raise InputError(f"its image {line.image}: {error}") from None
        place = f"{printable(name)}#{number}"
        self._add(
            name,
            number,
            Document(
                id=line.id or place,
                place=place,
                path=printable(image_file or name),
                modality=Modality.of(has_text=line.text is not None, has_image=image is not None),
                content=content_hash(line.text, image),
                size=len(image or b"") + len((line.text or "").encode()),
                text_file=name,
                span=span,
                image_file=image_file,
                text=(line.text or "")[:SNIPPET_CHARACTERS],
                metadata=line.metadata,
            ),
        )

    def _read(self, name: str) -> bytes:
        return read_bytes(os.path.join(self.root, name))

    def _add(self, name: str, line: int, document: Document) -> None:
        self.found.append((os.fsencode(name), line, document))
        self.size += document.size
        if self.progress is not None:
            self.progress(len(self.found), self.size)


def _inside(lines_file: str, image: str) -> str:
    """Resolve the path of an image that a line names; the result is relative to the corpus.

    Raises:
        InputError: the path leads out of the corpus folder.

    """
    path = posixpath.normpath(posixpath.join(posixpath.dirname(lines_file), image))
    if posixpath.isabs(image) or path == ".." or path.startswith("../"):
        raise InputError(
            f"its image {image} lies outside the corpus folder; expected a path inside"
        )
    return path
