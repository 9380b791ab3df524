"""Installed as `optimum/commands/register/`, whose files optimum-cli imports when it starts.

It is a folder of a namespace, without an `__init__.py`, that Optimum shares with whoever adds to
its command line. Nothing but an export costs the time of an import here, and nothing that is
missing keeps optimum-cli from exporting other models.
"""

from __future__ import annotations

import sys

if sys.argv[1:3] == ["export", "onnx"]:
    try:
        from puma_edge.errors import MissingExtraError
        from puma_edge.export.optimum import register

        register()
    except (ImportError, MissingExtraError) as error:
        print(
            f"puma-edge's models cannot be exported here ({error}): pip install "
            "'puma-edge[cpu,optimum]'",
            file=sys.stderr,
        )
