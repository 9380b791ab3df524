"""The losses against values derived by hand and against the identities of the method."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from puma_edge.losses import (
    TAU_NORM,
    distillation_loss,
    hard_temperature,
    info_nce,
    mac_loss,
    matryoshka,
    other_answers,
)


def draw(seed: int, batch: int, width: int = 6) -> tuple[Tensor, Tensor]:
    """Random queries and candidates [batch, width], double precision."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, batch, width)
    queries, candidates = torch.randn(shape, generator=generator, dtype=torch.float64)
    return queries, candidates


def plain_mac(q: Tensor, c: Tensor, modalities: list[int], hard: float, norm: float) -> float:
    """MAC-Loss written out pair by pair."""
    total = 0.0
    for i in range(len(q)):
        terms = []
        for j in range(len(c)):
            cosine = float(q[i] @ c[j] / (q[i].norm() * c[j].norm()))
            tau = hard if modalities[j] == modalities[i] else norm
            terms.append(cosine / tau)
        total += math.log(sum(math.exp(term) for term in terms)) - terms[i]
    return total / len(q)


def test_info_nce_of_two_orthogonal_pairs_is_the_value_derived_by_hand() -> None:
    # s = identity, so each row is [1/tau, 0]: the loss is log(1 + exp(-1/tau)).
    eye = torch.eye(2)
    assert info_nce(eye, eye, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)


def test_info_nce_of_embeddings_that_say_nothing_is_log_of_the_batch() -> None:
    same = torch.ones(7, 4)
    assert info_nce(same, same, 0.05).item() == pytest.approx(math.log(7), abs=1e-5)


@pytest.mark.parametrize("dimensions", [(), (4,), (2, 5)])
def test_matryoshka_is_the_mean_over_first_dimensions(dimensions: tuple[int, ...]) -> None:
    queries, candidates = draw(3, 8)

    def loss(q: Tensor, c: Tensor) -> Tensor:
        return info_nce(q, c, 0.05)

    parts = [loss(queries[:, :n], candidates[:, :n]) for n in (*dimensions, queries.shape[1])]
    found = matryoshka(loss, queries, candidates, dimensions)
    assert torch.allclose(found, sum(parts, torch.tensor(0.0)) / len(parts))


def test_distillation_adds_the_squared_errors_with_the_papers_weights() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    candidates = queries.clone()
    # Off by 1 in one of four coordinates: MSE 1/4. Off by 2 in one of four: MSE 1.
    teacher_queries = queries + torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    teacher_candidates = candidates + torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    expected = 0.9 * math.log(1 + math.exp(-1 / 0.05)) + 0.1 * 0.05 * (0.25 + 1.0)
    found = distillation_loss(queries, candidates, teacher_queries, teacher_candidates)
    assert found.item() == pytest.approx(expected, abs=1e-7)


def test_distillation_takes_other_weights() -> None:
    queries, candidates = draw(2, 5)
    teacher = draw(3, 5)
    labels = distillation_loss(queries, candidates, *teacher, labels=0.3, states=0.0)
    errors = distillation_loss(queries, candidates, *teacher, labels=0.0, states=2.0)
    assert torch.allclose(labels, 0.3 * info_nce(queries, candidates, 0.05))
    squares = (queries - teacher[0]).square().mean() + (candidates - teacher[1]).square().mean()
    assert torch.allclose(errors, 2 * squares)


def test_distillation_compares_states_before_they_are_normalised() -> None:
    queries, candidates = draw(0, 5)
    same = distillation_loss(queries, candidates, queries, candidates)
    longer = distillation_loss(3 * queries, candidates, queries, candidates)
    # The contrastive part is the same: what is left is 0.1 * 0.05 * MSE(3q, q).
    assert (longer - same).item() == pytest.approx(0.005 * (4 * queries**2).mean().item())


@given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0.01, 0.1), st.floats(0.01, 0.1))
@settings(deadline=None, max_examples=60)
def test_mac_loss_equals_the_sum_over_pairs(seed: int, size: int, hard: float, norm: float) -> None:
    queries, candidates = draw(seed, size)
    modalities = torch.randint(3, (size,), generator=torch.Generator().manual_seed(seed))
    found = mac_loss(queries, candidates, modalities, hard, norm).item()
    assert found == pytest.approx(
        plain_mac(queries, candidates, modalities.tolist(), hard, norm), rel=1e-6, abs=1e-9
    )


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.01, 0.2))
@settings(deadline=None, max_examples=60)
def test_equal_temperatures_make_mac_loss_info_nce(seed: int, size: int, tau: float) -> None:
    queries, candidates = draw(seed, size)
    modalities = torch.arange(size) % 3
    assert torch.allclose(
        mac_loss(queries, candidates, modalities, tau, tau), info_nce(queries, candidates, tau)
    )


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.01, 0.2))
@settings(deadline=None, max_examples=60)
def test_one_modality_makes_mac_loss_info_nce_at_the_hard_one(
    seed: int, size: int, tau: float
) -> None:
    queries, candidates = draw(seed, size)
    modalities = torch.zeros(size, dtype=torch.int64)
    assert torch.allclose(
        mac_loss(queries, candidates, modalities, tau), info_nce(queries, candidates, tau)
    )


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_other_right_answers_are_left_out(seed: int, size: int, most: int) -> None:
    queries, candidates = draw(seed, size)
    generator = torch.Generator().manual_seed(seed)
    positives = torch.randint(-1, 5, (size, most), generator=generator)
    answers = torch.randint(5, (size,), generator=generator)
    positives[:, 0] = answers  # the own one is among them
    masked = other_answers(positives, answers)
    modalities = torch.arange(size) % 3
    total = 0.0
    for i in range(size):
        right = {int(one) for one in positives[i]}
        kept = [j for j in range(size) if j == i or int(answers[j]) not in right]
        assert [j for j in range(size) if not masked[i, j]] == kept
        terms = [
            float(functional.cosine_similarity(queries[i], candidates[j], dim=0))
            / (0.02 if j % 3 == i % 3 else TAU_NORM)
            for j in kept
        ]
        total += math.log(sum(map(math.exp, terms))) - terms[kept.index(i)]
    found = mac_loss(queries, candidates, modalities, 0.02, also_right=masked).item()
    assert found == pytest.approx(total / size, rel=1e-6, abs=1e-9)


def test_a_harder_temperature_pulls_more_on_same_modality_negatives() -> None:
    queries, candidates = draw(3, 6)
    candidates.requires_grad_()
    modalities = torch.tensor([0, 0, 0, 1, 1, 1])
    mac_loss(queries[:1].expand(6, -1), candidates, modalities, 0.018).backward()
    gradient = candidates.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("progress", "expected"),
    # round(0.03 * exp(-2 * 0.5 * min(0.5, p)), 3): exp(-0.25) = 0.7788, exp(-0.5) = 0.6065
    [(0.0, 0.030), (0.25, 0.023), (0.5, 0.018), (0.75, 0.018), (1.0, 0.018)],
)
def test_the_hard_temperature_falls_to_half_way(progress: float, expected: float) -> None:
    assert hard_temperature(progress) == expected
    assert hard_temperature(progress, decay=0.0) == TAU_NORM


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_hard_temperature_never_rises(first: float, second: float) -> None:
    early, late = sorted((first, second))
    assert hard_temperature(late) <= hard_temperature(early)


def test_gradients_flow_to_both_sides() -> None:
    queries, candidates = (side.requires_grad_() for side in draw(1, 4))
    mac_loss(queries, candidates, torch.tensor([0, 1, 0, 2]), 0.02).backward()
    for side in (queries, candidates):
        assert side.grad is not None
        # Only directions matter: the gradient has no part along the vector itself.
        along = (functional.normalize(side.detach(), dim=-1) * side.grad).sum(-1)
        assert torch.allclose(along, torch.zeros_like(along), atol=1e-9)
