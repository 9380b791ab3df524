"""PUMA's two losses (ACM MM 2025, arXiv 2507.08064) and the temperature schedule between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional

from puma_edge.config import LABELS_WEIGHT, STATES_WEIGHT

TAU = 0.05  # stage 1
TAU_NORM = 0.03  # stage 2, other modalities, and the start of the harder one's schedule


def info_nce(
    queries: Tensor, candidates: Tensor, tau: float | Tensor, also_right: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each query's own candidate against all gathered candidates.

    Args:
        queries: [B, d], any length; normalised here.
        candidates: [B, d], candidate i belongs to query i.
        tau: a temperature, or one per pair [B, B * ranks].
        also_right: candidates that are no wrong answers, see `other_answers`; they are left out.

    Returns:
        the mean over the B queries of this rank.
    """
    q = functional.normalize(queries, dim=-1)
    c = gather(functional.normalize(candidates, dim=-1))
    logits = q @ c.T / tau
    if also_right is not None:
        logits = logits.masked_fill(also_right, -torch.inf)
    return functional.cross_entropy(logits, _targets(len(queries), logits.device))


def other_answers(positives: Tensor, answers: Tensor) -> Tensor:
    """Which gathered candidates answer a query too, its own one apart: bool [B, B * ranks].

    Args:
        positives: [B, most], numbers of each query's right candidates, padded with a number that
            no candidate has.
        answers: [B], the number of each pair's candidate.
    """
    found = (positives[:, :, None] == gather(answers)).any(dim=1)
    rows = torch.arange(len(found), device=found.device)
    found[rows, _targets(len(found), found.device)] = False
    return found


def distillation_loss(
    queries: Tensor,
    candidates: Tensor,
    teacher_queries: Tensor,
    teacher_candidates: Tensor,
    also_right: Tensor | None = None,
    labels: float = LABELS_WEIGHT,
    states: float = STATES_WEIGHT,
) -> Tensor:
    """Stage 1: 0.9 InfoNCE(tau 0.05) + 0.1 * 0.05 * (MSE(query) + MSE(candidate)).

    The first four are states at `[RET]` [B, d] after the final norm and before L2 normalisation;
    the squared errors compare them so, the contrastive term normalises them. `also_right` is
    `info_nce`'s, `labels` and `states` are other weights than PUMA's.
    """
    errors = functional.mse_loss(queries, teacher_queries) + functional.mse_loss(
        candidates, teacher_candidates
    )
    return labels * info_nce(queries, candidates, TAU, also_right) + states * errors


def hard_temperature(progress: float, decay: float = 0.5, tau_norm: float = TAU_NORM) -> float:
    """The temperature of same-modality pairs: round(tau * exp(-decay * 2 * min(0.5, t/T)), 3).

    Args:
        progress: t/T, the part of stage 2 that is done, from 0 to 1.
        decay: how far it falls; 0.5 takes 0.030 to 0.018 at half-way, 0 leaves it.
        tau_norm: the temperature at the start.
    """
    return round(tau_norm * math.exp(-decay * 2 * min(0.5, progress)), 3)


def mac_loss(
    queries: Tensor,
    candidates: Tensor,
    modalities: Tensor,
    tau_hard: float,
    tau_norm: float = TAU_NORM,
    also_right: Tensor | None = None,
) -> Tensor:
    """Stage 2, MAC-Loss: InfoNCE whose temperature is `tau_hard` for same-modality candidates.

    Pair (i, j) has `tau_hard` where candidate j has the modality of query i's own candidate (that
    one included) and `tau_norm` otherwise. With equal temperatures it is InfoNCE.

    Args:
        queries: [B, d].
        candidates: [B, d], candidate i belongs to query i.
        modalities: [B], a number for each candidate's modality.
        tau_hard: see `hard_temperature`.
        tau_norm: for candidates of another modality.
        also_right: `info_nce`'s.
    """
    same = modalities[:, None] == gather(modalities)[None, :]
    tau = torch.where(same, tau_hard, tau_norm).to(queries.dtype)
    return info_nce(queries, candidates, tau, also_right)


def matryoshka(
    loss: Callable[[Tensor, Tensor], Tensor],
    queries: Tensor,
    candidates: Tensor,
    dimensions: Sequence[int],
) -> Tensor:
    """Mean of a loss over whole embeddings and their first `dimensions` (Kusupati et al., 2022).

    Args:
        loss: of queries and candidates of any one length, which it normalises.
        queries: [B, d].
        candidates: [B, d].
        dimensions: each less than d; none of them leaves the loss itself.
    """
    lengths = [*dimensions, queries.shape[1]]
    return torch.stack([loss(queries[:, :n], candidates[:, :n]) for n in lengths]).mean()


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, gradients flowing back to each.

    Where training is not distributed these are the rows themselves.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    if not rows.is_floating_point():
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(rows))


def _targets(batch: int, device: torch.device) -> Tensor:
    """Where the own candidates of this rank's queries stand among the gathered ones."""
    ready = distributed.is_available() and distributed.is_initialized()
    first = distributed.get_rank() * batch if ready else 0
    return torch.arange(first, first + batch, device=device)
