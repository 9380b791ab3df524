"""The emoji set and the base model that ship with puma-edge, so that everything runs offline."""

from __future__ import annotations

import hashlib
import os
from importlib import resources
from pathlib import Path

from puma_edge.folders import replace_folder
from puma_edge.progress import Progress
from puma_edge.sample.emoji import load_emoji
from puma_edge.sample.folder import write_corpus, write_emoji


def base_folder() -> Path:
    """The sample base model's folder."""
    return Path(str(resources.files("puma_edge.sample").joinpath("base")))


def recipe_file() -> Path:
    """The settings `puma-edge train` uses when it is given neither a model nor data."""
    return Path(str(resources.files("puma_edge.sample").joinpath("puma-edge.toml")))


def emoji_folder() -> Path:
    """The emoji set as an M-BEIR folder, written to the user's cache when it is first needed."""
    parts = resources.files("puma_edge.sample")
    digest = hashlib.sha256()
    for name in ("emoji.py", "folder.py", "emoji.json.gz", "glyphs.zip"):
        digest.update(parts.joinpath(name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puma-edge"
    folder = cache / f"emoji-{digest.hexdigest()[:12]}"
    if not folder.is_dir():
        title = "writing the emoji set, once"
        with Progress(title, len(load_emoji())) as progress, replace_folder(folder) as work:
            write_emoji(work, progress.update)
    return folder


__all__ = ["base_folder", "emoji_folder", "load_emoji", "recipe_file", "write_corpus"]
