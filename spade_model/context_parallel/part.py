"""A rank's part of long sequences: what is given to the models beside its tokens.

```python
group = ContextGroup.of(process_group)
part = ContextPart.of(group, total_tokens)          # the same call on every rank
model(ids[:, part.tokens], labels, attention_mask=mask[:, part.tokens], part=part).loss.backward()
average_gradients(model.parameters(), group)
```

Every rank of the group gives its own tokens and its own piece of masks and segment ids, but the
same labels, and draws from generators in the same state. Then all compute the same loss. To a
causal language model, whose labels are its tokens, each gives its own labels as well.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spade_model.attention.chunks import leading_padding
from spade_model.config import AttentionBackend, SpadeConfig
from spade_model.context_parallel.checks import check_context, cut_lengths
from spade_model.context_parallel.cross_attention import sharded_attention
from spade_model.context_parallel.group import ContextGroup, differentiable_total
from spade_model.context_parallel.halo import make_halo
from spade_model.context_parallel.halo_exchange import widened_ids
from spade_model.context_parallel.local_attention import halo_attention_context
from spade_model.context_parallel.state_passing import StatePassing, passages_of
from spade_model.layers import TokenContext
from spade_model.state_space.segments import SegmentLayout

_FACTS = {
    "the rows of a batch": "give all ranks the same rows",
    "lengths_tokens": "cut sequences in the same way on all ranks",
    "the tokens of a part": "give each rank as many as lengths_tokens says",
    "whether there is an attention_mask": "give one to all ranks or to none",
    "whether there are segment_ids": "give them to all ranks or to none",
    "the precision": "use the same on all ranks",
    "the state of torch's generator": "seed the ranks of a context group alike",
}
"""What the ranks must agree on before they wait for each other, and what to do otherwise."""

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ContextPart:
    """A `SequencePart` whose other parts are on the other ranks of a group.

    Raises:
        ValueError: There is not one length for each rank, or one is below 1.
    """

    group: ContextGroup
    lengths_tokens: tuple[int, ...]
    """Of the parts of all ranks, padding included; they need not be equal."""

    def __post_init__(self) -> None:
        if len(self.lengths_tokens) != self.group.size or min(self.lengths_tokens) < 1:
            raise ValueError(
                f"lengths_tokens={self.lengths_tokens} are no parts for a context group of "
                f"{self.group.size}; give each rank one token or more"
            )

    @classmethod
    def of(cls, group: ContextGroup, total_tokens: int) -> ContextPart:
        """Cut sequences as equally as can be.

        Raises:
            ValueError: There are fewer tokens than ranks.
        """
        return cls(group, cut_lengths(total_tokens, group.size))

    @property
    def tokens(self) -> slice:
        """Which tokens of the whole sequence are this part's."""
        start = sum(self.lengths_tokens[: self.group.rank])
        return slice(start, start + self.lengths_tokens[self.group.rank])

    def token_context(
        self,
        config: SpadeConfig,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        *,
        causal: bool,
        draws_dropout: bool,
        backend: AttentionBackend,
    ) -> TokenContext:
        """See `SequencePart.token_context`."""
        check_context(config, self.group.size)
        self._agree(embeddings, attention_mask, segment_ids, draws_dropout)
        valid = None if attention_mask is None else attention_mask.bool()
        reach = config.local_radius_tokens
        halo = make_halo(self.lengths_tokens, self.group.rank, reach, 0 if causal else reach)
        wide_valid = wide_ids = num_leading = passages = None
        if valid is not None or segment_ids is not None:
            shape, device = embeddings.shape[:2], embeddings.device
            known = torch.ones(shape, dtype=torch.int64, device=device)
            known = known if valid is None else valid.long()
            ids = torch.zeros_like(known) if segment_ids is None else segment_ids
            wide = widened_ids(torch.stack([known, ids], dim=2), halo, self.group)
            edges = self.group.gather(_edges(known, ids), "masks")
            if valid is not None:
                wide_valid = wide[:, :, 0].bool()
                num_leading = _leading([x[:, 3] for x in edges], self.lengths_tokens)
            if segment_ids is not None:
                wide_ids = wide[:, :, 1]
                passages = passages_of(ids, [x[:, :3] for x in edges], causal=causal)
        attention = halo_attention_context(
            config,
            halo,
            self.group,
            batch_size=len(embeddings),
            start_token=self.tokens.start,
            causal=causal,
            wide_valid=wide_valid,
            wide_segment_ids=wide_ids,
            num_leading=num_leading,
            device=embeddings.device,
            backend=backend,
        )
        segments = None if segment_ids is None else SegmentLayout.from_ids(segment_ids, valid)
        others = StatePassing(self.group, self.lengths_tokens, passages)
        return TokenContext(
            valid, segments, attention, others=others if self.group.size > 1 else None
        )

    def _agree(
        self, embeddings: Tensor, valid: Tensor | None, ids: Tensor | None, draws_dropout: bool
    ) -> None:
        """Compare what all ranks were given.

        Raises:
            ValueError: It does not fit together; on all ranks, so that none waits for another.
        """
        generator = zlib.crc32(bytes(torch.get_rng_state().tolist())) if draws_dropout else 0
        facts = [
            embeddings.shape[0],
            zlib.crc32(repr(self.lengths_tokens).encode()),
            embeddings.shape[1] - self.lengths_tokens[self.group.rank],
            valid is not None,
            ids is not None,
            _DTYPES.index(embeddings.dtype),
            generator,
        ]
        mine = torch.tensor([int(x) for x in facts], device=embeddings.device)
        table = torch.stack(self.group.gather(mine, "agreement")).tolist()
        for (name, remedy), column in zip(_FACTS.items(), zip(*table, strict=True), strict=True):
            if len(set(column)) > 1 or (name == "the tokens of a part" and column[0] != 0):
                raise ValueError(f"the ranks of a context group differ in {name}; {remedy}")

    @contextlib.contextmanager
    def own_randomness(self, device: torch.device) -> Iterator[None]:
        """See `SequencePart.own_randomness`."""
        seed = self._seed()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        dropout: float,
        scale: float,
    ) -> Tensor:
        """See `AttendAcross.attend`."""
        seed = self._seed() if dropout > 0.0 else 0
        return sharded_attention(
            query, key, value, mask, self.group, scale=scale, dropout=dropout, seed=seed
        )

    def reaching_next(self, ids: Tensor) -> Tensor:
        """See `SequencePart.reaching_next`."""
        halo = make_halo(self.lengths_tokens, self.group.rank, 0, 1)
        return widened_ids(ids, halo, self.group)

    def total(self, x: Tensor) -> Tensor:
        """See `SequencePart.total`."""
        return differentiable_total(self.group, x, "loss")

    def _seed(self) -> int:
        """Draw a number that all ranks draw, and make of it one of this rank's own."""
        drawn = int(torch.randint(2**62, (), device="cpu"))
        return (drawn + self.group.rank * 0x9E3779B97F4A7C15) % 2**63


def _edges(known: Tensor, ids: Tensor) -> Tensor:
    """Return what others must know of a part, int64 [B, 4].

    First id, last id, whether all ids are one run, and the tokens in front of the first valid one.
    """
    one_run = (ids[:, 1:] == ids[:, :-1]).all(dim=1)
    leading = leading_padding(known.bool())
    return torch.stack([ids[:, 0], ids[:, -1], one_run.long(), leading], dim=1)


def _leading(by_part: Sequence[Tensor], lengths_tokens: Sequence[int]) -> Tensor:
    """Return the padded tokens of whole sequences in front of the first valid one, int64 [B]."""
    total = torch.zeros_like(by_part[0])
    waiting = torch.ones_like(total, dtype=torch.bool)
    for leading, length in zip(by_part, lengths_tokens, strict=True):
        total = total + leading * waiting
        waiting = waiting & (leading == length)
    return total
