"""What several commands take, and the exit code of a command that did part of its work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puma_edge.runtimes.engine import PrecisionChoice, Runtime

PARTIAL = 3  # exit code: done in part

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BundleFolder = Annotated[Path, typer.Option(help="The exported bundle.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; one a core by default.")]
Settings = Annotated[
    Path | None, typer.Option("--config", help="Settings file; ./puma-edge.toml if it is there.")
]
Keep = Annotated[
    int | None,
    typer.Option("--keep-layers", help="How many decoder layers stay: the first so many."),
]
WithLast = Annotated[
    bool | None,
    typer.Option(
        "--with-last/--first", help="Of k layers, the first k-1 and the last; or the first k."
    ),
]
Layers = Annotated[
    str | None, typer.Option("--layers", help="The layers that stay, by number: 0,1,2,7.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of all that is drawn.")]
RuntimeOption = Annotated[Runtime, typer.Option(help="Engine; auto takes what is there.")]
PrecisionOption = Annotated[PrecisionChoice, typer.Option(help="Arithmetic; auto: INT8 if there.")]
