"""What each of PUMA's ingredients brings: the same cut, trained with more and more of them.

    python benchmarks/reproduction.py --out ablation/

Arms: the full teacher, the cut without training, + InfoNCE, + distillation before it, + MAC-Loss in
its place; and apart from the paper, + Matryoshka, and many small steps of MAC-Loss beside as many
in which the teacher's states are learnt, on pairs of all tasks. Runs that are done are not done
again, so the command goes on where it was stopped; rows of the table that have no runs yet say so.
`--report` only prints what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from puma_edge.config import StageConfig, TrainConfig
from puma_edge.data import TASK_NAMES, Dataset
from puma_edge.evaluate import by_task, embed_split, mean, rank
from puma_edge.folders import replace_folder
from puma_edge.frozen_vision import FrozenVision
from puma_edge.model import Checkpoint, choose_layers, load, prune
from puma_edge.run_folder import open_run
from puma_edge.runtimes.files import write_bytes
from puma_edge.sample import recipe_file
from puma_edge.settings_file import read_config
from puma_edge.torch_encoder import TorchEncoder
from puma_edge.train import MERGED_1, open_data, open_model, train_from

SEEDS = {4: 5, 2: 3, 3: 3, 6: 3}  # layers kept -> how many seeds
SHORT = 4  # embeddings are also cut to one number in so many


# PUMA's stage 1, scaled to the sample: text pairs alone, its states weighed as in the paper.
PUMA = StageConfig(batch=64, max_steps=40, lr=3e-4, first_layer_lr=1.5e-4, lora_r=16, lora_alpha=32)
# Many small steps, which is what the sample is short of; the two arms that have them compare
# what the teacher's states and what labels teach, on the same number of pairs.
LONG = StageConfig(batch=32, max_steps=1500, lr=2e-3, lora_r=64, lora_alpha=64, lora_dropout=0.0)
STATES = replace(LONG, labels=0.0, states=1.0, text_only=False)
# As many inputs as steps ask for, where the training queries would come again and again.
RECOMBINED = replace(STATES, max_steps=9000, lr=1.5e-3, lora_r=128, lora_alpha=128, recombine=True)


@dataclass(frozen=True)
class Arm:
    """What a student is trained with.

    Attributes:
        before: the arm it is compared with.
        stage1: None to leave it out.
        stage2: None for the configuration's.
        mac: stage 2 has MAC-Loss, else InfoNCE.
        skip2: there is no stage 2.
        matryoshka: embeddings cut to an eighth to a half are trained too.
        layers: at which depths it is tried, empty for all.
    """

    before: str
    stage1: StageConfig | None = None
    stage2: StageConfig | None = None
    mac: bool = True
    skip2: bool = False
    matryoshka: bool = False
    layers: tuple[int, ...] = ()


TEACHER, CUT = "teacher", "cut, untrained"
DEEP_CUTS = (4, 2, 3)  # six of eight layers have nothing to win back
ARMS = {
    "InfoNCE": Arm(CUT, mac=False),
    "distillation, InfoNCE": Arm("InfoNCE", PUMA, mac=False),
    "distillation, MAC-Loss": Arm("distillation, InfoNCE", PUMA),
    "distillation, MAC-Loss, Matryoshka": Arm(
        "distillation, MAC-Loss", PUMA, matryoshka=True, layers=(4,)
    ),
    "MAC-Loss, 1500 steps": Arm(CUT, stage2=LONG, layers=DEEP_CUTS),
    "states of all tasks, 1500 steps": Arm(
        "MAC-Loss, 1500 steps", STATES, skip2=True, layers=DEEP_CUTS
    ),
    "states of all tasks, then MAC-Loss": Arm(
        "states of all tasks, 1500 steps", STATES, layers=DEEP_CUTS
    ),
    "states of recombined inputs, 9000 steps": Arm(
        "states of all tasks, 1500 steps", RECOMBINED, skip2=True, layers=DEEP_CUTS
    ),
}
DRAWS = 10_000  # of the randomisation test


@dataclass(frozen=True)
class Result:
    """One trained or untrained model on the test queries.

    Attributes:
        layers: decoder layers it has.
        arm: what it was trained with.
        seed: of its training.
        hits: task -> 1 or 0 for each query, recall@5.
        short: mean over the tasks of recall@5 with embeddings cut to a `SHORT`th.
    """

    layers: int
    arm: str
    seed: int
    hits: dict[int, list[float]]
    short: float

    @property
    def mean(self) -> float:
        """Mean over the tasks of their recall."""
        return float(np.mean([np.mean(many) for many in self.hits.values()]))


class Proof:
    """The folder of results and the runs behind them."""

    def __init__(self, folder: Path, settings: TrainConfig) -> None:
        """Keep everything under `folder`."""
        self._folder, self._settings = folder, settings
        self._vision = FrozenVision()

    def results(self) -> Iterator[Result]:
        """What is there, by layers, arm and seed."""
        for path in sorted(self._folder.glob("k*.json")):
            row = json.loads(path.read_text(encoding="utf-8"))
            row["hits"] = {int(task): many for task, many in row["hits"].items()}
            yield Result(**row)

    def untrained(self, data: Dataset, layers: int) -> None:
        """The first `layers` of the base as they are: all of them are the teacher."""
        checkpoint = open_model(self._settings.model)
        total = len(checkpoint.card.kept_layers)
        arm = TEACHER if layers == total else CUT
        if not self._path(layers, arm, 0).is_file():
            cut = prune(checkpoint, choose_layers(total, layers))
            self._judge(cut, data, layers, arm, 0)

    def trained(self, data: Dataset, layers: int, arm: str, seed: int) -> None:
        """One run of one arm."""
        if self._path(layers, arm, seed).is_file():
            return
        checkpoint = open_model(self._settings.model)
        shorter = tuple(checkpoint.dimension // part for part in (2, 4, 8))
        run_folder = self._folder / "runs" / self._path(layers, arm, seed).stem
        made_by = ARMS[arm]
        second = made_by.stage2 or self._settings.stage2
        second = second if made_by.mac else replace(second, decay=0.0)
        settings = replace(
            self._settings,
            out=str(run_folder),
            keep_layers=layers,
            seed=seed,
            evaluate=False,
            stage1=made_by.stage1 or replace(PUMA, epochs=0.0),
            stage2=replace(second, epochs=0.0) if made_by.skip2 else second,
            matryoshka=shorter if made_by.matryoshka else (),
        )
        if not (run_folder / "metrics.json").is_file():
            with open_run(settings) as run:
                self._share_stage1(run.folder, layers, arm, seed)
                train_from(checkpoint, data, settings, run)
        self._judge(load(str(run_folder / "merged")), data, layers, arm, seed)

    def _share_stage1(self, folder: Path, layers: int, arm: str, seed: int) -> None:
        """Start from what another arm has distilled from the same seed: it would be the same."""
        stage1 = ARMS[arm].stage1
        if stage1 is None or (folder / MERGED_1).is_dir():
            return
        for other in ARMS:
            found = self._folder / "runs" / self._path(layers, other, seed).stem / MERGED_1
            if ARMS[other].stage1 == stage1 and found.is_dir():
                with replace_folder(folder / MERGED_1) as work:
                    shutil.copytree(found, work, dirs_exist_ok=True)
                return

    def _judge(
        self, checkpoint: Checkpoint, data: Dataset, layers: int, arm: str, seed: int
    ) -> None:
        nn.Module.to(checkpoint.model, "cuda" if torch.cuda.is_available() else "cpu")
        encoder = TorchEncoder(checkpoint.model, self._vision)
        split = embed_split(encoder, checkpoint.spec, data, "test")
        hits = {score.task: score.recall.astype(int).tolist() for score in rank(split)}
        short = mean(by_task(rank(split, dimension=checkpoint.dimension // SHORT)))
        row = {"layers": layers, "arm": arm, "seed": seed, "hits": hits, "short": short}
        write_bytes(self._path(layers, arm, seed), (json.dumps(row) + "\n").encode())

    def _path(self, layers: int, arm: str, seed: int) -> Path:
        name = arm.lower().replace(", ", "-").replace(" ", "-")
        return self._folder / f"k{layers}-{name}-seed{seed}.json"


def p_value(first: list[Result], second: list[Result], seed: int = 0) -> float:
    """Paired randomisation test of two arms, two-sided.

    Each query's hits are averaged over the arm's seeds, and every task weighs the same, as in the
    mean. Under the null hypothesis a query's difference is as likely to have the other sign.
    """
    parts: list[NDArray[np.float64]] = []
    for task in first[0].hits:
        one, two = (
            np.mean([result.hits[task] for result in arm], axis=0) for arm in (first, second)
        )
        parts.append((two - one) / len(one) / len(first[0].hits))
    change = np.concatenate(parts)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, len(change)))
    as_far = np.abs(signs @ change) >= abs(change.sum()) - 1e-12
    return float((1 + as_far.sum()) / (1 + DRAWS))


def table(results: list[Result], seeds: dict[int, int]) -> str:
    """Markdown: a row for each arm at each depth, missing ones named."""
    found: dict[tuple[int, str], list[Result]] = {}
    for one in results:
        found.setdefault((one.layers, one.arm), []).append(one)
    teacher = next((one for one in results if one.arm == TEACHER), None)
    tasks = list(next(iter(results)).hits) if results else []
    names = [TASK_NAMES.get(task, str(task)) for task in tasks]
    head = ["layers", "trained with", "seeds", "mean recall@5", "of the teacher", "p"]
    head += [f"at 1/{SHORT} of the numbers", *names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

    def add(layers: int, arm: str, before: str = "", wanted: int = 0) -> None:
        rows = found.get((layers, arm), [])
        if not rows:
            lines.append(f"| {layers} | {arm} | 0 of {wanted} | missing |" + " |" * (len(head) - 4))
            return
        means = np.array([row.mean for row in rows])
        spread = f" ± {means.std(ddof=1):.3f}" if len(means) > 1 else ""
        share = f"{means.mean() / teacher.mean:.1%}" if teacher else ""
        earlier = found.get((layers, before), [])
        p = f"{p_value(earlier, rows):.4f}" if earlier else ""
        short = f"{np.mean([row.short for row in rows]):.3f}"
        each = [f"{np.mean([np.mean(row.hits[task]) for row in rows]):.3f}" for task in tasks]
        count = f"{len(rows)} of {wanted}" if wanted else ""
        cells = [str(layers), arm, count, f"{means.mean():.3f}{spread}", share, p, short, *each]
        lines.append("| " + " | ".join(cells) + " |")

    if teacher:
        add(teacher.layers, TEACHER)
    for layers, count in seeds.items():
        add(layers, CUT)
        for name, arm in _arms(layers):
            add(layers, name, arm.before, count)
    return "\n".join(lines)


def _arms(layers: int) -> Iterator[tuple[str, Arm]]:
    """Those that are tried at a depth."""
    return ((name, arm) for name, arm in ARMS.items() if layers in (arm.layers or (layers,)))


def main() -> None:
    """Do what is missing, cheapest to tell first, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("ablation"))
    parser.add_argument("--config", type=Path, default=recipe_file(), help="settings of all arms")
    parser.add_argument("--model", help="another base than the configuration's")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--layers", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--seeds", type=int, help="instead of 5 for 4 layers and 3 for others")
    parser.add_argument("--part", default="1/1", help="2/3: the second third of the runs")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--report", action="store_true", help="print what is there")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    settings = read_config("train", TrainConfig, args.config)
    settings = replace(settings, model=args.model or settings.model)
    proof = Proof(args.out, settings)
    seeds = {layers: args.seeds or SEEDS.get(layers, 3) for layers in args.layers}
    if not args.report:
        data = open_data(settings.data)
        for layers in (len(open_model(settings.model).card.kept_layers), *seeds):
            proof.untrained(data, layers)
        runs = [
            (layers, arm, seed)
            for seed in range(max(seeds.values()))
            for layers, count in seeds.items()
            for arm, _ in _arms(layers)
            if seed < count and arm in args.arms
        ]
        part, parts = map(int, args.part.split("/"))
        for layers, arm, seed in runs[part - 1 :: parts]:
            proof.trained(data, layers, arm, seed)
    print(table(list(proof.results()), seeds))


if __name__ == "__main__":
    main()
