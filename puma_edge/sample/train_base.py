"""Train the sample base model: a small Qwen2-VL of 8 layers, from nothing, on the emoji set.

    python -m puma_edge.sample.train_base --minutes 90 --out puma_edge/sample/base

Besides in-batch InfoNCE, every query and every candidate is classified against one learned vector
per concept (an emoji, or its name in one language). Those vectors stand for all the candidates
that are not in the batch, cost one matrix product, and are thrown away at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2VLConfig, Qwen2VLModel

from puma_edge.data import Dataset, Example, Source, SourceEncoder, load_dataset
from puma_edge.evaluate import encode_all, evaluate, mean
from puma_edge.images import PixelLimits
from puma_edge.inputs import Encoded
from puma_edge.model import Card, Checkpoint, image_tokens, ret_states, save
from puma_edge.model import load as load_model
from puma_edge.prompts import (
    IMAGE_PAD,
    SPECIAL_TOKENS,
    VISION_END,
    VISION_START,
    PromptFormat,
)
from puma_edge.sample.build import LANGUAGES
from puma_edge.sample.emoji import INSTRUCTIONS, load_emoji
from puma_edge.sample.folder import write_emoji
from puma_edge.torch_encoder import TorchEncoder

LAYERS = 8
VOCABULARY = 6144
# 3x3 tokens for a square picture.
LIMITS = PixelLimits(min_pixels=4 * 28 * 28, max_pixels=10 * 28 * 28)
PROMPT = PromptFormat(system=None)
TASK_WEIGHTS = {0: 6, 1: 3, 2: 3, 3: 2, 4: 1, 6: 2, 7: 2, 8: 2}
ENGLISH_WORDS, FOREIGN_WORDS, PICTURES = 32, 24, 96
TEMPERATURE = 0.05
CHECKS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of the run: when validation recall is taken
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


def new_checkpoint(data: Dataset, seed: int) -> Checkpoint:
    """The untrained model: 3.4 M parameters in Qwen2-VL's architecture."""
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
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 6, 6],
                "rope_theta": 10000.0,
            },
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={"depth": 4, "embed_dim": 128, "hidden_size": 128, "num_heads": 4},
        **tokens,
    )
    torch.manual_seed(seed)
    card = Card(
        base_model="sample",
        kept_layers=tuple(range(LAYERS)),
        total_layers=LAYERS,
        limits=LIMITS,
        prompt=PROMPT,
        instructions={
            "text": INSTRUCTIONS[0][1],
            "image": INSTRUCTIONS[3][1],
            "image,text": INSTRUCTIONS[6][1],
        },
    )
    return Checkpoint(Qwen2VLModel(config), tokenizer, card)


@dataclass
class Concepts:
    """Which learned vector a candidate belongs to: one per emoji, and one per foreign name."""

    emoji: int

    def of(self, did: str) -> int:
        """The concept of a document id."""
        number, kind = divmod(int(did.split(":")[1]) - 1, 2 + len(LANGUAGES))
        # kinds: image, both, en, then the other languages
        return number if kind <= 2 else self.emoji * (kind - 2) + number

    @property
    def count(self) -> int:
        """How many concepts there are."""
        return self.emoji * len(LANGUAGES)


class Batches:
    """Endless training batches: pairs of all tasks, and more queries of words alone."""

    def __init__(self, data: Dataset, seed: int) -> None:
        """Sort the training queries by task and language."""
        self._draw = random.Random(seed)
        self._by_task = {t: [one for one in data.train if one.task == t] for t in TASK_WEIGHTS}
        foreign = {one.query.text for one in self._by_task[1]}
        english = [one for one in self._by_task[0] if one.query.text not in foreign]
        views = [(one.query, one.positives[0]) for one in self._by_task[3]]
        self._pictures = views + [(data.candidates[did], did) for did in data.pools[0]]
        self._words = ((english, ENGLISH_WORDS), (self._by_task[1], FOREIGN_WORDS))

    def pairs(self, size: int) -> list[Example]:
        """Examples of all tasks, no two with an answer in common."""
        batch: list[Example] = []
        taken: set[str] = set()
        tasks, weights = list(TASK_WEIGHTS), list(TASK_WEIGHTS.values())
        while len(batch) < size:
            example = self._draw.choice(self._by_task[self._draw.choices(tasks, weights)[0]])
            if taken.isdisjoint(example.positives):
                taken.update(example.positives)
                batch.append(example)
        return batch

    def words(self) -> list[Example]:
        """Queries of words, half of them English."""
        return [one for source, count in self._words for one in self._draw.choices(source, k=count)]

    def pictures(self) -> list[tuple[Source, str]]:
        """Pictures alone, glyphs and views of them, with the document they show."""
        return self._draw.choices(self._pictures, k=PICTURES)


def in_batch_loss(queries: Tensor, candidates: Tensor) -> Tensor:
    """InfoNCE of pairs [B, d], L2-normalised, each other's candidates being the negatives."""
    return functional.cross_entropy(
        queries @ candidates.T / TEMPERATURE, torch.arange(len(queries))
    )


def concept_loss(states: Tensor, concepts: Tensor, owned: Tensor) -> Tensor:
    """Classification of states [B, d] against the concepts [C, d], all L2-normalised.

    `owned` [B, C] says which concepts are right; any of them counts: log-sum over them.
    """
    scores = states @ concepts.T / TEMPERATURE
    right = scores.masked_fill(~owned, -torch.inf).logsumexp(dim=-1)
    return (scores.logsumexp(dim=-1) - right).mean()


def rate(progress: float) -> float:
    """Warm-up, a cosine down to a twentieth at 85% of the run, then a straight line to zero."""
    if progress < 0.02:
        return progress / 0.02
    if progress < 0.85:
        return 0.05 + 0.95 * (1 + math.cos(math.pi * (progress - 0.02) / 0.83)) / 2
    return 0.05 * (1 - progress) / 0.15


def first_concepts(checkpoint: Checkpoint, data: Dataset, names: Concepts) -> Tensor:
    """Concepts [C, d] of a model that is trained further: its own embeddings of their texts."""
    spec = checkpoint.spec
    concepts = torch.randn(names.count, checkpoint.dimension)
    texts = [did for task in (1, 6) for did in data.pools[task]]
    sources = [(data.candidates[did], None) for did in texts]
    vectors = encode_all(TorchEncoder(checkpoint.model), spec, sources, SourceEncoder(spec))
    concepts[[names.of(did) for did in texts]] = torch.from_numpy(vectors)
    return concepts


def train(
    data: Dataset, out: Path, minutes: float, batch: int, seed: int, start_from: Path | None
) -> None:
    """Train for a time, keep the curve of validation recall, and write the model in bf16."""
    checkpoint = load_model(str(start_from)) if start_from else new_checkpoint(data, seed)
    model, spec = checkpoint.model, checkpoint.spec
    load, judge = SourceEncoder(spec), TorchEncoder(model)
    names = Concepts(len(load_emoji()))
    first = torch.randn(names.count, checkpoint.dimension)
    concepts = nn.Parameter(
        0.1 * (first_concepts(checkpoint, data, names) if start_from else first)
    )
    # The vision tower learns sooner from its own tokens' mean than through eight layers.
    head = nn.Linear(checkpoint.dimension, checkpoint.dimension)
    slow = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in name]
    slow_ids = {id(p) for p in slow}
    fast = [p for p in model.parameters() if id(p) not in slow_ids]
    optimizer = torch.optim.AdamW(
        [
            {"params": [*fast, *head.parameters()], "weight_decay": 0.05, "base": 2e-3},
            {"params": slow, "weight_decay": 0.0, "base": 3e-3},
            {"params": [concepts], "weight_decay": 0.0, "base": 1e-2},
        ],
        betas=(0.9, 0.98),
        eps=1e-7,
    )
    draw = random.Random(seed)
    batches = Batches(data, seed)
    checks = list(CHECKS)
    curve: list[dict[str, object]] = []
    start, step = time.monotonic(), 0

    def states(items: list[Encoded]) -> Tensor:
        return functional.normalize(ret_states(model, spec.collate(items)), dim=-1)

    def ask(example: Example) -> Encoded:
        return load(example.query, draw.choice(data.instructions[example.modalities]))

    def owners(many: Sequence[Sequence[str]]) -> Tensor:
        owned = torch.zeros(len(many), names.count, dtype=torch.bool)
        for row, dids in enumerate(many):
            owned[row, [names.of(did) for did in dids]] = True
        return owned

    while checks:
        progress = (time.monotonic() - start) / (60 * minutes)
        if progress >= checks[0]:
            checks.pop(0)
            recall = evaluate(judge, spec, data, "val")
            curve.append({"progress": progress, "step": step, "mean": mean(recall), "task": recall})
            print(
                "val",
                round(mean(recall), 4),
                {k: round(v, 3) for k, v in recall.items()},
                flush=True,
            )
            save(checkpoint, out, torch.bfloat16)
            (out / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
            continue
        examples, words, pictures = batches.pairs(batch), batches.words(), batches.pictures()
        answers = [draw.choice(example.positives) for example in examples]
        model.train()
        anchors = functional.normalize(concepts, dim=-1)
        queries = states([ask(example) for example in examples])
        candidates = states([load(data.candidates[did]) for did in answers])
        tokens = image_tokens(model, spec.collate([load(source) for source, _ in pictures]))
        seen = functional.normalize(
            head(tokens.view(PICTURES, -1, tokens.shape[1]).mean(1)), dim=-1
        )
        query_loss = concept_loss(
            states([ask(one) for one in words]), anchors, owners([one.positives for one in words])
        )
        picture_loss = concept_loss(seen, anchors, owners([(did,) for _, did in pictures]))
        loss = (
            in_batch_loss(queries, candidates)
            + concept_loss(queries, anchors, owners([one.positives for one in examples]))
            + concept_loss(candidates, anchors, owners([(did,) for did in answers]))
            + query_loss
            + picture_loss
        )
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * rate(min(progress, 1.0))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 10 == 0:
            seconds = time.monotonic() - start
            parts = f"words {query_loss.item():.2f} pictures {picture_loss.item():.2f}"
            print(f"step {step} {seconds / 60:.1f} min loss {loss.item():.2f} {parts}", flush=True)
    print(json.dumps({"test": evaluate(judge, spec, data, "test")}))


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--start-from", type=Path, help="a checkpoint to train further")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("emoji"))
    parser.add_argument("--out", type=Path, default=Path("base"))
    args = parser.parse_args()
    torch.set_flush_denormal(True)  # vanishing gradients would otherwise take microcode each
    if not args.data.exists():
        write_emoji(args.data)
    train(load_dataset(args.data), args.out, args.minutes, args.batch, args.seed, args.start_from)


if __name__ == "__main__":
    main()
