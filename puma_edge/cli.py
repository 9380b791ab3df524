"""The command line: parse, one frozen config, one library call, print."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from puma_edge import cli_build, cli_measure, cli_push, cli_sweep, cli_use, report
from puma_edge.cli_options import Json
from puma_edge.errors import PumaError, UsageError
from puma_edge.settings_file import check_names, read_table

STOPPED = 130  # exit code after Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, shrink and run a layer-pruned multimodal embedder at the edge.\n\n"
    "`puma-edge demo` runs the whole path on a sample, `puma-edge doctor` says what is installed.",
)


def sample(
    folder: Annotated[Path, typer.Argument(help="Folder to write: a new one, or an empty one.")],
    json_: Json = False,
) -> None:
    """Write a folder of pictures and texts to play with.

    Example: `puma-edge sample corpus/`
    """
    from puma_edge.folders import replace_folder
    from puma_edge.sample import write_corpus

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty; give a new folder")
    with replace_folder(folder) as work:
        counts = write_corpus(work)
    report.show({"folder": str(folder), **counts}, json_)


def info(
    path: Annotated[Path, typer.Argument(help="A bundle, an index or a run.")],
    json_: Json = False,
) -> None:
    """Say what a bundle, an index or a run is.

    Examples:
    - `puma-edge info bundle/`
    - `puma-edge info index.npy`
    - `puma-edge info runs/2026-01-31_120000`
    """
    from puma_edge.about import describe

    report.show(describe(path), json_)


def doctor(json_: Json = False) -> None:
    """Say which engines and packages are here, and what to install for the others.

    Example: `puma-edge doctor`
    """
    from puma_edge.about import examine

    report.show(examine(), json_)


def demo(
    out: Annotated[Path, typer.Option(help="Folder to work in, which must be new.")] = Path("demo"),
) -> None:
    """Run the whole path on the sample: train, export, embed, search, bench.

    Example: `puma-edge demo --out demo/`
    """
    from puma_edge.demo import run_demo

    run_demo(out)


# In the order in which they are used, and --help lists them.
COMMANDS: dict[str, Callable[..., None]] = {
    "sample": sample,
    "train": cli_build.train,
    "merge": cli_build.merge,
    "export": cli_build.export,
    "embed": cli_use.embed,
    "search": cli_use.search,
    "convert": cli_use.convert,
    "push": cli_push.push,
    "bench": cli_measure.bench,
    "eval": cli_measure.evaluate,
    "check": cli_measure.check,
    "sweep": cli_sweep.sweep,
    "info": info,
    "doctor": doctor,
    "demo": demo,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
# These read their tables themselves, which hold more than their options.
WHOLE_TABLES = ("train", "export", "search")


@app.callback()
def settings(context: typer.Context) -> None:
    """Let a command's table in `puma-edge.toml` stand for the options that are not given."""
    name = context.invoked_subcommand
    if name is None or name in WHOLE_TABLES:
        return
    group = context.command
    assert isinstance(group, TyperGroup)
    options = {
        option.removeprefix("--").replace("-", "_"): parameter.name
        for parameter in group.commands[name].params
        for option in parameter.opts
        if option.startswith("--")
    }
    values = read_table(name)
    check_names(values, options, "setting", f"[{name}]")
    context.default_map = {name: {options[key]: value for key, value in values.items()}}


def main() -> None:
    """Run the command line; every foreseeable failure is one line and an exit code."""
    # A file's name need not be UTF-8; stderr is as lenient from the start.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    # Of pictures too large, decoding says so itself; Pillow warns from half of that on.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    try:
        app()
    except PumaError as error:
        report.say(f"puma-edge: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        _say_what_goes_on()
        raise SystemExit(STOPPED) from None
    except SystemExit as error:  # Typer turns Ctrl-C within a command into this
        if error.code == STOPPED:
            _say_what_goes_on()
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        report.say(f"puma-edge: {error.strerror}: {error.filename or 'disk'}")
        raise SystemExit(1) from None
    finally:
        _quiet_broken_pipe()


def _say_what_goes_on() -> None:
    line = shlex.join(["puma-edge", *sys.argv[1:]])
    report.say(f"puma-edge: stopped; this goes on, or starts again: {line}")


def _quiet_broken_pipe() -> None:
    """`puma-edge search ... | head -1` closes stdout early; that is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
