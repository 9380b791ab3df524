"""Train: cut a model to k layers, teach it what the dropped ones knew, then to retrieve."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn

from puma_edge.config import SAMPLE, SHAPE_PREFIX, StageConfig, TrainConfig, Weights
from puma_edge.data import Dataset, load_dataset
from puma_edge.errors import PumaError, UsageError
from puma_edge.evaluate import RECALL_AT, evaluate, mean
from puma_edge.folders import replace_folder
from puma_edge.frozen_vision import FrozenVision
from puma_edge.layer_choice import choose_layers
from puma_edge.merge import merge
from puma_edge.model import Checkpoint, load, prune
from puma_edge.pairs import Pairs, balanced, recombined
from puma_edge.progress import Progress
from puma_edge.ranks import rank
from puma_edge.run_folder import METRICS, Run, open_run
from puma_edge.sample import base_folder, emoji_folder
from puma_edge.stage_trainer import CHECKPOINT
from puma_edge.stages import run_stage
from puma_edge.teacher_states import TeacherStates, distinct_sources, teacher_states
from puma_edge.torch_encoder import TorchEncoder

TEXT_TO_TEXT = 1
STATES = "teacher-states"  # beside the runs, which share it
MERGED_1, MERGED = "merged1", "merged"


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
    _check(config)
    if config.model.startswith(SHAPE_PREFIX):
        raise UsageError(f"{config.model} has random weights: export and bench it, don't train it")
    if config.threads:
        torch.set_num_threads(config.threads)
    data = open_data(config.data)
    checkpoint = open_model(config.model, _dtype(config))
    kept_layers(checkpoint, config)
    if wrong := [n for n in config.matryoshka if not 1 <= n < checkpoint.dimension]:
        raise UsageError(
            f"matryoshka {wrong[0]}: embeddings have {checkpoint.dimension} dimensions; give less"
        )
    with open_run(config) as run:
        if run.resumed:
            print(f"train: going on with {run.folder}", file=sys.stderr)
        return train_from(checkpoint, data, config, run)


def _check(config: TrainConfig) -> None:
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UsageError(
                f"training over {name} is not supported: checkpoints and merging take whole "
                "models; start the ranks with torchrun"
            )
    for stage, name in ((config.stage1, "stage1"), (config.stage2, "stage2")):
        if stage.batch < 1:
            raise UsageError(f"{name}.batch = {stage.batch}: give 1 or more")
        if stage.epochs < 0 or stage.max_steps < 0:
            raise UsageError(f"{name}: epochs and max_steps cannot be less than 0")
    first = config.stage1
    if config.stage2.recombine or (first.recombine and (first.labels or first.text_only)):
        raise UsageError(
            "recombine makes queries that have no answers: it is stage1's alone, and needs "
            "labels = 0 and text_only = false there"
        )
    if not config.stage1.epochs and not config.stage2.epochs:
        raise UsageError("stage1 and stage2 both have epochs = 0: there is nothing to train")
    if config.device_batch < 0 or config.save_steps < 1:
        raise UsageError(
            f"device_batch = {config.device_batch}, save_steps = {config.save_steps}: give 0 or "
            "more, and 1 or more"
        )


def train_from(checkpoint: Checkpoint, data: Dataset, config: TrainConfig, run: Run) -> TrainReport:
    """Both stages on a loaded model, in place, each step of the way kept in the run's folder."""
    # While one rank computes the teacher's states the others wait: hours, where there is much.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    nn.Module.to(checkpoint.model, state.device)
    total = len(checkpoint.card.kept_layers)
    layers = kept_layers(checkpoint, config)
    keep = len(layers)
    checkpoint = replace(checkpoint, card=replace(checkpoint.card, matryoshka=config.matryoshka))
    vision = FrozenVision()
    judge = Judge(data, config, run, vision)

    teacher = judge("teacher", checkpoint, f"teacher, {total} layers")
    first: Pairs | None = None
    if config.stage1.epochs:
        task = TEXT_TO_TEXT if config.stage1.text_only else None
        first = _pairs(data, config.stage1, config.seed, task)
        states = _states(checkpoint, data, first, run.folder.parent / STATES, vision)
    checkpoint = prune(checkpoint, layers)
    cut = judge("cut", checkpoint, f"cut to {keep} layers")
    if first is not None:
        checkpoint = _stage(checkpoint, data, first, config, run, vision, number=1, teacher=states)
    if config.stage2.epochs:
        all_pairs = _pairs(data, config.stage2, config.seed)
        checkpoint = _stage(checkpoint, data, all_pairs, config, run, vision, number=2)
    elif rank() == 0 and not (run.folder / MERGED).is_dir():
        with replace_folder(run.folder / MERGED) as work:
            shutil.copytree(run.folder / MERGED_1, work, dirs_exist_ok=True)
    student = judge("student", checkpoint, f"student, {keep} layers")
    rows = {"teacher": teacher, "cut": cut, "student": student}
    means = {name: {"mean": mean(row), "task": row} for name, row in rows.items() if row}
    run.write(METRICS, {"recall_at": RECALL_AT, "recall": means})
    return TrainReport(run.folder, teacher, cut, student)


def _states(
    teacher: Checkpoint, data: Dataset, pairs: Pairs, folder: Path, vision: FrozenVision
) -> TeacherStates:
    """The teacher's states of stage 1's pairs; one rank computes, the others read what it wrote."""
    sources = distinct_sources(data, pairs.pairs)
    with (
        Progress("teacher states for stage 1", len(sources.all)) as progress,
        PartialState().main_process_first(),
    ):
        return teacher_states(teacher, sources, folder, vision, progress.update)


def kept_layers(checkpoint: Checkpoint, config: TrainConfig) -> tuple[int, ...]:
    """Which of the model's layers stay.

    Raises:
        UsageError: see `choose_layers`.
    """
    total = len(checkpoint.card.kept_layers)
    return choose_layers(
        total,
        config.keep_layers or (0 if config.layers else max(1, total // 2)),
        with_last=config.with_last,
        layers=config.layers,
        features=checkpoint.tower.features,
    )


def _stage(
    checkpoint: Checkpoint,
    data: Dataset,
    pairs: Pairs,
    config: TrainConfig,
    run: Run,
    vision: FrozenVision,
    *,
    number: int,
    teacher: TeacherStates | None = None,
) -> Checkpoint:
    """One stage and its merge; if an earlier process has done it, its result."""
    merged = run.folder / (MERGED_1 if number == 1 else MERGED)
    if not merged.is_dir():
        peft = run_stage(
            checkpoint,
            data,
            pairs,
            config.stage1 if number == 1 else config.stage2,
            run.folder / f"stage{number}",
            title="stage 1, distillation" if number == 1 else "stage 2, MAC-Loss",
            config=config,
            vision=vision,
            teacher=teacher,
        )
        checkpoint = merge(peft, checkpoint, merged)
        if rank() == 0:
            for one in (run.folder / f"stage{number}").glob(f"{CHECKPOINT}*"):
                shutil.rmtree(one)
        return checkpoint
    nn.Module.to(checkpoint.model, "meta")  # there is room for one model, not always for two
    done = load(str(merged), _dtype(config))
    nn.Module.to(done.model, PartialState().device)
    return done


def open_data(name: str) -> Dataset:
    """A data folder by path, or the sample."""
    return load_dataset(emoji_folder() if name == SAMPLE else Path(name))


def open_model(name: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """A checkpoint by folder or hub id, or the sample base."""
    return load(str(base_folder()) if name == SAMPLE else name, dtype)


def _dtype(config: TrainConfig) -> torch.dtype:
    if config.weights is Weights.AUTO:
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    dtype: torch.dtype = getattr(torch, config.weights.value)
    return dtype


def _pairs(data: Dataset, stage: StageConfig, seed: int, task: int | None = None) -> Pairs:
    """The stage's training pairs; no more than its steps will use."""
    examples = [one for one in data.train if task in (None, one.task)]
    if not examples:
        raise PumaError(
            f"{data.folder} has no training queries{'' if task is None else f' for task {task}'}; "
            "stage 1 needs text-to-text pairs, stage 2 any"
        )
    count = stage.max_steps * stage.batch
    if stage.recombine:
        examples = recombined(data, count or len(examples), seed)
    elif count:
        examples = balanced(examples, count, seed)
    return Pairs(data, examples, seed)


@dataclass(frozen=True)
class Judge:
    """Measures recall on the test queries, once a run.

    Attributes:
        data: the data set.
        config: the run's settings.
        run: where measurements are kept.
        vision: remembers image tokens.
    """

    data: Dataset
    config: TrainConfig
    run: Run
    vision: FrozenVision

    def __call__(self, name: str, checkpoint: Checkpoint, title: str) -> dict[int, float]:
        """Recall of a model by task, of this process or of the one it goes on for."""
        if not self.config.evaluate or not self.data.examples["test"]:
            return {}
        known = self.run.recall().get(name)
        if known is not None:
            return known
        encoder = TorchEncoder(checkpoint.model, self.vision)
        progress: Progress | None = None

        def show(done: int, total: int) -> None:
            nonlocal progress
            progress = progress or Progress(f"recall of the {title}", total)
            progress.update(done)

        recall = evaluate(encoder, checkpoint.spec, self.data, "test", progress=show)
        if progress is not None:
            progress.close()
        self.run.keep_recall(name, recall)
        return recall
