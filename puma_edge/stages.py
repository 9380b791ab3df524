"""One stage of training: adapters on a model, the trainer's arguments, what is written."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from puma_edge.config import StageConfig, TrainConfig
from puma_edge.data import Dataset
from puma_edge.errors import UsageError, require
from puma_edge.frozen_vision import FrozenVision
from puma_edge.model import Checkpoint, weights_errors
from puma_edge.pair_batches import Collator
from puma_edge.pairs import Pairs
from puma_edge.ranks import ranks
from puma_edge.runtimes.files import disk_errors
from puma_edge.stage_trainer import (
    CompleteMark,
    StageProgress,
    StageTrainer,
    StateModel,
    last_checkpoint,
)
from puma_edge.teacher_states import TeacherStates

WARM_UP = 0.03  # of a stage's steps
LORA_TARGETS = r".*language_model\.layers\.\d+\..*_proj"


def add_lora(checkpoint: Checkpoint, stage: StageConfig, seed: int) -> PeftModel:
    """LoRA on every Linear of the decoder; everything else is frozen."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=stage.lora_r,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        target_modules=LORA_TARGETS,
    )
    return get_peft_model(checkpoint.model, config)


def run_stage(
    checkpoint: Checkpoint,
    data: Dataset,
    pairs: Pairs,
    stage: StageConfig,
    out: Path,
    *,
    title: str,
    config: TrainConfig,
    vision: FrozenVision,
    teacher: TeacherStates | None = None,
) -> PeftModel:
    """Train adapters on `pairs`, going on from the last checkpoint in `out` if there is one.

    Args:
        checkpoint: the model; its weights stay as they are.
        data: where the candidates are.
        pairs: what to train on.
        stage: the stage's settings.
        out: gets the adapters, the log of losses, and checkpoints on the way.
        title: what the progress bar says.
        config: the run's settings.
        vision: remembers image tokens.
        teacher: its states of the pairs; with them the loss is stage 1's, else stage 2's.

    Returns:
        the model with its adapters.
    """
    with warnings.catch_warnings():
        # transformers 5 renames arguments that 4.57 still needs.
        warnings.simplefilter("ignore", FutureWarning)
        peft = add_lora(checkpoint, stage, config.seed)
        progress = StageProgress(title, stage.batch)
        if torch.cuda.is_available():
            peft.gradient_checkpointing_enable({"use_reentrant": False})
        trainer = StageTrainer(
            stage=stage,
            dimensions=config.matryoshka,
            model=StateModel(peft, vision),
            args=_arguments(len(pairs), stage, out, config),
            train_dataset=pairs,
            data_collator=Collator(checkpoint, data, part=config.device_batch, teacher=teacher),
            callbacks=[progress, CompleteMark()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        with progress:
            trainer.train(resume_from_checkpoint=last_checkpoint(out))
    if trainer.is_world_process_zero():
        with disk_errors(out), weights_errors():
            peft.save_pretrained(str(out))
        log = [row for row in trainer.state.log_history if "loss" in row]
        (out / "log.json").write_text(json.dumps(log) + "\n", encoding="utf-8")
    return peft


def _arguments(pairs: int, stage: StageConfig, out: Path, config: TrainConfig) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    if config.report_to:
        require(config.report_to, "train")
    if stage.batch % ranks():
        raise UsageError(f"a batch of {stage.batch} cannot be shared by {ranks()} ranks alike")
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=stage.batch // ranks(),
        num_train_epochs=stage.epochs,
        max_steps=total_steps(pairs, stage),
        learning_rate=stage.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(WARM_UP * total_steps(pairs, stage)),
        max_grad_norm=1.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would show a loss that is no number as 0
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,  # the last may be half written when a run is killed
        ddp_find_unused_parameters=False,
        report_to=[config.report_to] if config.report_to else [],
        remove_unused_columns=False,
        dataloader_drop_last=pairs >= stage.batch,
        disable_tqdm=True,
    )
    # Without torchrun, Trainer would split batches over all GPUs it sees (DataParallel), whose
    # copies of the model have no parameters.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def total_steps(pairs: int, stage: StageConfig) -> int:
    """Optimiser steps of a stage."""
    return stage.max_steps or math.ceil(stage.epochs * max(1, pairs // stage.batch))
