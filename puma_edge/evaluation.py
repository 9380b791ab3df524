"""The work behind `eval`: a checkpoint, a merged model or a bundle on a split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from puma_edge.bundle import MANIFEST, Bundle
from puma_edge.config import SAMPLE
from puma_edge.data import load_dataset
from puma_edge.errors import UsageError, require
from puma_edge.evaluate import Score, measure
from puma_edge.inputs import InputSpec
from puma_edge.metrics import Pool
from puma_edge.progress import Progress
from puma_edge.runtimes.encoder import Encoder
from puma_edge.runtimes.engine import PrecisionChoice, Runtime, open_engine
from puma_edge.sample import emoji_folder


@dataclass(frozen=True)
class EvalConfig:
    """`puma-edge eval`.

    Attributes:
        data: a folder in M-BEIR's format, or "sample".
        split: "train", "val" or "test".
        k: hits looked at, None for M-BEIR's.
        pool: among which candidates answers are looked for.
        threads: CPU threads, None for all.
    """

    data: str = SAMPLE
    split: str = "test"
    k: int | None = None
    pool: Pool = Pool.LOCAL
    threads: int | None = None


def run_eval(target: str, config: EvalConfig) -> list[Score]:
    """Scores of a model folder or a bundle, which may be followed by @ and a precision.

    Raises:
        UsageError: no such split, precision, or number of hits.
        PumaError: no such target or data.
    """
    data, split = config.data, config.split
    if config.k is not None and config.k < 1:
        raise UsageError(f"--k {config.k}: give 1 or more")
    dataset = load_dataset(emoji_folder() if data == SAMPLE else Path(data))
    if not dataset.examples.get(split):
        have = ", ".join(name for name, many in dataset.examples.items() if many)
        raise UsageError(f"--split {split}: {dataset.folder} has queries for: {have}")
    encoder, spec = _open_target(target, config.threads)
    progress: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress(f"recall of {target}", total)
        progress.update(done)

    scores = measure(encoder, spec, dataset, split, k=config.k, pool=config.pool, progress=show)
    if progress is not None:
        progress.close()
    return scores


def _open_target(target: str, threads: int | None) -> tuple[Encoder, InputSpec]:
    folder, _, name = target.rpartition("@")
    if not folder or Path(target).exists():
        folder, name = target, PrecisionChoice.AUTO.value
    if (Path(folder) / MANIFEST).is_file():
        try:
            precision = PrecisionChoice(name)
        except ValueError:
            choices = ", ".join(PrecisionChoice)
            raise UsageError(f"{target}: no precision {name!r}; expected: {choices}") from None
        bundle = Bundle.open(Path(folder))
        return open_engine(bundle, Runtime.AUTO, precision, threads).encoder, bundle.spec
    torch = require("torch", "train")
    if threads:
        torch.set_num_threads(threads)
    from puma_edge.torch_encoder import TorchEncoder
    from puma_edge.train import open_model

    checkpoint = open_model(target)
    if torch.cuda.is_available():
        torch.nn.Module.to(checkpoint.model, "cuda")
    return TorchEncoder(checkpoint.model), checkpoint.spec
