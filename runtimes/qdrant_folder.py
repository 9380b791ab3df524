"""Qdrant's local mode keeps points as pickles: nothing but points may be unpickled."""

from __future__ import annotations

import io
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

from puma_edge.errors import PumaError

_POINT = ("qdrant_client.http.models.models", "PointStruct")


class _Inert:
    """Stands for a point; unpickled into this, nothing runs."""


class _Checked(pickle.Unpickler):
    """Refuses every name but the point's: only what a pickle names can be called."""

    def find_class(self, module: str, name: str) -> type:
        """Give the stand-in for a point."""
        if (module, name) != _POINT:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _Inert


def check_folder(folder: Path) -> None:
    """Look through a folder of Qdrant's local mode before qdrant-client opens it.

    Raises:
        PumaError: it holds a pickle of something else than a point, which could run a program.

    """
    for path in sorted(folder.glob("collection/*/storage.sqlite")):
        try:
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as base:
                for (value,) in base.execute("SELECT point FROM points"):
                    _Checked(io.BytesIO(value)).load()
        # Bytes that are no pickle raise almost anything.
        except Exception as error:
            raise PumaError(
                f"{path} holds something else than Qdrant's points ({error}); opening it could "
                "run a program, so it is left alone: name another folder"
            ) from None
