"""Gradient caching (Gao et al., 2021): a contrastive batch larger than the memory it would take.

Every part of the batch is run without a graph, the loss is taken over all states at once, and each
part is then run again to carry its states' gradients back. The gradients are those of the whole
batch; the price is a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from puma_edge.inputs import Batch


@dataclass(frozen=True)
class _RandomState:
    """The random generators before a part was run: dropout must fall alike the second time."""

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> _RandomState:
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return cls(torch.get_rng_state(), cuda)

    @contextmanager
    def again(self) -> Iterator[None]:
        with torch.random.fork_rng():
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            yield


def cached_backward(
    parts: Sequence[Batch],
    states_of: Callable[[Batch], Tensor],
    loss_of: Callable[[Sequence[Tensor]], Tensor],
    backward: Callable[[Tensor], None],
    before_last: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Tensor:
    """Accumulate the gradients of `loss_of` over all parts in the parameters of `states_of`.

    Args:
        parts: what fits in memory one at a time.
        states_of: the states [B, d] of one part.
        loss_of: the loss of the states of all parts.
        backward: carries a scalar back.
        before_last: entered around the second run of every part but the last.

    Returns:
        the loss, detached.
    """
    before: list[_RandomState] = []
    leaves: list[Tensor] = []
    with torch.no_grad():
        for part in parts:
            before.append(_RandomState.now())
            leaves.append(states_of(part).detach())
    for leaf in leaves:
        leaf.requires_grad_()
    loss = loss_of(leaves)
    torch.autograd.backward(loss)
    for place, (part, leaf) in enumerate(zip(parts, leaves, strict=True)):
        assert leaf.grad is not None
        last = place == len(parts) - 1
        with before[place].again(), nullcontext() if last else before_last():
            # The derivative of this sum by the states is the gradient they had.
            backward((states_of(part) * leaf.grad).sum())
    return loss.detach()
