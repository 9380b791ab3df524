"""Turns of a benchmark: a process for each, so that its peak memory means something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from puma_edge.errors import PumaError

TURN_LIMIT = 1800  # seconds: a turn that takes longer hangs


@dataclass(frozen=True)
class Turns:
    """What each backend's turns gave, and why others gave nothing."""

    results: dict[str, list[dict[str, Any]]]
    missing: dict[str, str]


def run_turns(
    request: dict[str, Any],
    backends: Sequence[str],
    rounds: int,
    turn_done: Callable[[int, int], None],
) -> Turns:
    """Every backend in turn, `rounds` times; one that fails is left out from then on.

    Args:
        request: what is the same for all; see `bench_worker.serve`.
        backends: their names.
        rounds: turns of each.
        turn_done: told how many turns of how many are over.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in backends}
    missing: dict[str, str] = {}
    total, done = rounds * len(backends), 0
    for _ in range(rounds):
        for name in backends:
            done += 1
            if name not in missing:
                try:
                    results[name].append(run_turn({**request, "backend": name}))
                except PumaError as error:
                    missing[name] = str(error)
                    del results[name]
            turn_done(done, total)
    return Turns(results, missing)


def run_turn(request: dict[str, Any]) -> dict[str, Any]:
    """One backend's turn, in a process of its own; see `bench_worker.serve`.

    Raises:
        PumaError: the process failed, or took longer than `TURN_LIMIT`.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "puma_edge.bench_worker"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TURN_LIMIT,
            env={**os.environ, "OMP_NUM_THREADS": str(request["threads"])},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PumaError(
            f"the {request['backend']} process took more than {TURN_LIMIT} seconds; time fewer "
            "cases with --only, or for less with --seconds"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PumaError(f"the {request['backend']} process failed: {last}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
