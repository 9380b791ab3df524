"""Ray: the windows of one run, embedded by actors on the machines of a cluster.

Plain actors and not Ray Data: a window is a task already, and its shard is wanted the moment it is
done, so that a kill loses two windows an actor and no more; Ray Data would pack rows into blocks,
hold finished ones back until a block is full, and bring some gigabytes of workers for it.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puma_edge.errors import PumaError, UsageError, require
from puma_edge.inputs import Batch, Float32
from puma_edge.runtimes.documents import Document
from puma_edge.runtimes.fleet import Recipe
from puma_edge.runtimes.ray_worker import About, Member, Worker
from puma_edge.runtimes.run import Stamp
from puma_edge.runtimes.shards import Shard

KNOCK_SECONDS = 10
LOCAL_STORE_BYTES = 256 * 2**20  # shards wait here for the driver; beyond it Ray uses the disk
_AHEAD = 2  # windows an actor has: one is read and decoded while the other is encoded
_RETRIES = 3


@dataclass(frozen=True)
class RaySettings:
    """How to spread a run.

    Attributes:
        address: a cluster's address, "auto" for the one this machine is part of, None to start
            Ray on this machine for the run alone.
        actors: how many encoders; None for one a machine.
        threads: CPU threads of each; None for an equal share of the CPUs.

    """

    address: str | None = None
    actors: int | None = None
    threads: int | None = None


class RayFleet:
    """Actors of a Ray cluster that hold the same model; an `Encoder` and a `Fleet`.

    Attributes:
        size: how many actors there are.
        threads: CPU threads of each.

    """

    def __init__(self, opener: Callable[[int], Member], settings: RaySettings) -> None:
        """Connect to the cluster, or start one here, and open the model in every actor.

        Raises:
            MissingExtraError: Ray is not installed.
            UsageError: more actors or threads than the cluster has CPUs.
            PumaError: no cluster there, or the actors hold different models.

        """
        for name, value in (("actors", settings.actors), ("threads", settings.threads)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} {value}: give 1 or more")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody outside
        self._ray: Any = require("ray", "ray")
        _start(self._ray, settings.address)
        try:
            self.size, self.threads = _share(_cpus(self._ray), settings)
            self._actors = self._make(opener)
            self._about = self._agree()
        except BaseException:
            self.close()
            raise

    @property
    def provider(self) -> str:
        """The engine and the device that every actor runs on."""
        return self._about.provider

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self._about.dimension

    @property
    def stamp(self) -> Stamp:
        """The model that every actor holds."""
        return self._about.stamp

    def encode(self, batch: Batch) -> Float32:
        """Embed one batch in the first actor: [B, dimension]."""
        result: Float32 = self._get(self._actors[0].encode.remote(batch))
        return result

    def shards(
        self, root: Path, windows: Sequence[Sequence[Document]], recipe: Recipe
    ) -> Generator[tuple[int, Shard], None, None]:
        """Embed each window; at most two an actor are under way, and two shards an actor wait.

        Raises:
            PumaError: an actor cannot go on, or its machine went and none took its place.

        """
        place, waiting = os.path.abspath(root), deque(enumerate(windows))
        flying: dict[Any, tuple[int, Any]] = {}

        def send(actor: Any) -> None:
            if waiting:
                number, documents = waiting.popleft()
                flying[actor.shard.remote(place, documents, recipe)] = (number, actor)

        for actor in self._actors * _AHEAD:
            send(actor)
        while flying:
            (done,), _ = self._ray.wait(list(flying), num_returns=1)
            number, actor = flying.pop(done)
            shard: Shard = self._get(done)
            send(actor)
            yield number, shard

    def close(self) -> None:
        """Let the cluster go, or end the one that was started."""
        self._ray.shutdown()

    def _make(self, opener: Callable[[int], Member]) -> list[Any]:
        remote = self._ray.remote(
            num_cpus=self.threads,
            max_restarts=_RETRIES,
            max_task_retries=_RETRIES,
            max_concurrency=_AHEAD,
            scheduling_strategy="SPREAD",
        )(Worker)
        return [remote.remote(opener, self.threads) for _ in range(self.size)]

    def _agree(self) -> About:
        """Check that all actors hold the same model: windows of two must not stand side by side."""
        first, *others = [self._get(actor.about.remote()) for actor in self._actors]
        for other in others:
            if other != first:
                raise PumaError(
                    f"the machines embed differently ({first} and {other}); copy the same bundle "
                    "to the same place on each, and install the same version of puma-edge"
                )
        about: About = first
        return about

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, PumaError):
                raise type(error.cause)(str(error.cause)) from None
            raise
        except errors.RayActorError as error:
            words = " ".join(str(error).split())[:300]
            raise PumaError(
                f"an actor ended and did not come back ({words}); what is done is kept, and the "
                "same command goes on"
            ) from error


@contextmanager
def open_fleet(opener: Callable[[int], Member], settings: RaySettings) -> Iterator[RayFleet]:
    """Open a fleet for a while; see `RayFleet`."""
    fleet = RayFleet(opener, settings)
    try:
        yield fleet
    finally:
        fleet.close()


def _start(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        where, hint = "on this machine", "is it very busy, or /dev/shm full?"
        # "local": never a cluster that happens to be named in the environment.
        options: dict[str, Any] = {"address": "local", "num_cpus": len(os.sched_getaffinity(0))}
        quiet |= {"object_store_memory": LOCAL_STORE_BYTES, "include_dashboard": False}
    else:
        where, hint = f"at {address}", "start it with: ray start --head, or leave out --ray-address"
        options = {"address": address}
    try:
        if address is not None:
            _knock(address)
        ray.init(**options, **quiet)
    # Ray raises a plain Exception where a part of it does not start.
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        raise PumaError(f"no Ray cluster {where} ({words}); {hint}") from error


def _knock(address: str) -> None:
    """See that somebody listens at HOST:PORT; Ray itself would try for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        with socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS):
            pass


def _cpus(ray: Any) -> list[int]:
    """CPUs of each machine of the cluster."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [int(node["Resources"].get("CPU", 0)) for node in alive]


def _share(cpus: Sequence[int], settings: RaySettings) -> tuple[int, int]:
    """How many actors, and how many threads each."""
    machines = [count for count in cpus if count]
    if not machines:
        raise PumaError("the Ray cluster has no CPU to give; start it with --num-cpus")
    actors = settings.actors or len(machines)
    # None larger than the smallest machine: an actor lives on one.
    threads = settings.threads or max(1, min(sum(machines) // actors, *machines))
    if actors > sum(count // threads for count in machines):
        raise UsageError(
            f"{actors} actors of {threads} threads asked for, and the Ray cluster has "
            f"{', '.join(map(str, machines))} CPUs; give fewer --actors or --threads"
        )
    return actors, threads
