"""Threads that turn documents into token ids and patches ahead of the encoder."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from puma_edge.decoding import decode
from puma_edge.errors import InputError
from puma_edge.images import Patches, patchify
from puma_edge.inputs import Encoded, InputSpec
from puma_edge.resize import Resizer
from puma_edge.runtimes.documents import Document, load

# No token of the vocabularies in use is longer: of a book, only what can matter is tokenised.
_CHARACTERS_PER_TOKEN = 160


def prepare(
    root: Path, document: Document, spec: InputSpec, resizer: Resizer = Resizer.PILLOW
) -> Encoded | str:
    """Read, decode, cut and tokenise one document, or say why that cannot be done.

    Documents are candidates: they get no instruction.
    """
    try:
        loaded = load(root, document)
        text = loaded.text
        if text is not None:
            text = text[: _CHARACTERS_PER_TOKEN * spec.tokenizer.prompt.max_text_tokens]
        images: tuple[Patches, ...] = ()
        if loaded.image is not None:
            images = (patchify(decode(loaded.image), spec.limits, resizer),)
        return spec.encode_patches(None, text, images)
    except InputError as error:
        return str(error)
    except MemoryError:
        return "does not fit in memory; scale it down"


def feed(
    root: Path,
    spec: InputSpec,
    windows: Sequence[Sequence[Document]],
    threads: int,
    resizer: Resizer = Resizer.PILLOW,
) -> Generator[list[Encoded | str], None, None]:
    """Prepare each window, at most one ahead of the one that is being encoded.

    Threads, not processes: decoding, resizing and tokenising all release the interpreter's lock.
    """
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="feeder")

    def submit(window: Sequence[Document]) -> list[Future[Encoded | str]]:
        return [pool.submit(prepare, root, document, spec, resizer) for document in window]

    try:
        ahead = submit(windows[0]) if windows else []
        for number in range(len(windows)):
            ready = [future.result() for future in ahead]
            ahead = submit(windows[number + 1]) if number + 1 < len(windows) else []
            yield ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
