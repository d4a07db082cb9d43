"""The long stack: an encoder, or the layers of a causal language model. Linear in the length."""

from __future__ import annotations

import contextlib
import dataclasses

from torch import Tensor, nn

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.attention.decoding import continued_attention
from spade_model.attention.long import attention_context
from spade_model.attention.observed import observed_context
from spade_model.config import AttentionBackend, SpadeConfig
from spade_model.decoding import CausalCache
from spade_model.layers import LongLayer, TokenContext
from spade_model.norms import make_norm
from spade_model.recording import StackRecord
from spade_model.sequence_part import SequencePart
from spade_model.state_space.segments import SegmentLayout


class LongStack(nn.Module):
    """A norm on the embeddings, the layers, a final norm; both norms if configured.

    There are no absolute positions: the state space and the attention's biases or rotations are
    all that tells tokens apart by place.
    """

    def __init__(self, config: SpadeConfig, *, causal: bool) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.activation_checkpointing = ActivationCheckpointing()
        self.attention_backend: AttentionBackend = "auto"
        self.first_norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            LongLayer(config, index, causal=causal) for index in range(config.num_long_layers)
        )
        self.final_norm = make_norm(config) if config.final_norm else nn.Identity()

    def forward(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: CausalCache | None = None,
        record: StackRecord | None = None,
        part: SequencePart | None = None,
    ) -> Tensor:
        """Mix tokens.

        Args:
            embeddings: [B, L, d_model].
            attention_mask: Bool [B, L], False where padded, or None if nothing is padded (which
                is faster). Padding may be anywhere.
            segment_ids: int64 [B, L]: the document that each token of a packed row is from, or
                None. Tokens of different documents then do not meet; a document is a run of equal
                ids.
            cache: Of a causal stack: the tokens before these, extended in place. All arguments are
                about the new tokens alone.
            record: What is wanted beside the output, filled in place, or None. Attention weights
                are those of the ``reference`` backend, and nothing is computed again for them.
            part: Whoever holds the rest of the sequences, if all arguments are those of a part of
                them, or None.

        Returns:
            [B, L, d_model]; rows of padded positions have no meaning, and no influence.

        Raises:
            ValueError: Segment ids and a cache are given, or a part and a cache or attention
                weights.
        """
        record = StackRecord() if record is None else record
        backend = "reference" if record.has_weights else self.attention_backend
        if part is not None and (cache is not None or record.has_weights):
            raise ValueError("parts of sequences have neither a cache nor attention weights")
        if part is not None:
            context = part.token_context(
                self.config,
                embeddings,
                attention_mask,
                segment_ids,
                causal=self.causal,
                draws_dropout=self._draws_dropout,
                backend=backend,
            )
            contexts = [context] * len(self.layers)
        elif cache is None:
            whole = self._context(embeddings, attention_mask, segment_ids, backend)
            contexts = [whole] * len(self.layers)
        elif segment_ids is None:
            contexts = self._continuation(embeddings, attention_mask, cache, backend)
        else:
            raise ValueError("segment_ids cannot be used with a cache; decode one document a row")
        if record.attention_weights is not None:
            num_tokens = embeddings.shape[1] if cache is None else cache.num_tokens
            contexts = [_observed(x, num_tokens, record.attention_weights) for x in contexts]
        randomness: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if part is not None and self._draws_dropout:
            randomness = part.own_randomness(embeddings.device)
        with randomness:
            return self._run(embeddings, contexts, cache is None, record)

    @property
    def _draws_dropout(self) -> bool:
        return self.training and self.config.dropout > 0.0

    def _run(
        self, embeddings: Tensor, contexts: list[TokenContext], whole: bool, record: StackRecord
    ) -> Tensor:
        """Run the layers, each with its context; `whole` unless there is a cache."""
        shared_bias = self._shared_bias(contexts[0])
        hidden: Tensor = self.dropout(self.first_norm(embeddings))
        for index, (layer, context) in enumerate(zip(self.layers, contexts, strict=True)):
            record.add_hidden(hidden)
            if self.training and whole and not record.has_weights:
                run = self.activation_checkpointing.run
                hidden = run(layer, index, hidden, context, shared_bias)
            else:
                hidden = layer(hidden, context, shared_bias)
        output: Tensor = self.final_norm(hidden)
        record.add_hidden(output)
        return output

    def _context(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        segment_ids: Tensor | None,
        backend: AttentionBackend,
    ) -> TokenContext:
        valid = None if attention_mask is None else attention_mask.bool()
        segments = None
        if segment_ids is not None:
            segments = SegmentLayout.from_ids(segment_ids, valid)
        attention = attention_context(
            self.config,
            embeddings.shape[1],
            causal=self.causal,
            valid=valid,
            segment_ids=segment_ids,
            device=embeddings.device,
            backend=backend,
        )
        return TokenContext(valid, segments, attention)

    def _continuation(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        cache: CausalCache,
        backend: AttentionBackend,
    ) -> list[TokenContext]:
        """Append tokens to the cache and return the context of each layer."""
        valid = None if attention_mask is None else attention_mask.bool()
        attentions = continued_attention(
            self.config,
            cache.window,
            [memory.ring for memory in cache.layers],
            embeddings.shape[1],
            valid=valid,
            device=embeddings.device,
            backend=backend,
        )
        return [
            TokenContext(valid, None, attention, memory)
            for attention, memory in zip(attentions, cache.layers, strict=True)
        ]

    def _shared_bias(self, context: TokenContext) -> Tensor | None:
        """The learned bias by distance of all layers, if they share one."""
        if not self.config.shared_relative_bias or context.attention.buckets is None:
            return None
        first = self.layers[0]
        assert isinstance(first, LongLayer), "the stack holds nothing else"
        return first.mixing.local_attention.bias_by_distance(context.attention.buckets)


def _observed(context: TokenContext, num_tokens: int, weights: list[Tensor]) -> TokenContext:
    attention = observed_context(context.attention, num_tokens, weights)
    return dataclasses.replace(context, attention=attention)
