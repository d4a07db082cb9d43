"""Which networks can be cut into parts, and where; arithmetic without torch."""

from __future__ import annotations

from spade_model.config import SpadeConfig


def check_context(config: SpadeConfig, size: int, length_tokens: int | None = None) -> None:
    """Check that sequences of a network can be shared by so many ranks.

    Args:
        config: The architecture.
        size: Ranks of a group.
        length_tokens: Of the sequences, or None if it is not known yet.

    Raises:
        ValueError: They cannot. The message names field, value and remedy.
    """
    if size < 1:
        raise ValueError(f"context={size} is below 1; use 1 not to cut sequences")
    if size == 1:
        return
    if config.attention == "full":
        raise ValueError(
            f"attention='full' sees every token and cannot be cut into context={size} parts; use "
            "window or chunk, or a context of 1"
        )
    if length_tokens is not None and length_tokens < size:
        raise ValueError(
            f"{length_tokens} tokens cannot be cut into context={size} parts; use longer sequences "
            "or a smaller context"
        )


def cut_lengths(length_tokens: int, size: int) -> tuple[int, ...]:
    """Return the lengths of the parts of a sequence: as equal as can be, longer ones first.

    Args:
        length_tokens: Of the whole sequence.
        size: Ranks of the group.

    Raises:
        ValueError: There are fewer tokens than ranks.
    """
    if length_tokens < size:
        raise ValueError(
            f"{length_tokens} tokens cannot be cut into {size} parts; use longer sequences or a "
            "smaller context"
        )
    least, longer = divmod(length_tokens, size)
    return tuple(least + (rank < longer) for rank in range(size))
