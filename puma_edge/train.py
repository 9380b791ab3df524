"""Train: cut a model to k layers, teach it what the dropped ones knew, then to retrieve."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import nn

from puma_edge.config import SAMPLE, SHAPE_PREFIX, StageConfig, TrainConfig
from puma_edge.data import Dataset, Example, load_dataset
from puma_edge.errors import PumaError, UsageError
from puma_edge.evaluate import evaluate, mean
from puma_edge.frozen_vision import FrozenVision
from puma_edge.merge import merge
from puma_edge.model import Checkpoint, choose_layers, load, prune
from puma_edge.pairs import Pairs
from puma_edge.progress import Progress
from puma_edge.sample import base_folder, emoji_folder
from puma_edge.stages import run_stage, with_teacher
from puma_edge.torch_encoder import TorchEncoder

TEXT_TO_TEXT = 1
RUNS = Path("runs")
METRICS = "metrics.json"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class TrainReport:
    """What a run came to; recall@5 per task, empty where `evaluate` is off.

    Attributes:
        run: its folder.
        teacher: recall of the full model.
        cut: recall of the same cut without training.
        student: recall after both stages.
    """

    run: Path
    teacher: dict[int, float]
    cut: dict[int, float]
    student: dict[int, float]


def train(config: TrainConfig) -> TrainReport:
    """Load what `config` names and train.

    Raises:
        PumaError: a model or data folder that is not there, or a run folder that is in use.
        UsageError: settings that cannot work together.
    """
    if config.model.startswith(SHAPE_PREFIX):
        raise UsageError(f"{config.model} has random weights: export and bench it, don't train it")
    if config.threads:
        torch.set_num_threads(config.threads)
    data = open_data(config.data)
    checkpoint = open_model(config.model)
    total = len(checkpoint.card.kept_layers)
    choose_layers(total, config.keep_layers or max(1, total // 2))
    return train_from(checkpoint, data, config, _new_run(config.out))


def train_from(
    checkpoint: Checkpoint, data: Dataset, config: TrainConfig, run: Path
) -> TrainReport:
    """Both stages on a loaded model, in place; writes adapters, merged models and the report."""
    (run / SETTINGS).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    nn.Module.to(checkpoint.model, "cuda" if torch.cuda.is_available() else "cpu")
    total = len(checkpoint.card.kept_layers)
    keep = config.keep_layers or max(1, total // 2)
    layers = choose_layers(total, keep, with_last=config.with_last)
    text_pairs = _pairs(data, config.stage1, config.seed, task=TEXT_TO_TEXT)
    all_pairs = _pairs(data, config.stage2, config.seed)

    vision = FrozenVision()
    teacher = _recall(checkpoint, data, config, vision, f"teacher, {total} layers")
    with Progress("teacher states for stage 1", 2 * len(text_pairs)) as progress:
        with_teacher(text_pairs, checkpoint, data, progress.update)
    checkpoint = prune(checkpoint, layers)
    cut = _recall(checkpoint, data, config, vision, f"cut to {keep} layers")

    peft = run_stage(
        checkpoint,
        data,
        text_pairs,
        config.stage1,
        run / "stage1",
        title="stage 1, distillation",
        distil=True,
        vision=vision,
        config=config,
    )
    checkpoint = merge(peft, checkpoint, run / "merged1")
    peft = run_stage(
        checkpoint,
        data,
        all_pairs,
        config.stage2,
        run / "stage2",
        title="stage 2, MAC-Loss",
        distil=False,
        vision=vision,
        config=config,
    )
    checkpoint = merge(peft, checkpoint, run / "merged")
    student = _recall(checkpoint, data, config, vision, f"student, {keep} layers")
    report = TrainReport(run, teacher, cut, student)
    _write_metrics(report)
    return report


def open_data(name: str) -> Dataset:
    """A data folder by path, or the sample."""
    return load_dataset(emoji_folder() if name == SAMPLE else Path(name))


def open_model(name: str) -> Checkpoint:
    """A checkpoint by folder or hub id, or the sample base."""
    return load(str(base_folder()) if name == SAMPLE else name)


def newest_run(runs: Path = RUNS) -> Path:
    """The newest finished run.

    Raises:
        PumaError: there is none.
    """
    finished = [path.parent for path in runs.glob(f"*/{METRICS}")]
    if not finished:
        raise PumaError(f"no finished run in {runs}/; train one first: puma-edge train")
    return max(finished, key=lambda run: (run / METRICS).stat().st_mtime)


def _new_run(out: str) -> Path:
    run = Path(out) if out else RUNS / datetime.now(timezone.utc).strftime("%Y-%m-%d_%H%M%S")
    if (run / SETTINGS).exists():
        raise PumaError(f"{run} holds a run already; choose another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PumaError(f"cannot write to {run} ({error.strerror}); choose another --out") from None
    return run


def _pairs(data: Dataset, stage: StageConfig, seed: int, task: int | None = None) -> Pairs:
    """The stage's training pairs; no more than its steps will use."""
    examples = [one for one in data.train if task in (None, one.task)]
    if not examples:
        raise PumaError(
            f"{data.folder} has no training queries{'' if task is None else f' for task {task}'}; "
            "stage 1 needs text-to-text pairs, stage 2 any"
        )
    if stage.max_steps:
        examples = _balanced(examples, stage.max_steps * stage.batch, seed)
    return Pairs(data, examples, seed)


def _balanced(examples: list[Example], count: int, seed: int) -> list[Example]:
    """At most `count` examples, tasks drawn alike, so that a short run sees every one of them."""
    by_task: dict[int, list[Example]] = {}
    for one in random.Random(seed).sample(examples, len(examples)):
        by_task.setdefault(one.task, []).append(one)
    if count >= len(examples):
        return examples
    share = count // len(by_task)
    return [many[place % len(many)] for many in by_task.values() for place in range(share)]


def _recall(
    checkpoint: Checkpoint, data: Dataset, config: TrainConfig, vision: FrozenVision, title: str
) -> dict[int, float]:
    if not config.evaluate or not data.examples["test"]:
        return {}
    encoder = TorchEncoder(checkpoint.model, vision)
    progress: Progress | None = None

    def show(done: int, total: int) -> None:
        nonlocal progress
        progress = progress or Progress(f"recall of the {title}", total)
        progress.update(done)

    recall = evaluate(encoder, checkpoint.spec, data, "test", progress=show)
    if progress is not None:
        progress.close()
    return recall


def _write_metrics(report: TrainReport) -> None:
    """Write the report; a run counts as finished once it is there."""
    rows = {"teacher": report.teacher, "cut": report.cut, "student": report.student}
    metrics = {
        name: {"mean": mean(recall), "task": recall} for name, recall in rows.items() if recall
    }
    text = json.dumps({"recall_at": 5, "recall": metrics}, indent=2) + "\n"
    work = report.run / f".{METRICS}"
    work.write_text(text, encoding="utf-8")
    work.rename(report.run / METRICS)
