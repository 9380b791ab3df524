"""Which decoder layers stay: the first k, the first k-1 and the last, or those that are named."""

from __future__ import annotations

from collections.abc import Sequence

from puma_edge.errors import UsageError


def parse_layers(text: str | None) -> list[int] | None:
    """Read "0,1,2,7"; None stays None.

    Raises:
        UsageError: it is no list of whole numbers.
    """
    if text is None:
        return None
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--layers {text}: expected whole numbers with commas between, as in 0,1,2,7"
        ) from None


def choose_layers(
    total: int,
    keep: int,
    *,
    with_last: bool = False,
    layers: Sequence[int] = (),
    features: int = 0,
) -> tuple[int, ...]:
    """Indices of the layers that stay, ascending.

    Args:
        total: layers the model has.
        keep: how many stay; 0 where `layers` names them.
        with_last: the first `keep - 1` and the last instead of the first `keep`.
        layers: the layers themselves, in the place of the two settings before.
        features: how many of the first layers take vision features (DeepStack); they always stay.

    Raises:
        UsageError: layers the model does not have, two settings that contradict each other, or a
            choice that leaves out a layer vision features are added to.
    """
    if layers:
        chosen = _named(total, keep, with_last, layers)
    elif not 1 <= keep <= total:
        raise UsageError(f"--keep-layers {keep}: this model has {total} layers; give 1 to {total}")
    else:
        chosen = (*range(keep - 1), total - 1) if with_last else tuple(range(keep))
    if not set(range(features)) <= set(chosen):
        raise UsageError(
            f"layers {_list(chosen)} chosen, but this model adds vision features to the output of "
            f"its first {features} layers (DeepStack) and reads pictures wrongly without them; "
            f"keep {_list(range(features))}: --keep-layers {features} or more, "
            f"{features + 1} with --with-last"
        )
    return chosen


def _named(total: int, keep: int, with_last: bool, layers: Sequence[int]) -> tuple[int, ...]:
    if keep or with_last:
        other = "--with-last" if with_last else f"--keep-layers {keep}"
        raise UsageError(f"--layers {_list(layers)} and {other} given; give one of them")
    if sorted(set(layers)) != list(layers) or not 0 <= layers[0] <= layers[-1] < total:
        raise UsageError(
            f"--layers {_list(layers)}: this model has layers 0 to {total - 1}; give some of them, "
            "each once, in ascending order"
        )
    return tuple(layers)


def _list(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
