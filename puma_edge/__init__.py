"""Train, shrink and run a layer-pruned multimodal embedder at the edge.

From Python: `from puma_edge import open_bundle, Index`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puma_edge.api import Embedder, Index, Query, SearchSettings, open_bundle

__version__ = "0.1.0"
__all__ = ["Embedder", "Index", "Query", "SearchSettings", "__version__", "open_bundle"]


def __getattr__(name: str) -> Any:
    """Import the rest when it is asked for: `import puma_edge` alone costs nothing."""
    if name in __all__:
        from puma_edge import api

        return getattr(api, name)
    raise AttributeError(f"module 'puma_edge' has no attribute {name!r}")
