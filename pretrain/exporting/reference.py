"""What a pretrained model says: logits and generated ids that an export must repeat.

Generation is computed here by its definition, every prefix decoded anew, so that it shares nothing
with the code it is compared with but the network.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from spade_model import SpadeForSeq2Seq

INPUT_TOKENS: Final = 512
TARGET_TOKENS: Final = 32
GENERATED_TOKENS: Final = 12
BEAMS: Final = 4
_DECISIVE: Final = 1e-3
"""Scores of two candidates, in nats, that differ by less are a tie: rounding may decide it."""
_ATTEMPTS: Final = 5


def make_reference(plain: SpadeForSeq2Seq, input_length_tokens: int) -> dict[str, Tensor]:
    """Logits, greedy ids and ids of beam search on made-up inputs.

    Where a tie would decide what is generated, generation ends before it; if that is early, other
    inputs are tried.

    Args:
        plain: The pretrained network.
        input_length_tokens: Longest input in pretraining.

    Returns:
        `input_ids` and `attention_mask` [2, L] (the second row is half padding), `labels` and
        `logits` [2, T], `greedy` and `beams`, each [2, at most `GENERATED_TOKENS`] without the
        start token. End of sequence is not allowed in them, so that all rows have one length.
    """
    best: dict[str, Tensor] = {}
    for attempt in range(_ATTEMPTS):
        generator = torch.Generator().manual_seed(attempt)
        made = _reference_of(plain, input_length_tokens, generator)
        if not best or _generated(made) > _generated(best):
            best = made
        if _generated(best) >= min(GENERATED_TOKENS, plain.config.max_target_length_tokens) // 2:
            break
    return best


def _generated(reference: dict[str, Tensor]) -> int:
    return min(reference["greedy"].shape[1], reference["beams"].shape[1])


@torch.no_grad()
def _reference_of(
    plain: SpadeForSeq2Seq, input_length_tokens: int, generator: torch.Generator
) -> dict[str, Tensor]:
    config = plain.config
    length = min(input_length_tokens, INPUT_TOKENS)
    targets = min(config.max_target_length_tokens, TARGET_TOKENS)
    steps = min(config.max_target_length_tokens, GENERATED_TOKENS)
    first, last = config.eos_token_id + 1, config.vocab_size
    input_ids = torch.randint(first, last, (2, length), generator=generator)
    labels = torch.randint(first, last, (2, targets), generator=generator)
    valid = torch.ones_like(input_ids, dtype=torch.bool)
    valid[1, length // 2 :] = False
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": valid.long(),
        "logits": plain(input_ids, labels, attention_mask=valid).logits,
        "greedy": beam_search(plain, input_ids, valid, beams=1, steps=steps),
        "beams": beam_search(plain, input_ids, valid, beams=BEAMS, steps=steps),
    }


@torch.no_grad()
def beam_search(
    plain: SpadeForSeq2Seq, input_ids: Tensor, valid: Tensor, *, beams: int, steps: int
) -> Tensor:
    """The likeliest continuations that beam search finds; with one beam, greedy decoding.

    Args:
        plain: The network.
        input_ids: int64 [B, L].
        valid: Bool [B, L], False where padded.
        beams: Prefixes kept of each row.
        steps: Most tokens.

    Returns:
        int64 [B, T] without the start token: the best prefix at the last of the first `steps` steps
        up to which no tie decides anything, so T may be 0.
    """
    rows, config = len(input_ids), plain.config
    hidden = plain.encode(input_ids, valid).repeat_interleave(beams, dim=0)
    mask = valid.repeat_interleave(beams, dim=0)
    tokens = torch.full((rows * beams, 1), config.decoder_start_token_id)
    scores = torch.full((rows, beams), -torch.inf)
    scores[:, 0] = 0.0  # at first there is one prefix, not `beams` times the same
    found = tokens[:rows, :0]
    for _ in range(steps):
        logits = plain.decode(tokens, hidden, attention_mask=mask)[:, -1].double()
        gains = logits.log_softmax(-1)
        gains[:, config.eos_token_id] = -torch.inf
        totals = (scores[:, :, None] + gains.view(rows, beams, -1)).flatten(1)
        values, places = totals.topk(beams + 1, dim=1)
        if not bool((values[:, beams - 1] - values[:, beams] > _DECISIVE).all()):
            break
        scores, kept = values[:, :beams], places[:, :beams]
        parents = kept // config.vocab_size + beams * torch.arange(rows)[:, None]
        chosen = (kept % config.vocab_size).reshape(-1, 1)
        tokens = torch.cat([tokens[parents.reshape(-1)], chosen], dim=1)
        best_is_clear = beams == 1 or bool((scores[:, 0] - scores[:, 1] > _DECISIVE).all())
        if best_is_clear:
            found = tokens[::beams, 1:]
    return found
