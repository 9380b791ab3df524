"""Qdrant's local mode keeps points as pickles: nothing but points may be unpickled."""

from __future__ import annotations

import io
import json
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

from puma_edge.errors import PumaError

_POINT = ("qdrant_client.http.models.models", "PointStruct")
# All that qdrant-client makes: a view, an index or a virtual table could show the check other
# points than the client reads.
_TABLES = [
    ("table", "points", "CREATE TABLE points (id TEXT PRIMARY KEY, point BLOB)"),
    ("index", "sqlite_autoindex_points_1", None),
]


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
    # New collections are made in `collection` too, and read what lies there.
    for path in (folder / "meta.json", *sorted(folder.glob("collection/*/storage.sqlite"))):
        try:
            if path.suffix == ".json":
                _check_names(path)
            else:
                _check_points(path)
        # Bytes that are no pickle raise almost anything.
        except Exception as error:
            raise PumaError(
                f"{path} holds something else than Qdrant's points ({error}); opening it could "
                "run a program, so it is left alone: name another folder"
            ) from None


def _check_names(path: Path) -> None:
    """See that every collection lies in a folder of its own name, where its points are looked at.

    Raises:
        Exception: one does not, or the file is damaged.

    """
    if not path.exists():
        return
    # In whatever encoding the system has, as qdrant-client reads it.
    for name in json.loads(path.read_text())["collections"]:
        if name in ("", ".", "..") or "/" in name:
            raise ValueError(f"a collection called {name!r}")


def _check_points(path: Path) -> None:
    """See that a database holds a table of points, and nothing else.

    Raises:
        Exception: it does not.

    """
    # Not read-only: what a kill left half written is rolled back, as the client would.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as base:
        tables = base.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        if tables not in ([], _TABLES):
            raise ValueError("other tables than its own")
        for (value,) in base.execute("SELECT point FROM points") if tables else ():
            _Checked(io.BytesIO(value)).load()
