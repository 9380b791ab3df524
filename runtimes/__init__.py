"""What serves a bundle: engines, the embedder, the index and search; never imports torch."""
