"""Finished pieces of a run, named by what they hold, so that another run can go on from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from puma_edge.inputs import Float32
from puma_edge.runtimes.files import write_array, write_bytes

SHARD_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """The result of one window.

    Attributes:
        vectors: [n, d], the embeddings of what did not fail, in the window's order.
        failed: place in the window -> why there is no embedding.

    """

    vectors: Float32
    failed: Mapping[int, str]


class ShardStore:
    """The shards of a run, in its `.partial` folder.

    A shard's name is a hash of the model, the settings and the contents of its window. A run that
    finds a name takes the shard; one of another model or corpus never does, and leaves it there.
    """

    def __init__(self, folder: Path, dimension: int, identity: str) -> None:
        """Keep shards of `dimension` numbers a row in `folder`, for this model and settings."""
        self.folder = folder
        self._dimension = dimension
        self._identity = f"{SHARD_VERSION} {identity}"

    def key(self, contents: Sequence[str]) -> str:
        """Name the shard of a window of these content hashes."""
        digest = hashlib.blake2b(self._identity.encode(), digest_size=16)
        for content in contents:
            digest.update(content.encode())
        return digest.hexdigest()

    def write(self, key: str, shard: Shard) -> None:
        """Keep a shard. Its .npy comes last: where that is, the shard is whole."""
        failed = {str(place): reason for place, reason in shard.failed.items()}
        write_bytes(self.folder / f"{key}.json", json.dumps(failed).encode())
        write_array(self.folder / f"{key}.npy", shard.vectors)

    def read(self, key: str, size: int) -> Shard | None:
        """Take up the shard of a window of `size` documents; None where there is no whole one."""
        path = self.folder / f"{key}.npy"
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                vectors = np.lib.format.read_array(file, allow_pickle=False)
            failed = self.failed(key)
        # A power cut can leave a damaged file; it is computed again.
        except (OSError, ValueError, EOFError):
            return None
        if vectors.dtype != np.float32 or vectors.shape != (size - len(failed), self._dimension):
            return None
        return Shard(vectors, failed)

    def failed(self, key: str) -> dict[int, str]:
        """List what failed in a shard: place in its window -> reason."""
        values = json.loads((self.folder / f"{key}.json").read_bytes())
        return {int(place): str(reason) for place, reason in values.items()}
