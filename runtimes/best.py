"""The best rows of a query, kept while the scores go by."""

from __future__ import annotations

import numpy as np

from puma_edge.inputs import Float32


class Best:
    """The best rows of one query so far.

    Attributes:
        size: how many are kept.
        scores: float32, best first.
        rows: int64, in order within equal scores.

    """

    def __init__(self, size: int) -> None:
        """Keep `size` rows."""
        self.size = size
        self.scores = np.empty(0, np.float32)
        self.rows = np.empty(0, np.int64)

    def add(self, scores: Float32, begin: int) -> None:
        """Take in the scores of the rows from `begin` on, which come in order."""
        if len(self.rows) < self.size:
            better = np.arange(len(scores))
        else:
            # A later row with the score of the last one kept loses the tie.
            better = np.flatnonzero(scores > self.scores[-1])
        if len(better) > self.size:
            values = scores[better]
            least = np.partition(values, -self.size)[-self.size]
            better = better[values >= least]
        all_scores = np.concatenate([self.scores, scores[better]])
        all_rows = np.concatenate([self.rows, better + begin])
        # Rows stand in order within equal scores, and a stable sort leaves them so.
        order = np.argsort(-all_scores, kind="stable")[: self.size]
        self.scores, self.rows = all_scores[order], all_rows[order]
