"""One stage of training: adapters, arguments, and the teacher's states."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from puma_edge.config import StageConfig, TrainConfig
from puma_edge.data import Dataset, SourceEncoder
from puma_edge.errors import UsageError
from puma_edge.evaluate import encode_all
from puma_edge.frozen_vision import FrozenVision
from puma_edge.inputs import Batch, Float32
from puma_edge.model import Checkpoint, ret_states
from puma_edge.pairs import Collator, Pair, Pairs
from puma_edge.stage_trainer import StageProgress, StageTrainer, StateModel
from puma_edge.torch_encoder import TorchEncoder

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
    distil: bool,
    vision: FrozenVision,
    config: TrainConfig,
) -> PeftModel:
    """Train adapters on `pairs`, write them and the log of losses to `out`; returns the model."""
    with warnings.catch_warnings():
        # transformers 5 renames arguments that 4.57 still needs.
        warnings.simplefilter("ignore", FutureWarning)
        peft = add_lora(checkpoint, stage, config.seed)
        if torch.cuda.is_available():
            peft.gradient_checkpointing_enable({"use_reentrant": False})
        trainer = StageTrainer(
            stage=stage,
            distil=distil,
            model=StateModel(peft, vision),
            args=_arguments(len(pairs), stage, out, config),
            train_dataset=pairs,
            data_collator=Collator(checkpoint, data, config.device_batch),
            callbacks=[StageProgress(title)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    peft.save_pretrained(str(out))
    log = [row for row in trainer.state.log_history if "loss" in row]
    (out / "log.json").write_text(json.dumps(log) + "\n", encoding="utf-8")
    return peft


def _arguments(pairs: int, stage: StageConfig, out: Path, config: TrainConfig) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's
    if stage.batch % ranks:
        raise UsageError(f"a batch of {stage.batch} cannot be shared by {ranks} ranks alike")
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=stage.batch // ranks,
        num_train_epochs=stage.epochs,
        max_steps=stage.max_steps or -1,
        learning_rate=stage.lr,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(WARM_UP * total_steps(pairs, stage)),
        max_grad_norm=1.0,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        seed=config.seed,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_drop_last=pairs >= stage.batch,
        disable_tqdm=True,
    )


def total_steps(pairs: int, stage: StageConfig) -> int:
    """Optimiser steps of a stage."""
    steps = math.ceil(stage.epochs * max(1, pairs // stage.batch))
    return min(steps, stage.max_steps) if stage.max_steps else steps


def with_teacher(
    pairs: Pairs, teacher: Checkpoint, data: Dataset, progress: Callable[[int], None]
) -> None:
    """Give each pair the full model's states at `[RET]`, before its layers are cut."""
    encoder = StateEncoder(teacher.model)
    load = SourceEncoder(teacher.spec)
    queries = [(pair.example.query, pair.instruction) for pair in pairs.pairs]
    candidates = [(data.candidates[pair.answer], None) for pair in pairs.pairs]
    states = encode_all(encoder, teacher.spec, [*queries, *candidates], load, progress)
    half = len(queries)
    pairs.pairs = [
        Pair(pair.example, pair.answer, pair.instruction, (states[row], states[half + row]))
        for row, pair in enumerate(pairs.pairs)
    ]


class StateEncoder(TorchEncoder):
    """The states themselves, not normalised: what distillation compares."""

    def encode(self, batch: Batch) -> Float32:
        """States at `[RET]` after the final norm [B, d]."""
        self._model.eval()
        with torch.no_grad():
            result: Float32 = ret_states(self._model, batch).float().cpu().numpy()
        return result
