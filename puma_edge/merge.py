"""Fold LoRA adapters into the weights they adapt."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel

from puma_edge.errors import PumaError
from puma_edge.folders import check_target, replace_folder
from puma_edge.model import Checkpoint, save
from puma_edge.model_card import write_card, write_modules
from puma_edge.ranks import rank
from puma_edge.run_folder import METRICS
from puma_edge.spellings import write_both

MERGE_DTYPE = torch.bfloat16


def merge(peft: PeftModel, checkpoint: Checkpoint, out: Path) -> Checkpoint:
    """Merge the adapters, round to bf16 once, and write the result to `out`.

    PUMA merges in bf16. The sum is taken in the precision of the training, so that only its result
    is rounded.

    Returns:
        the checkpoint with the merged and rounded weights, in the dtype it was trained in.
    """
    model = peft.merge_and_unload()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(MERGE_DTYPE).to(parameter.dtype)
        parameter.requires_grad_(False)
    merged = Checkpoint(model, checkpoint.tokenizer, checkpoint.card)
    if rank() == 0:
        with replace_folder(out) as work:
            save(merged, work, MERGE_DTYPE)
    return merged


def merge_run(run: Path, out: Path) -> Path:
    """Copy a finished run's merged model to `out`, with a card of its settings and scores.

    Raises:
        PumaError: the folder is no finished run, or `out` cannot be written.
        UsageError: `out` holds something else than a merged model.
    """
    merged = run / "merged"
    check_target(out, ("config.json", "modules.json"), [merged])
    if not (merged / "config.json").is_file() or not (run / METRICS).is_file():
        raise PumaError(
            f"{run} is no finished run (it lacks merged/ or {METRICS}); train one: puma-edge train"
        )
    with replace_folder(out) as work:
        shutil.copytree(merged, work, dirs_exist_ok=True)
        write_both(work)
        write_card(run, work, out.name)
        write_modules(work)
    return out
