"""The sample base model before its first step: a small Qwen2-VL of 8 layers and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2VLConfig, Qwen2VLModel

from puma_edge.card import Card
from puma_edge.data import Dataset
from puma_edge.images import PixelLimits
from puma_edge.model import Checkpoint
from puma_edge.prompts import (
    IMAGE_PAD,
    SPECIAL_TOKENS,
    VISION_END,
    VISION_START,
    PromptFormat,
)
from puma_edge.sample.emoji import INSTRUCTIONS
from puma_edge.spellings import rope_settings

LAYERS, WIDTH, HEAD = 8, 128, 32  # HEAD: of an attention head, whose M-RoPE sections fit it
VOCABULARY = 6144
# 3x3 tokens for a square picture.
LIMITS = PixelLimits(min_pixels=4 * 28 * 28, max_pixels=10 * 28 * 28)
PROMPT = PromptFormat(system=None)
# Phrases that stand in every prompt are one token each: a small model has no time to read them.
WHOLE = [
    f"Summarize above {what} in one word: " for what in ("sentence", "image", "image and sentence")
]
WHOLE += ["user\n", "assistant\n"]
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer built as Qwen2's, on the sample's training texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    room = VOCABULARY - len(SPECIAL_TOKENS) - len(WHOLE)
    trainer = BpeTrainer(
        vocab_size=room, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in WHOLE])
    return tokenizer


def new_checkpoint(
    data: Dataset, seed: int, width: int = WIDTH, layers: int = LAYERS
) -> Checkpoint:
    """The untrained model in Qwen2-VL's architecture: 3.4 M parameters, or larger.

    Args:
        data: whose training texts the tokenizer learns from.
        seed: of the weights.
        width: of the hidden states, a multiple of 64.
        layers: of the decoder.
    """
    heads = width // HEAD
    texts = [example.query.text for example in data.train if example.query.text]
    texts += [item.text for item in data.candidates.values() if item.text]
    tokenizer = train_tokenizer(
        texts + [text for many in INSTRUCTIONS.values() for text in many] * 50
    )
    tokens: dict[str, Any] = {
        "image_token_id": tokenizer.token_to_id(IMAGE_PAD),
        "vision_start_token_id": tokenizer.token_to_id(VISION_START),
        "vision_end_token_id": tokenizer.token_to_id(VISION_END),
    }
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 5 * width // 2,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "max_position_embeddings": 2048,
            **rope_settings(10000.0, [4, 6, 6]),
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={"depth": 4, "embed_dim": width, "hidden_size": width, "num_heads": heads},
        **tokens,
    )
    torch.manual_seed(seed)
    card = Card(
        base_model="sample",
        kept_layers=tuple(range(layers)),
        total_layers=layers,
        limits=LIMITS,
        prompt=PROMPT,
        instructions={
            "text": INSTRUCTIONS[0][1],
            "image": INSTRUCTIONS[3][1],
            "image,text": INSTRUCTIONS[6][1],
        },
    )
    return Checkpoint(Qwen2VLModel(config), tokenizer, card)
