"""The engine behind `embed`: in this process, or on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from puma_edge.bundle import Bundle, Precision
from puma_edge.errors import PumaError, UsageError
from puma_edge.runtimes.engine import Engine, PrecisionChoice, Runtime, Spread, open_engine


@dataclass(frozen=True)
class SpreadConfig:
    """What embeds, and where.

    Attributes:
        spread: in this process, or with Ray.
        ray_address: the cluster; None starts Ray on this machine.
        actors: encoders on the cluster, None for one a machine.
        runtime: the engine.
        precision: its arithmetic.
        threads: CPU threads of each encoder, None for all there are.
    """

    spread: Spread = Spread.LOCAL
    ray_address: str | None = None
    actors: int | None = None
    runtime: Runtime = Runtime.AUTO
    precision: PrecisionChoice = PrecisionChoice.AUTO
    threads: int | None = None


@contextmanager
def open_spread(bundle: Bundle, config: SpreadConfig) -> Iterator[Engine]:
    """Open a bundle for a run, and let go of the machines after it.

    Raises:
        UsageError: settings of a cluster without --engine ray, or more than it has.
        MissingExtraError: the engine, or Ray, is not installed.
        PumaError: the bundle cannot be opened here or there, or is another one there.
    """
    runtime, precision = config.runtime, config.precision
    match config.spread:
        case Spread.LOCAL:
            if config.ray_address is not None or config.actors is not None:
                raise UsageError("--ray-address and --actors go with --engine ray")
            yield open_engine(bundle, runtime, precision, config.threads)
        case Spread.RAY:
            from puma_edge.runtimes.ray_fleet import RaySettings, open_fleet
            from puma_edge.runtimes.ray_worker import BundleOpener

            opener = BundleOpener(str(bundle.folder.absolute()), runtime, precision)
            settings = RaySettings(config.ray_address, config.actors, config.threads)
            with open_fleet(opener, settings) as fleet:
                there, here = fleet.stamp, bundle.manifest.model_id
                if there.model_id != here:
                    raise PumaError(
                        f"the machines of the cluster hold model {there.model_id} at "
                        f"{opener.folder}, this one {here}; copy the same bundle to each"
                    )
                yield Engine(fleet, Precision(there.precision))
