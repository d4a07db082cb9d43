"""Every architectural choice of the network, named once and validated once.

This file imports nothing but the standard library: configuration files are read on machines
without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from spade_model.config_checks import check_config, nearest_name, state_space_placement

CheckpointingKind = Literal["none", "full", "selective"]
"""What layers compute again in the backward pass, see `spade_model.activation_checkpointing`."""

AttentionBackend = Literal["auto", "reference", "blocked", "tiled", "flex"]
"""Who computes attention in the long stack; not part of the architecture, all compute the same.
``reference`` is the definition; ``blocked`` whole-tensor products, for accelerators; ``tiled``
cache-sized pieces, for CPUs; ``flex`` torch's flex_attention. ``auto`` takes ``tiled`` on a CPU and
``blocked`` elsewhere, and ``reference`` where every token may see every other one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpadeConfig:
    """The architecture of a SPADE network (arXiv 2212.08136).

    With layers in both stacks it is an encoder-decoder, without decoder layers an encoder, without
    encoder layers a causal language model whose layers mix tokens as those of the encoder do, but
    look back only. The stack that mixes so is called the long stack below.

    The defaults are ours: pre-norm with a final norm, and initial weights that suit AdamW and a
    tied head. `spade_model.presets` names the choices of the publication.

    Raises:
        ValueError: A value is impossible. The message names field, value and remedy.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    vocab_size: int
    """Rows of the token embedding, sentinels included."""
    d_model: int = 512
    """Width of the residual stream."""
    num_heads: int = 8
    """Attention heads of every attention."""
    head_dim: int = 64
    """Width of one head; ``num_heads * head_dim`` need not equal `d_model`."""
    d_ff: int = 2048
    """Inner width of the feed-forward sublayers."""
    num_encoder_layers: int = 6
    """Layers of the encoder; 0 makes a causal language model of the decoder's layers."""
    num_decoder_layers: int = 6
    """Layers of the decoder; 0 leaves the encoder alone."""
    trained_length_tokens: int = 1024
    """Longest sequence of pretraining. Sets the default of `dt_min` and limits nothing."""
    state_space: Literal["s4", "s4d_lin", "s4d_inv", "s4d_legs", "ema", "none"] = "s4"
    """The global branch: S4 (arXiv 2111.00396, HiPPO-LegS in normal-plus-low-rank form), S4D with
    one of its three initial spectra (arXiv 2206.11893, section 4), MEGA's damped moving average
    (arXiv 2209.10655, section 3.1), or none: a model of local attention alone."""
    state_space_layers: int | str | tuple[int, ...] = 1
    """Which layers of the long stack carry it: a number counts the bottom layers, ``every 3``
    means layers 0, 3, 6, …, a list names them."""
    state_space_discretization: Literal["bilinear", "zero_order_hold"] = "bilinear"
    """How continuous time becomes steps of dt; S4 and EMA know the first only."""
    state_space_channels: int = 1
    """Outputs of the state space for each feature; more than one need ``combine: concat``."""
    state_dim: int = 64
    """N, the full size of one state; half of it is stored, the rest is its conjugate. EMA stores
    all of it."""
    state_space_copies: int | None = None
    """How many different (A, B, P) there are; feature h uses copy ``h % copies``. None: d_model."""
    dt_min: float | None = None
    """Smallest initial time step; the longest memory is about ``2 / dt_min`` tokens. None: 1e-3, or
    ``2 / trained_length_tokens`` where that is smaller."""
    dt_max: float = 1e-1
    """Largest initial time step."""
    trainable_state_space: tuple[str, ...] = ("C", "D", "log_dt")
    """Which state-space quantities are learned; the others are constants saved with the weights.
    EMA has none but `D` and learns what else it has."""
    combine: Literal["concat", "add", "stack"] = "concat"
    """How global and local meet, g and a their outputs: ``W [LN g; LN a] + b``,
    ``w LN g + (1 - w) LN a``, or attention on top of the state space, ``a(g)``."""
    combine_weight: float = 0.5
    """w of ``combine: add``, a constant."""
    attention: Literal["window", "chunk", "full"] = "window"
    """Who a token of the long stack attends to: neighbours within the radius, its own block, or
    every token (quadratic, for comparisons). Chunks are counted from a row's first valid
    token."""
    local_radius_tokens: int = 127
    """The window reaches this many neighbours on either side; chunks are one token longer."""
    position: Literal["relative_bias", "rope", "alibi", "none"] = "relative_bias"
    """What attention in the long stack knows of distances: T5's learned biases (arXiv 1910.10683),
    rotations (arXiv 2104.09864), fixed slopes (arXiv 2108.12409), nothing."""
    shared_relative_bias: bool = False
    """One table of biases for all layers of the long stack instead of one each."""
    relative_attention_num_buckets: int = 32
    """Rows of a table of relative biases; a bidirectional one gives half of them to each side."""
    relative_attention_max_distance_tokens: int = 128
    """Distances from here on share the last bucket."""
    decoder_position: Literal["learned", "relative_bias", "rope", "alibi", "none"] = "learned"
    """What the decoder of an encoder-decoder knows of positions; ``relative_bias`` is one table of
    biases for its past, shared by its layers, as in T5."""
    max_target_length_tokens: int = 1024
    """Rows of the learned decoder positions: the longest target. No limit without them."""
    normalization: Literal["pre", "post"] = "pre"
    """A norm before each sublayer, or after each residual sum as in the published models."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """With mean and bias, or the root mean square alone (arXiv 1910.07467)."""
    norm_epsilon: float = 1e-6
    """Added to the variance in every norm."""
    embedding_norm: bool = True
    """A norm on the embeddings, in front of the first layer of each stack. T5 has none, and the
    published language model only where it was asked for."""
    final_norm: bool = True
    """A norm at the end of a pre-norm stack; the published models have none."""
    feed_forward: Literal["relu", "gated_gelu"] = "relu"
    """One projection and ReLU, or two and a product with GELU (tanh form)."""
    feed_forward_bias: bool = False
    """Biases in the feed-forward projections of both stacks."""
    attention_bias: bool = False
    """Biases in the attention projections of the long stack."""
    decoder_bias: bool = False
    """Biases in all attention and feed-forward projections of an encoder-decoder's decoder."""
    initialization: Literal["scaled", "published"] = "scaled"
    """Distribution of the initial weights, see `spade_model.initialization`."""
    dropout: float = 0.0
    """Dropout on embeddings, attention weights, feed-forward activations and sublayer outputs."""
    pad_token_id: int = 0
    """Fills decoder inputs behind ignored labels, and finished rows while generating."""
    eos_token_id: int = 1
    """Ends a generated row."""
    decoder_start_token_id: int = 0
    """First decoder input; may equal `pad_token_id`, masks never depend on token ids."""

    def __post_init__(self) -> None:
        for name in ("trainable_state_space", "state_space_layers"):
            if isinstance(getattr(self, name), list):  # YAML and JSON have no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_config(self)

    @property
    def is_causal_lm(self) -> bool:
        """Whether this is a decoder-only language model."""
        return self.num_encoder_layers == 0

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether both stacks have layers."""
        return self.num_encoder_layers > 0 and self.num_decoder_layers > 0

    @property
    def num_long_layers(self) -> int:
        """Layers of the long stack: the encoder, or the causal language model."""
        return self.num_encoder_layers or self.num_decoder_layers

    @property
    def state_space_layer_indices(self) -> tuple[int, ...]:
        """Layers of the long stack that carry a state space, ascending."""
        if self.state_space == "none":
            return ()
        return state_space_placement(self.state_space_layers, self.num_long_layers)

    @property
    def inner_dim(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def num_state_space_copies(self) -> int:
        """`state_space_copies` with its default filled in."""
        return self.d_model if self.state_space_copies is None else self.state_space_copies

    @property
    def smallest_time_step(self) -> float:
        """`dt_min` with its default filled in."""
        if self.dt_min is not None:
            return self.dt_min
        return min(1e-3, 2 / self.trained_length_tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON and YAML values."""
        values = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpadeConfig:
        """Build a configuration from what `to_dict` returned.

        Raises:
            ValueError: A key is unknown (the nearest known one is named), `vocab_size` is
                missing, or a value is impossible.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown model field {key!r}: {nearest_name(key, known)}")
        if "vocab_size" not in values:
            raise ValueError("vocab_size is missing: give the number of token ids")
        return cls(**values)
