"""What makes a model the model it is, as one hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import torch

from puma_edge.backbones import Family, family_of
from puma_edge.model import Checkpoint


def model_id(checkpoint: Checkpoint) -> str:
    """Hash of all that decides an embedding; the same for every precision and engine."""
    card = asdict(checkpoint.card)
    # Not part of it: what the base was called, what `search` asks by default, and where whole
    # embeddings may be cut.
    del card["base_model"], card["instructions"], card["matryoshka"]
    family, tower = family_of(checkpoint.model.config, "the model"), checkpoint.tower
    # Which axis turns which frequency, and how pixels are scaled, go by the family. Qwen2-VL was
    # there before the others: naming it would change the identity of its models for nothing.
    if family is not Family.QWEN2_VL:
        card |= {"family": family, "tower": asdict(tower)}
    digest = hashlib.sha256()
    digest.update(json.dumps(card, sort_keys=True).encode())
    digest.update(checkpoint.tokenizer.to_str().encode())
    for name, tensor in sorted(checkpoint.model.state_dict().items()):
        digest.update(name.encode())
        # bf16 is what merged weights are stored in: hashing them so, a model has one id whether
        # it was loaded in bf16 or fp32.
        rounded = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        digest.update(memoryview(rounded.view(torch.int16).numpy()).cast("B"))
    return digest.hexdigest()[:16]
