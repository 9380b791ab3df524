"""Train, shrink and run a layer-pruned multimodal embedder at the edge."""

__version__ = "0.1.0"
