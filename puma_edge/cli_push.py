"""The command that hands an index to a vector database."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from puma_edge import report_index
from puma_edge.cli_options import Json
from puma_edge.runtimes.store import Address, Kind


def push(
    index: Annotated[Path, typer.Argument(help="An index written by embed.")],
    url: Annotated[
        str, typer.Argument(help="http://HOST:PORT; or a folder (Milvus: a file ending in .db).")
    ],
    to: Annotated[Kind, typer.Option(help="Which database.")],
    collection: Annotated[
        str | None, typer.Option(help="Collection or table; named like the index by default.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Rows sent at once; the database's own.")
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete what is there and not in the index.")
    ] = False,
    check: Annotated[int, typer.Option(help="Rows looked for afterwards; 0 for none.")] = 20,
    api_key: Annotated[
        str | None, typer.Option(envvar="PUMA_EDGE_API_KEY", help="Better given as the variable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Push an index to Qdrant, LanceDB or Milvus; a push that was cut off goes on.

    Every row becomes a point with its id, path, modality, hash, text and metadata. Another model's
    collection is refused. Afterwards some rows are looked for, and the hits compared with exact
    search.

    Examples:
    - `puma-edge push index.npy --to qdrant http://localhost:6333`
    - `puma-edge push index.npy --to lancedb lance/ --collection photos`
    """
    from puma_edge.progress import Progress
    from puma_edge.runtimes.index import Index
    from puma_edge.runtimes.push import PushSettings
    from puma_edge.runtimes.push import push as run
    from puma_edge.runtimes.store import open_store

    opened = Index.open(index)
    name = collection or re.sub(r"\W", "_", index.stem, flags=re.ASCII)
    address = Address(url, name, api_key)
    store = open_store(to, address)
    try:
        with Progress(f"pushing {index}", len(opened)) as shown:
            done = run(
                opened,
                store,
                PushSettings(batch, prune, check),
                lambda count, _: shown.update(count, "rows"),
            )
    finally:
        store.close()
    report_index.show_push(done, address, json_)
