"""Documents -> an index: fed by threads, batched by length, in shards that outlive the run."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from puma_edge.errors import PumaError, UsageError
from puma_edge.inputs import InputSpec
from puma_edge.runtimes.documents import Corpus
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.files import disk_errors, locked
from puma_edge.runtimes.parts import printable
from puma_edge.runtimes.run import Run, Settings, Stamp
from puma_edge.runtimes.update import Changes, Earlier, Needed
from puma_edge.runtimes.watch import Progress, Start, Watch
from puma_edge.runtimes.writer import (
    Header,
    Outcome,
    finish_publishing,
    partial_folder,
    write_index,
)

__all__ = [
    "Changes",
    "Progress",
    "Report",
    "Settings",
    "Stamp",
    "Start",
    "Watch",
    "embed_corpus",
]


@dataclass(frozen=True)
class Report:
    """What a run did: `seen == embedded + quarantined + duplicates`.

    Attributes:
        seen: documents in the corpus, readable or not.
        embedded: rows computed by the model, in this run or in one that it goes on from.
        quarantined: documents that have no row; `index.quarantine.jsonl` says why.
        duplicates: rows copied from a document of equal content.
        resumed: of the embedded, those that a run which was cut off had done.
        reused: of the embedded, those taken from the index that was updated.
        changes: how that index differs from the new one; None where there was none to update.
        seconds: how long it took.

    """

    seen: int
    embedded: int
    quarantined: int
    duplicates: int
    resumed: int
    reused: int
    changes: Changes | None
    seconds: float


def embed_corpus(
    corpus: Corpus,
    out: Path,
    spec: InputSpec,
    encoder: Encoder,
    stamp: Stamp,
    settings: Settings | None = None,
    watch: Watch | None = None,
) -> Report:
    """Embed a corpus into `out` and the files beside it; a run that was cut off is resumed.

    What is done lies in `<out>.partial/` until the index is written, and survives Ctrl-C, a kill
    and a full disk. An index that stood at `out` stays whole until the new one takes its place.

    Args:
        corpus: what `scan` found.
        out: the .npy to write.
        spec: how items become arrays.
        encoder: the model.
        stamp: the model's identity, recorded in the index.
        settings: see `Settings`.
        watch: whom to tell of it.

    Raises:
        UsageError: `out` is no .npy, or the dimension is out of range.
        PumaError: nothing to embed, another run on the same output, or the disk refuses.

    """
    started = time.monotonic()
    settings = settings or Settings()
    _check(corpus, out, encoder, settings)
    work = partial_folder(out)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locked(work, out):
        with disk_errors(out):
            finish_publishing(out)
        earlier = _earlier(out, encoder, stamp, settings)
        run = Run(corpus, spec, encoder, stamp, settings, work, earlier, watch or Watch())
        run.embed()
        outcome = run.outcome()
        with disk_errors(out):
            header = _header(corpus, encoder, stamp, settings, outcome)
            resizer = earlier.join_resizers(settings.resizer, outcome.kept)
            write_index(out, outcome, replace(header, resizer=resizer))
            shutil.rmtree(work, ignore_errors=True)
    return Report(
        seen=corpus.seen,
        embedded=outcome.embedded,
        quarantined=len(outcome.quarantine),
        duplicates=outcome.duplicates,
        resumed=run.resumed,
        reused=outcome.reused,
        changes=earlier.compare(outcome.kept) if earlier.entries else None,
        seconds=time.monotonic() - started,
    )


def _check(corpus: Corpus, out: Path, encoder: Encoder, settings: Settings) -> None:
    if out.suffix != ".npy":
        raise UsageError(f"--out {out} does not end in .npy; name the index like index.npy")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name a file in it, like {out / 'index.npy'}")
    if settings.dimension is not None and not 1 <= settings.dimension <= encoder.dimension:
        raise UsageError(
            f"{settings.dimension} dimensions asked for; the model has {encoder.dimension}"
        )
    if not corpus.seen:
        there = corpus.describe_unsupported() or "nothing"
        raise PumaError(
            f"{corpus.root} holds no image and no text (found: {there}); expected files like "
            ".jpg, .png, .txt, .md, .jsonl or .parquet"
        )


def _earlier(out: Path, encoder: Encoder, stamp: Stamp, settings: Settings) -> Earlier:
    if not settings.update:
        return Earlier.none()
    dimension = settings.dimension or encoder.dimension
    needed = Needed(stamp.model_id, stamp.precision, dimension, settings.storage.value)
    return Earlier.open(out, needed)


def _header(
    corpus: Corpus, encoder: Encoder, stamp: Stamp, settings: Settings, outcome: Outcome
) -> Header:
    return Header(
        model_id=stamp.model_id,
        precision=stamp.precision,
        provider=encoder.provider,
        dimension=settings.dimension or encoder.dimension,
        dtype=settings.storage.value,
        rows=outcome.embedded + outcome.duplicates,
        corpus=printable(str(corpus.root)),
        seen=corpus.seen,
        embedded=outcome.embedded,
        quarantined=len(outcome.quarantine),
        duplicates=outcome.duplicates,
        unsupported=dict(corpus.unsupported),
    )
