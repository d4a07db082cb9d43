"""What values a `SpadeConfig` may have, and what to tell whoever wrote others."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable
from typing import Any, NoReturn

STATE_SPACE_NAMES = ("C", "D", "log_dt", "A", "B", "P")
"""The quantities of a state-space layer that `trainable_state_space` may name."""

STATE_SPACE_QUANTITIES = {"log_decay": "A", "frequency": "A"}
"""Tensors of a state-space layer that have another name than the quantity they are part of."""

EMA_NAMES = ("alpha_logit", "delta_logit", "beta", "eta")
"""What an exponential moving average learns in any case."""

_POSITIVE = (
    "vocab_size",
    "d_model",
    "num_heads",
    "head_dim",
    "d_ff",
    "trained_length_tokens",
    "state_space_channels",
    "local_radius_tokens",
    "max_target_length_tokens",
)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'd_model'?``, or the list of the known names."""
    candidates = list(known)
    if not candidates:
        return "there are no names to choose from"
    close = difflib.get_close_matches(str(name), candidates, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known names: " + ", ".join(candidates)


def check_config(config: Any) -> None:
    """Check every field of a `SpadeConfig`, types first.

    Raises:
        ValueError: A value is impossible. The message names field, value and remedy.
    """
    _check_types(config)
    _check_sizes(config)
    _check_stacks(config)
    _check_positions(config)
    _check_norms(config)
    _check_state_space(config)
    _check_tokens(config)


def learned_quantities(config: Any) -> tuple[str, ...]:
    """Return the state-space quantities of a `SpadeConfig` that training changes."""
    if config.state_space == "none":
        return ()
    if config.state_space == "ema":
        return EMA_NAMES + (("D",) if "D" in config.trainable_state_space else ())
    return tuple(config.trainable_state_space)


def state_space_placement(layers: int | str | tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Return the layers that `SpadeConfig.state_space_layers` means, ascending.

    Args:
        layers: A number of bottom layers, ``every N``, or the layers themselves.
        num_layers: Of the stack.

    Raises:
        ValueError: It means no layer, one twice, or one that is not there; the message is the
            problem alone.
    """
    if isinstance(layers, str):
        match = re.fullmatch(r"every ([1-9][0-9]{0,5})", layers)
        if match is None:
            raise ValueError("is not of the form 'every 3'")
        return tuple(range(0, num_layers, int(match[1])))
    if isinstance(layers, int) and not isinstance(layers, bool):
        if not 1 <= layers <= num_layers:
            raise ValueError(f"is not within 1 and the {num_layers} layers of the stack")
        return tuple(range(layers))
    if not isinstance(layers, tuple) or not layers:
        raise ValueError("is neither a number, 'every N', nor a list of layers")
    for index in layers:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < num_layers:
            raise ValueError(f"names layer {index!r}, but there are layers 0 to {num_layers - 1}")
    if len(set(layers)) != len(layers):
        raise ValueError("names a layer twice")
    return tuple(sorted(layers))


def _fail(config: Any, field: str, problem: str, remedy: str) -> NoReturn:
    raise ValueError(f"{field}={getattr(config, field)!r} {problem}; {remedy}")


def _check_types(config: Any) -> None:
    """Standard dataclasses do not look at types, and YAML gives whatever was written."""
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), types[field.name]
        if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            _fail(config, field.name, "is not a whole number", "write one without quotes")
        if kind is bool and not isinstance(value, bool):
            _fail(config, field.name, "is not true or false", "write true or false")
        if kind is float or (field.name == "dt_min" and value is not None):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                _fail(config, field.name, "is not a number", "write one such as 1.0e-3")
            if not math.isfinite(value):
                _fail(config, field.name, "is not finite", "write a finite number")
        if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
            choices = " or ".join(typing.get_args(kind))
            _fail(config, field.name, "is not a choice", f"use {choices}")


def _check_sizes(config: Any) -> None:
    for name in _POSITIVE:
        if getattr(config, name) < 1:
            _fail(config, name, "is below 1", "use a positive number")
    if not 0.0 <= config.dropout < 1.0:
        _fail(config, "dropout", "is not in [0, 1)", "use 0.0 to switch dropout off")


def _check_stacks(config: Any) -> None:
    for name in ("num_encoder_layers", "num_decoder_layers"):
        if getattr(config, name) < 0:
            _fail(config, name, "is below 0", "use 0 to leave the stack out")
    if config.num_encoder_layers == config.num_decoder_layers == 0:
        _fail(config, "num_encoder_layers", "leaves no layers", "give one of the stacks some")


def _check_positions(config: Any) -> None:
    rotated = [name for name in ("position", "decoder_position") if getattr(config, name) == "rope"]
    if rotated and config.head_dim % 2:
        _fail(config, "head_dim", f"is odd, but {rotated[0]}='rope' turns pairs", "use an even one")
    if config.shared_relative_bias and config.position != "relative_bias":
        _fail(
            config,
            "shared_relative_bias",
            f"shares nothing with position={config.position!r}",
            "set it to false or position to relative_bias",
        )
    buckets = config.relative_attention_num_buckets
    if buckets < 4 or buckets % 4:
        _fail(
            config,
            "relative_attention_num_buckets",
            "cannot be split into two sides of exact and logarithmic halves",
            "use a positive multiple of 4",
        )
    # Of a table for the past alone, half of the buckets hold one distance each.
    one_sided = config.is_causal_lm or config.decoder_position == "relative_bias"
    exact = buckets // (2 if one_sided else 4)
    if config.relative_attention_max_distance_tokens <= exact:
        _fail(
            config,
            "relative_attention_max_distance_tokens",
            f"is within the {exact} distances that have a bucket of their own",
            f"use more than {exact}, or fewer relative_attention_num_buckets",
        )


def _check_norms(config: Any) -> None:
    if config.normalization == "post" and config.final_norm:
        _fail(
            config,
            "final_norm",
            "repeats the last norm of normalization='post'",
            "set final_norm to false or normalization to pre",
        )
    if config.norm_epsilon <= 0.0:
        _fail(config, "norm_epsilon", "is not positive", "use 1e-6")


def _check_state_space(config: Any) -> None:
    try:
        state_space_placement(config.state_space_layers, config.num_long_layers)
    except ValueError as error:
        _fail(
            config,
            "state_space_layers",
            str(error),
            "count the bottom layers of the stack, write 'every 3', or list layers from 0",
        )
    if config.state_dim < 2 or config.state_dim % 2:
        _fail(
            config,
            "state_dim",
            "does not split into conjugate pairs",
            "use an even number, for example 64",
        )
    _check_copies(config)
    if not 0.0 < config.smallest_time_step < config.dt_max:
        _fail(
            config,
            "dt_min",
            f"is not within 0 and dt_max={config.dt_max!r}",
            "use 0 < dt_min < dt_max, for example 1e-3 and 1e-1",
        )
    diagonal = config.state_space.startswith("s4d_")
    if config.state_space_discretization != "bilinear" and not diagonal:
        _fail(
            config,
            "state_space_discretization",
            f"is not known to state_space={config.state_space!r}",
            "use bilinear, or one of the s4d_ layers",
        )
    if config.state_space_channels > 1 and config.combine != "concat":
        _fail(
            config,
            "state_space_channels",
            f"does not fit the width under combine={config.combine!r}",
            "use 1 channel or combine concat",
        )
    if not 0.0 <= config.combine_weight <= 1.0:
        _fail(config, "combine_weight", "is not in [0, 1]", "use the share of the global branch")
    _check_trainable(config)


def _check_copies(config: Any) -> None:
    copies = config.state_space_copies
    if copies is None:
        return
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
        _fail(
            config,
            "state_space_copies",
            "is not a positive whole number",
            "leave it out for one a feature",
        )
    if config.d_model % copies:
        _fail(
            config,
            "state_space_copies",
            f"does not divide d_model={config.d_model}",
            "use a divisor, or leave it out for one a feature",
        )


def _check_trainable(config: Any) -> None:
    names = config.trainable_state_space
    if not isinstance(names, tuple):
        _fail(config, "trainable_state_space", "is not a list", "use one such as [C, D, log_dt]")
    for name in names:
        if name not in STATE_SPACE_NAMES:
            hint = nearest_name(name, STATE_SPACE_NAMES)
            problem = f"names the unknown quantity {name!r}"
            _fail(config, "trainable_state_space", problem, hint)
    if len(set(names)) != len(names):
        _fail(config, "trainable_state_space", "repeats a name", "name each quantity once")
    if "P" in names and config.state_space.startswith("s4d_"):
        problem = f"names P, which state_space={config.state_space!r} does not have"
        _fail(config, "trainable_state_space", problem, "leave P out")


def _check_tokens(config: Any) -> None:
    for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        if not 0 <= getattr(config, name) < config.vocab_size:
            _fail(
                config,
                name,
                f"is not a token id below vocab_size={config.vocab_size}",
                "use an id of the tokenizer",
            )
