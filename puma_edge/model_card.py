"""What goes with a merged model: a README, and what sentence-transformers opens it by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from puma_edge.data import TASK_NAMES
from puma_edge.run_folder import METRICS, SETTINGS

ROWS = {"teacher": "teacher, all layers", "cut": "cut, untrained", "student": "this model"}
MODULE = "puma_edge.sentence_transformer.PumaModule"
USE = """## Use

    puma-edge export {name} --int8
    puma-edge embed corpus/ --out index.npy
    puma-edge search index.npy "a fox"
"""


def write_card(run: Path, merged: Path, name: str) -> None:
    """Write `README.md` into a merged model's folder, called `name`, from its run's report."""
    settings = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
    metrics = json.loads((run / METRICS).read_text(encoding="utf-8"))
    card = json.loads((merged / "config.json").read_text(encoding="utf-8"))["puma"]
    layers = f"{len(card['kept_layers'])} of {card['total_layers']} decoder layers"
    head = ["---", "tags: [multimodal-embedding, puma-edge]", "---"]
    head += [f"# {name}", "", f"A multimodal embedder: {layers} of {card['base_model']},"]
    head += ["trained with layer-pruned self-distillation and MAC-Loss (PUMA, arXiv 2507.08064)."]
    parts = ["\n".join(head), _scores(metrics), _settings(settings), USE.format(name=name)]
    (merged / "README.md").write_text("\n\n".join(filter(None, parts)), encoding="utf-8")


def write_modules(folder: Path) -> None:
    """Write what makes sentence-transformers open a merged folder by its name."""
    instructions = json.loads((folder / "config.json").read_text())["puma"]["instructions"]
    modules = [{"idx": 0, "name": "0", "path": "", "type": MODULE}]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2), encoding="utf-8")
    prompts = {"query": instructions["text"], "document": ""}
    settings = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _scores(metrics: dict[str, Any]) -> str:
    recall = metrics["recall"]
    if not recall:
        return ""
    tasks = sorted(next(iter(recall.values()))["task"], key=int)
    names = [TASK_NAMES.get(int(task), task) for task in tasks]
    lines = [f"## Recall@{metrics['recall_at']}, test queries", ""]
    lines += ["| | " + " | ".join(names) + " | mean |", "|---" * (len(tasks) + 2) + "|"]
    for name, row in recall.items():
        cells = [f"{row['task'][task]:.3f}" for task in tasks]
        lines.append(f"| {ROWS.get(name, name)} | " + " | ".join(cells) + f" | {row['mean']:.3f} |")
    return "\n".join(lines)


def _settings(settings: dict[str, Any]) -> str:
    lines = ["## Settings", ""]
    for name, value in settings.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        lines.append(f"- {name}: {value}")
    return "\n".join(lines)
