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

Batches = dict[tuple[int, ...], Float32]


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
        vectors = self._array(f"{key}.npy")
        try:
            failed = {} if vectors is None else self.failed(key)
        except (OSError, ValueError):
            return None
        if vectors is None or len(vectors) != size - len(failed):
            return None
        return Shard(vectors, failed)

    def failed(self, key: str) -> dict[int, str]:
        """List what failed in a shard: place in its window -> reason."""
        values = json.loads((self.folder / f"{key}.json").read_bytes())
        return {int(place): str(reason) for place, reason in values.items()}

    def write_begun(self, key: str, done: Batches) -> None:
        """Keep the batches of a window that was stopped: places in it -> their rows."""
        places = json.dumps(list(done))
        write_bytes(self.folder / f"{key}.begun.json", places.encode())
        write_array(self.folder / f"{key}.begun.npy", np.concatenate(list(done.values())))

    def read_begun(self, key: str) -> Batches:
        """Take up the batches of a window that was stopped; none where none are whole.

        A batch is known by all its places: what was computed in other company has other bytes.
        """
        rows = self._array(f"{key}.begun.npy")
        if rows is None:
            return {}
        try:
            places = json.loads((self.folder / f"{key}.begun.json").read_bytes())
            if sum(len(batch) for batch in places) != len(rows):
                return {}
            ends = np.cumsum([len(batch) for batch in places])[:-1]
            return dict(zip(map(tuple, places), np.split(rows, ends), strict=True))
        except (OSError, ValueError, TypeError):
            return {}

    def _array(self, name: str) -> Float32 | None:
        """Read rows of this store's dimension; None where there are none, or damaged ones.

        A power cut can leave a damaged file; what it held is computed again.
        """
        try:
            with (self.folder / name).open("rb") as file:
                rows: Float32 = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = rows.dtype == np.float32 and rows.ndim == 2 and rows.shape[1] == self._dimension
        return rows if fits else None
