"""Which of several training processes this is: what torchrun says in the environment."""

from __future__ import annotations

import os


def rank() -> int:
    """This process's number among torchrun's, 0 where there is one process alone."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many processes train together: torchrun's, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))
