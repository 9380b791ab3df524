"""Errors a user can act on: one line saying what was given, what was expected and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class PumaError(Exception):
    """The command failed; the message is one line for the user. Exit code 1."""

    exit_code = 1


class UsageError(PumaError):
    """The command was called with settings that cannot work. Exit code 2."""

    exit_code = 2


class InputError(PumaError):
    """One input (an image, a text, a line) cannot be read; `embed` quarantines it and goes on."""


class MissingExtraError(PumaError):
    """A package of an optional extra is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra of puma-edge brings it.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed, and this needs it: pip install 'puma-edge[{extra}]'"
        ) from None
