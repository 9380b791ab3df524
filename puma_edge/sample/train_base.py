"""Train the sample base model: a small Qwen2-VL of 8 layers, from nothing, on the emoji set.

    python -m puma_edge.sample.train_base --minutes 90 --out puma_edge/sample/base

On a GPU where there is one. `--exits 0` makes a base that was never taught to stop early,
`--width 512 --layers 16` a larger one.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from puma_edge.data import Dataset, SourceEncoder, load_dataset
from puma_edge.evaluate import encode_all, evaluate, mean
from puma_edge.model import Checkpoint, image_tokens, ret_states, save
from puma_edge.model import load as load_model
from puma_edge.sample.base_batches import PICTURES, Batches, Concepts, Step, plain_glyphs
from puma_edge.sample.build import LANGUAGES
from puma_edge.sample.emoji import load_emoji
from puma_edge.sample.folder import write_emoji
from puma_edge.sample.new_base import LAYERS, WIDTH, new_checkpoint
from puma_edge.torch_encoder import TorchEncoder

TEMPERATURE = 0.05
CHECKS = (0.4, 0.6, 0.8, 1.0)  # of the run: when validation recall is taken
# How often the last layer is left out of a step: stochastic depth (Huang et al., 2016), less often
# the earlier a layer is, never one of the first half.
MOST_DROPPED = 0.3
# How often a step stops at half the depth, so that a cut there is a fair start (LayerSkip, Elhoushi
# et al., 2024): minutes of training on a CPU do not bring back what hours taught the deep layers.
EXITS = 0.5


def in_batch_loss(queries: Tensor, candidates: Tensor) -> Tensor:
    """InfoNCE of pairs [B, d], L2-normalised, each other's candidates being the negatives."""
    right = torch.arange(len(queries), device=queries.device)
    return functional.cross_entropy(queries @ candidates.T / TEMPERATURE, right)


def concept_loss(states: Tensor, concepts: Tensor, owners: list[list[int]]) -> Tensor:
    """Classification of states [B, d] against the concepts [C, d], all L2-normalised.

    `owners` says which concepts are right; any of them counts: log-sum over them.
    """
    owned = torch.zeros(len(states), len(concepts), dtype=torch.bool, device=states.device)
    for row, many in enumerate(owners):
        owned[row, many] = True
    scores = states @ concepts.T / TEMPERATURE
    right = scores.masked_fill(~owned, -torch.inf).logsumexp(dim=-1)
    return (scores.logsumexp(dim=-1) - right).mean()


def rate(progress: float) -> float:
    """Warm-up, a cosine down to a fiftieth at 80% of the run, then a straight line to zero."""
    if progress < 0.02:
        return progress / 0.02
    if progress < 0.8:
        return 0.02 + 0.98 * (1 + math.cos(math.pi * (progress - 0.02) / 0.78)) / 2
    return 0.02 * (1 - progress) / 0.2


class ConceptVectors(nn.Module):
    """The learned vectors: an emoji's own, plus one per foreign language, common to all emoji.

    So a name that no training query asked for has its place, from its emoji and its language.
    """

    def __init__(self, emoji: Tensor, languages: Tensor) -> None:
        """Start from these vectors [emoji, d] and [languages, d]; the first language is English."""
        super().__init__()
        # Small, so that a step of Adam's turns them far.
        self.emoji, self.languages = nn.Parameter(0.1 * emoji), nn.Parameter(0.1 * languages)

    def forward(self) -> Tensor:
        """All concepts [emoji * languages, d], L2-normalised."""
        english = torch.zeros_like(self.languages[:1])
        both = self.emoji[:, None] + torch.cat([english, self.languages[1:]])
        return functional.normalize(both.flatten(0, 1), dim=-1)


def first_vectors(checkpoint: Checkpoint, data: Dataset, started: bool) -> ConceptVectors:
    """Vectors by chance, or of a model that is trained further: its embeddings of the documents."""
    emoji = torch.randn(len(load_emoji()), checkpoint.dimension)
    languages = torch.randn(len(LANGUAGES), checkpoint.dimension)
    if not started:
        return ConceptVectors(emoji, languages)
    spec, concepts = checkpoint.spec, Concepts(len(emoji))

    def embed(dids: list[str]) -> tuple[Tensor, Tensor]:
        sources = [(data.candidates[did], None) for did in dids]
        found = encode_all(TorchEncoder(checkpoint.model), spec, sources, SourceEncoder(spec))
        return torch.tensor([concepts.of(did) for did in dids]), torch.from_numpy(found)

    rows, found = embed(data.pools[2])
    emoji[rows // len(LANGUAGES)] = found
    rows, found = embed(data.pools[6])
    for language in range(1, len(LANGUAGES)):
        ours = rows % len(LANGUAGES) == language
        languages[language] = (found - emoji[rows // len(LANGUAGES)])[ours].mean(dim=0)
    return ConceptVectors(emoji, languages)


@contextmanager
def some_layers(checkpoint: Checkpoint, exit_rate: float, draw: random.Random) -> Iterator[None]:
    """Leave out layers of the decoder's second half by chance, or all of it."""
    language = checkpoint.model.language_model
    layers = language.layers
    half = len(layers) // 2
    exits = draw.random() < exit_rate
    language.layers = nn.ModuleList(
        layer
        for place, layer in enumerate(layers, start=1)
        if place <= half or (not exits and draw.random() >= MOST_DROPPED * (place - half) / half)
    )
    try:
        yield
    finally:
        language.layers = layers


def losses(
    checkpoint: Checkpoint, head: nn.Linear, vectors: ConceptVectors, step: Step
) -> dict[str, Tensor]:
    """The terms whose sum is minimised."""
    spec, concepts = checkpoint.spec, vectors()
    queries, candidates, words, names = (
        functional.normalize(ret_states(checkpoint.model, spec.collate(side.items)), dim=-1)
        for side in (step.queries, step.candidates, step.words, step.names)
    )
    # The vision tower learns sooner from its own tokens' mean than through eight layers.
    tokens = image_tokens(checkpoint.model, spec.collate(step.pictures.items))
    seen = functional.normalize(head(tokens.view(PICTURES, -1, tokens.shape[1]).mean(1)), dim=-1)
    return {
        "pairs": in_batch_loss(queries, candidates),
        "queries": concept_loss(queries, concepts, step.queries.owners),
        "candidates": concept_loss(candidates, concepts, step.candidates.owners),
        "words": concept_loss(words, concepts, step.words.owners),
        "names": concept_loss(names, concepts, step.names.owners),
        "pictures": concept_loss(seen, concepts, step.pictures.owners),
    }


def optimiser(model: nn.Module, head: nn.Linear, vectors: nn.Module) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices alone; embeddings and concepts learn faster."""
    slow = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed_tokens" in name]
    slow_ids = {id(p) for p in slow}
    fast = [p for p in model.parameters() if id(p) not in slow_ids]
    return torch.optim.AdamW(
        [
            {"params": [*fast, *head.parameters()], "weight_decay": 0.05, "base": 2e-3},
            {"params": slow, "weight_decay": 0.0, "base": 3e-3},
            {"params": list(vectors.parameters()), "weight_decay": 0.0, "base": 1e-2},
        ],
        betas=(0.9, 0.98),
        eps=1e-7,
    )


def judge(checkpoint: Checkpoint, data: Dataset, split: str) -> dict[str, object]:
    """Recall@5 per task, and recall@10 of text to image over the glyphs without a skin tone."""
    encoder, spec = TorchEncoder(checkpoint.model), checkpoint.spec
    recall = evaluate(encoder, spec, data, split)
    plain = evaluate(encoder, spec, plain_glyphs(data), split, k=10)[0]
    return {"mean": mean(recall), "task": recall, "text to plain glyph @10": plain}


@dataclass(frozen=True)
class Settings:
    """Of one training.

    Attributes:
        minutes: how long.
        pairs: of a query and an answer, in a step.
        peak: times the usual learning rates.
        exits: how often a step stops at half the depth.
        width: of the hidden states, where it starts from nothing.
        layers: of the decoder, likewise.
        seed: of everything that is drawn.
        start_from: a checkpoint to train further.
    """

    minutes: float = 90
    pairs: int = 64
    peak: float = 1.0
    exits: float = EXITS
    width: int = WIDTH
    layers: int = LAYERS
    seed: int = 0
    start_from: Path | None = None


def train(data: Dataset, out: Path, settings: Settings) -> None:
    """Train for a time, keep the curve of validation recall, and write the model in bf16."""
    start_from, seed = settings.start_from, settings.seed
    if start_from:
        checkpoint = load_model(str(start_from))
    else:
        checkpoint = new_checkpoint(data, seed, settings.width, settings.layers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nn.Module.to(checkpoint.model, device)
    torch.manual_seed(seed)
    vectors = first_vectors(checkpoint, data, start_from is not None).to(device)
    head = nn.Linear(checkpoint.dimension, checkpoint.dimension).to(device)
    adam = optimiser(checkpoint.model, head, vectors)
    draw = random.Random(seed)
    batches = Batches(data, checkpoint.spec, Concepts(len(vectors.emoji)), seed)
    checks = list(CHECKS)
    curve: list[dict[str, object]] = []
    start, steps = time.monotonic(), 0
    while checks:
        progress = (time.monotonic() - start) / (60 * settings.minutes)
        if progress >= checks[0]:
            checks.pop(0)
            curve.append({"progress": progress, "step": steps, **judge(checkpoint, data, "val")})
            print(json.dumps(curve[-1]), flush=True)
            save(checkpoint, out, torch.bfloat16)
            (out / "curve.json").write_text(json.dumps(curve, indent=1) + "\n")
            continue
        checkpoint.model.train()
        with some_layers(checkpoint, settings.exits, draw):
            terms = losses(checkpoint, head, vectors, batches.step(settings.pairs))
        for group in adam.param_groups:
            group["lr"] = group["base"] * settings.peak * rate(min(progress, 1.0))
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(sum(terms.values(), torch.zeros((), device=device)))
        nn.utils.clip_grad_norm_(checkpoint.model.parameters(), 1.0)
        adam.step()
        steps += 1
        if steps % 20 == 0:
            told = " ".join(f"{name} {term.item():.2f}" for name, term in terms.items())
            print(f"step {steps}, {(time.monotonic() - start) / 60:.1f} min: {told}", flush=True)
    print(json.dumps({"test": judge(checkpoint, data, "test")}))


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = Settings()
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--pairs", type=int, default=usual.pairs, help="a step's")
    parser.add_argument("--start-from", type=Path, help="a checkpoint to train further")
    parser.add_argument("--peak", type=float, default=1.0, help="times the usual learning rates")
    parser.add_argument("--exits", type=float, default=EXITS, help="rate of stops at half depth")
    parser.add_argument("--width", type=int, default=WIDTH, help="of a new model")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of a new model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("emoji"))
    parser.add_argument("--out", type=Path, default=Path("base"))
    given = vars(parser.parse_args())
    folder, out = given.pop("data"), given.pop("out")
    torch.set_flush_denormal(True)  # vanishing gradients would otherwise take microcode each
    if not folder.exists():
        write_emoji(folder)
    train(load_dataset(folder), out, Settings(**given))


if __name__ == "__main__":
    main()
