"""Every architectural choice of the network, named once and validated once.

This file imports nothing but the standard library: configuration files are read on machines
without torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

STATE_SPACE_NAMES = ("C", "D", "log_dt", "A", "B", "P")
"""The quantities of a state-space layer that `trainable_state_space` may name."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``, did you mean 'd_model'?``, or the list of the known names."""
    candidates = list(known)
    close = difflib.get_close_matches(str(name), candidates, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known names: " + ", ".join(candidates)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpadeConfig:
    """The architecture of a SPADE encoder-decoder (arXiv 2212.08136).

    The defaults are ours: pre-norm with a final norm, and initial weights that suit AdamW and a
    tied head. `spade_model.published.published_config` gives the choices of the published models.

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
    """Layers of the encoder."""
    num_decoder_layers: int = 6
    """Layers of the decoder."""
    state_space_layers: int = 1
    """How many bottom encoder layers run S4 beside local attention; 0 is a window-only model."""
    state_dim: int = 64
    """N, the full size of one state; half of it is stored, the rest is its conjugate."""
    state_space_copies: int | None = None
    """How many different (A, B, P) there are; feature h uses copy ``h % copies``. None: d_model."""
    dt_min: float = 1e-3
    """Smallest initial time step; the longest memory is about ``2 / dt_min`` tokens."""
    dt_max: float = 1e-1
    """Largest initial time step."""
    trainable_state_space: tuple[str, ...] = ("C", "D", "log_dt")
    """Which state-space quantities are learned; the others are constants saved with the weights."""
    local_radius_tokens: int = 127
    """A token attends to this many neighbours on either side; blocks are one token longer."""
    relative_attention_num_buckets: int = 32
    """Rows of the relative position table of each encoder layer; half of them for each side."""
    relative_attention_max_distance_tokens: int = 128
    """Distances from here on share the last bucket."""
    normalization: Literal["pre", "post"] = "pre"
    """LayerNorm before each sublayer, or after each residual sum as in the published models."""
    final_layer_norm: bool = True
    """A LayerNorm at the end of a pre-norm stack; the published models have none."""
    feed_forward: Literal["relu", "gated_gelu"] = "relu"
    """One projection and ReLU, or two and a product with GELU (tanh form)."""
    feed_forward_bias: bool = False
    """Biases in the feed-forward projections of both stacks."""
    decoder_bias: bool = False
    """Biases in all attention and feed-forward projections of the decoder."""
    initialization: Literal["scaled", "published"] = "scaled"
    """Distribution of the initial weights, see `spade_model.initialization`."""
    dropout: float = 0.0
    """Dropout on embeddings, attention weights, feed-forward activations and sublayer outputs."""
    layer_norm_epsilon: float = 1e-6
    """Added to the variance in every LayerNorm."""
    max_target_length_tokens: int = 1024
    """Rows of the learned decoder positions: the longest target."""
    pad_token_id: int = 0
    """Fills decoder inputs behind ignored labels, and finished rows while generating."""
    eos_token_id: int = 1
    """Ends a generated row."""
    decoder_start_token_id: int = 0
    """First decoder input; may equal `pad_token_id`, masks never depend on token ids."""

    def __post_init__(self) -> None:
        self._check_types()
        self._check_sizes()
        self._check_state_space()
        self._check_tokens()

    @property
    def inner_dim(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.head_dim

    @property
    def num_state_space_copies(self) -> int:
        """`state_space_copies` with its default filled in."""
        return self.d_model if self.state_space_copies is None else self.state_space_copies

    @property
    def local_block_tokens(self) -> int:
        """Queries in one block of the local attention; its keys are three blocks."""
        return self.local_radius_tokens + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON and YAML values."""
        values = dataclasses.asdict(self)
        values["trainable_state_space"] = list(self.trainable_state_space)
        return values

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

    def _fail(self, field: str, problem: str, remedy: str) -> None:
        raise ValueError(f"{field}={getattr(self, field)!r} {problem}; {remedy}")

    def _check_types(self) -> None:
        """Standard dataclasses do not look at types, and YAML gives whatever was written."""
        if isinstance(self.trainable_state_space, list):
            object.__setattr__(self, "trainable_state_space", tuple(self.trainable_state_space))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                self._fail(field.name, "is not a whole number", "write one without quotes")
            if field.type == "bool" and not isinstance(value, bool):
                self._fail(field.name, "is not true or false", "write true or false")
            if field.type == "float":
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    self._fail(field.name, "is not a number", "write one such as 1.0e-3")
                if not math.isfinite(value):
                    self._fail(field.name, "is not finite", "write a finite number")
        for name, choices in (
            ("normalization", ("pre", "post")),
            ("feed_forward", ("relu", "gated_gelu")),
            ("initialization", ("scaled", "published")),
        ):
            if getattr(self, name) not in choices:
                self._fail(name, "is not a choice", f"use {' or '.join(choices)}")

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "d_model",
            "num_heads",
            "head_dim",
            "d_ff",
            "num_encoder_layers",
            "num_decoder_layers",
            "local_radius_tokens",
            "max_target_length_tokens",
        ):
            if getattr(self, name) < 1:
                self._fail(name, "is below 1", "use a positive number")
        if self.relative_attention_num_buckets < 4 or self.relative_attention_num_buckets % 4:
            self._fail(
                "relative_attention_num_buckets",
                "cannot be split into two sides of exact and logarithmic halves",
                "use a positive multiple of 4",
            )
        exact = self.relative_attention_num_buckets // 4
        if self.relative_attention_max_distance_tokens <= exact:
            self._fail(
                "relative_attention_max_distance_tokens",
                f"is within the {exact} distances that have a bucket of their own",
                f"use more than {exact}, or fewer relative_attention_num_buckets",
            )
        if self.normalization == "post" and self.final_layer_norm:
            self._fail(
                "final_layer_norm",
                "repeats the last norm of normalization='post'",
                "set final_layer_norm to false or normalization to pre",
            )
        if not 0.0 <= self.dropout < 1.0:
            self._fail("dropout", "is not in [0, 1)", "use 0.0 to switch dropout off")
        if self.layer_norm_epsilon <= 0.0:
            self._fail("layer_norm_epsilon", "is not positive", "use 1e-6")

    def _check_state_space(self) -> None:
        if not 0 <= self.state_space_layers <= self.num_encoder_layers:
            self._fail(
                "state_space_layers",
                f"is not within 0 and num_encoder_layers={self.num_encoder_layers}",
                "count the bottom encoder layers that carry a state space",
            )
        if self.state_dim < 2 or self.state_dim % 2:
            self._fail(
                "state_dim",
                "does not split into conjugate pairs",
                "use an even number, for example 64",
            )
        copies = self.state_space_copies
        if copies is not None:
            if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
                self._fail(
                    "state_space_copies",
                    "is not a positive whole number",
                    "leave it out for one a feature",
                )
            if self.d_model % copies:
                self._fail(
                    "state_space_copies",
                    f"does not divide d_model={self.d_model}",
                    "use a divisor, or leave it out for one a feature",
                )
        if not 0.0 < self.dt_min < self.dt_max:
            self._fail(
                "dt_min",
                f"is not within 0 and dt_max={self.dt_max!r}",
                "use 0 < dt_min < dt_max, for example 1e-3 and 1e-1",
            )
        if not isinstance(self.trainable_state_space, tuple):
            self._fail(
                "trainable_state_space", "is not a list", "use a list such as [C, D, log_dt]"
            )
        for name in self.trainable_state_space:
            if name not in STATE_SPACE_NAMES:
                hint = nearest_name(name, STATE_SPACE_NAMES)
                self._fail("trainable_state_space", f"names the unknown quantity {name!r}", hint)
        if len(set(self.trainable_state_space)) != len(self.trainable_state_space):
            self._fail("trainable_state_space", "repeats a name", "name each quantity once")

    def _check_tokens(self) -> None:
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                self._fail(
                    name,
                    f"is not a token id below vocab_size={self.vocab_size}",
                    "use an id of the tokenizer",
                )
