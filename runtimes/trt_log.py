"""TensorRT's messages, kept: its own logger prints, on stdout in TensorRT 11."""

from __future__ import annotations

from typing import Any

from puma_edge.runtimes.nvidia import TensorRT

WORST = ("ERROR", "INTERNAL_ERROR")


class Messages:
    """What TensorRT held against the last call.

    Attributes:
        logger: what its constructors take; whoever uses them has to keep this.
    """

    def __init__(self, trt: TensorRT) -> None:
        """Derive a logger from TensorRT's."""
        self._lines: list[str] = []

        def log(_: Any, severity: Any, msg: str) -> None:
            if severity.name in WORST:
                self._lines.append(" ".join(msg.split()))

        self.logger = type("Messages", (trt.ILogger,), {"log": log})()

    def take(self) -> str:
        """All errors since the last time, as one line."""
        told, self._lines[:] = "; ".join(self._lines), []
        return told or "it gives no reason"
