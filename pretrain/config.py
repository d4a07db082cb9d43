"""The configuration of a run: typed, strict, and checked before any process starts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from pretrain.data_settings import DataSettings
from pretrain.errors import ConfigError
from pretrain.optimization.schedules import ScheduleKind
from pretrain.section import NonNegative, Positive, Section
from pretrain.yaml_text import parse_yaml, read_yaml, to_yaml
from spade_model.config import AttentionBackend, SpadeConfig
from spade_model.config_checks import learned_quantities, nearest_name


class TrainSettings(Section):
    """The loop."""

    seed: NonNegative = 0
    """Initial weights, order of samples, masks and dropout all follow from it."""
    max_steps: Positive
    """Optimizer steps of the whole run."""
    global_batch_size: Positive
    """Samples of one optimizer step, over all ranks and accumulation."""
    micro_batch_size: Positive
    """Samples of one forward pass on one rank."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the matrix products; weights, state-space layers, softmax and loss stay float32."""
    gradient_clipping: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
    activation_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass: less memory, a third more work."""
    attention_backend: AttentionBackend = "auto"
    """Who computes the encoder's attention: tiles for CPUs, blocks for GPUs, `flex` for torch's
    compiled kernels, `reference` for the quadratic definition; `auto` chooses by device."""
    deterministic: bool = False
    """On GPUs use only kernels that give the same bits every time, about a quarter slower: needed
    for runs that are to be equal bit for bit. On CPUs they always are."""
    log_every_steps: Positive = 1
    """Steps between two lines of metrics."""


class OptimizerSettings(Section):
    """AdamW, in three groups: decayed, not decayed, state-space."""

    learning_rate: Annotated[float, Field(gt=0)]
    """Peak rate of every parameter outside the state-space layers."""
    state_space_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak rate of the state-space parameters; none means `learning_rate`."""
    state_space_learning_rates: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict
    )
    """Peak rates of single state-space quantities, such as ``{log_dt: 1.0e-4}``, where they differ
    from `state_space_learning_rate`. Names are those of `model.trainable_state_space`, and for an
    EMA those of its tensors."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of matrices and embeddings; norms, biases and state-space parameters never decay."""
    betas: tuple[
        Annotated[float, Field(ge=0, lt=1)],
        Annotated[float, Field(ge=0, lt=1)],
    ] = (0.9, 0.98)
    """Decay rates of the two moments."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""


class ScheduleSettings(Section):
    """How the learning rates move; see `pretrain.optimization.schedules`."""

    kind: ScheduleKind = "cosine"
    """`inverse_sqrt`, `cosine`, or `wsd` (warm-up, stable, decay)."""
    warmup_steps: NonNegative = 100
    """Steps of linear warm-up."""
    decay_steps: NonNegative = 0
    """Steps of the closing decay; for `wsd`, where it must be above 0."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Rate at the last step over the peak rate; for `cosine` and `wsd`."""

    @model_validator(mode="after")
    def _decay_belongs_to_wsd(self) -> ScheduleSettings:
        if self.kind == "wsd" and self.decay_steps == 0:
            raise ValueError("decay_steps is 0; wsd needs a decay, a tenth of max_steps is common")
        if self.kind != "wsd" and self.decay_steps != 0:
            raise ValueError(
                f"decay_steps is {self.decay_steps} but only kind: wsd decays so; remove it"
            )
        return self


class EvaluationSettings(Section):
    """Held-out denoising loss."""

    every_steps: Positive = 500
    """Steps between two evaluations; one is always made before the first and after the last."""
    samples: Positive = 64
    """Held-out samples, always the same ones."""


class CheckpointSettings(Section):
    """When state is written and how much of it is kept."""

    every_steps: Positive = 500
    """Steps between two checkpoints; one is always written at the end and on a stop."""
    keep_last: Positive = 2
    """Complete checkpoints that are kept."""


class DeepSpeedSettings(Section):
    """What is left to DeepSpeed."""

    zero_stage: Literal[1, 2] = 2
    """1 shards the optimizer's state over the ranks, 2 the gradients as well."""


class RunConfig(Section):
    """One pretraining run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The run's folder is `run_dir/name`: letters, digits, dot, dash and underscore."""
    run_dir: Path = Path("runs")
    """Folder of all runs."""
    model: SpadeConfig
    """The network. Left out: `vocab_size` comes from the tokenizer, `trained_length_tokens` from
    the input length, `max_target_length_tokens` from the objective."""
    data: DataSettings
    """The samples."""
    train: TrainSettings
    """The loop."""
    optimizer: OptimizerSettings
    """The update."""
    schedule: ScheduleSettings = ScheduleSettings()
    """The learning rate."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """The held-out loss."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    """What survives."""
    deepspeed: DeepSpeedSettings = DeepSpeedSettings()
    """The engine."""

    @model_validator(mode="after")
    def _values_fit_together(self) -> RunConfig:
        train, data, model = self.train, self.data, self.model
        if train.global_batch_size % train.micro_batch_size:
            raise ValueError(
                f"train.global_batch_size {train.global_batch_size} is no multiple of "
                f"train.micro_batch_size {train.micro_batch_size}; change one of them"
            )
        self._check_rates()
        if not model.is_encoder_decoder:
            raise ValueError(
                f"model.num_encoder_layers {model.num_encoder_layers} and model.num_decoder_layers "
                f"{model.num_decoder_layers} make no encoder-decoder, which span corruption needs; "
                "give both stacks layers"
            )
        if model.local_radius_tokens >= data.input_length_tokens:
            raise ValueError(
                f"model.local_radius_tokens {model.local_radius_tokens} reaches beyond "
                f"data.input_length_tokens {data.input_length_tokens}; use a smaller radius"
            )
        target_tokens = data.make_objective().target_length_tokens
        if model.max_target_length_tokens < target_tokens:
            raise ValueError(
                f"model.max_target_length_tokens {model.max_target_length_tokens} is below the "
                f"{target_tokens} target tokens of data.input_length_tokens "
                f"{data.input_length_tokens}; raise it or leave it out"
            )
        if self.schedule.warmup_steps > train.max_steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} exceeds train.max_steps "
                f"{train.max_steps}; shorten the warm-up"
            )
        if self.schedule.warmup_steps + self.schedule.decay_steps > train.max_steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} and schedule.decay_steps "
                f"{self.schedule.decay_steps} together exceed train.max_steps {train.max_steps}"
            )
        return self

    def _check_rates(self) -> None:
        learned = learned_quantities(self.model)
        for name in self.optimizer.state_space_learning_rates:
            if name not in learned:
                raise ValueError(
                    f"optimizer.state_space_learning_rates names {name!r}, which is not learned by "
                    f"state_space {self.model.state_space!r}: {nearest_name(name, learned)}"
                )

    @property
    def run_path(self) -> Path:
        """The run's own folder."""
        return self.run_dir / self.name

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches of one step on each rank.

        Raises:
            ConfigError: If the global batch cannot be cut evenly over the ranks.
        """
        samples = self.train.micro_batch_size * world_size
        if self.train.global_batch_size % samples:
            raise ConfigError(
                f"train.global_batch_size {self.train.global_batch_size} is no multiple of "
                f"train.micro_batch_size {self.train.micro_batch_size} x {world_size} processes "
                f"= {samples}; change the batch or the number of processes"
            )
        return self.train.global_batch_size // samples

    def to_dict(self) -> dict[str, Any]:
        """Plain data: what YAML and JSON can hold."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as a YAML file that loads to the same run."""
        return to_yaml(self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "configuration") -> RunConfig:
        """Validate plain data.

        Raises:
            ConfigError: One line a problem: field, value, remedy.
        """
        try:
            # JSON mode: lists may be tuples and strings paths, yet "3" is no number.
            return cls.model_validate_json(json.dumps(values), strict=True)
        except TypeError as error:
            raise ConfigError(f"{origin}: {error}; use plain numbers, words and lists") from None
        except ValidationError as error:
            lines = [_problem(origin, detail) for detail in error.errors()]
            raise ConfigError("\n".join(lines)) from None

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> RunConfig:
        """Read a YAML file, apply ``a.b=c`` overrides, fill in what the data decide, and check.

        Nothing is started and nothing is written. The data sets named must exist, since the
        vocabulary and the number of sentinels are checked against them.

        Args:
            path: The YAML file.
            overrides: ``section.key=value`` words; the value is read as YAML.

        Raises:
            ConfigError: One line a problem: field, value, remedy.
            DataError: If a data set's manifest is missing or damaged.
        """
        values = read_yaml(path)
        for override in overrides:
            _apply_override(values, override)
        manifest = _train_manifest(values, str(path))
        model = values.setdefault("model", {})
        if isinstance(model, dict) and manifest is not None:
            model.setdefault("vocab_size", manifest.vocab_size)
            target_tokens = _target_tokens(values)
            if target_tokens is not None:
                model.setdefault("max_target_length_tokens", target_tokens)
                input_tokens = values["data"].get("input_length_tokens")
                if input_tokens is not None:
                    model.setdefault("trained_length_tokens", input_tokens)
        config = cls.from_dict(values, str(path))
        config.check_data()
        return config

    def check_data(self) -> None:
        """Check the configuration against the data sets it names.

        Raises:
            ConfigError: On another vocabulary, too few sentinels, or data sets and a tokenizer
                that do not belong together.
            DataError: If a manifest is missing or damaged.
        """
        train = next(iter(self.data.manifests().values()))
        if self.model.vocab_size != train.vocab_size:
            raise ConfigError(
                f"model.vocab_size {self.model.vocab_size} differs from the {train.vocab_size} ids "
                "of the tokenizer of data.train; leave model.vocab_size out"
            )
        self.data.check_data()


def json_schema() -> dict[str, Any]:
    """The configuration's JSON schema, for editors that complete YAML."""
    return RunConfig.model_json_schema()


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    names = key.split(".")
    if not separator or not all(names):
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    place = values
    for name in names[:-1]:
        inner = place.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a section")
        place = inner
    place[names[-1]] = parse_yaml(text, f"override {key}")


def _train_manifest(values: dict[str, Any], origin: str) -> Manifest | None:
    """The manifest of the first training data set; None where validation will find it missing."""
    data = _data_settings(values)
    if data is None:
        return None
    for name, place in data.locations().items():
        if isinstance(place, Path) and not place.is_dir():
            field = "data.train" if isinstance(data.train, str) else f"data.train.{name}"
            raise ConfigError(
                f"{origin}: {field} {place} is no folder; build it with `spade data build`"
            )
    return data.load_manifest(next(iter(data.locations().values())))


def _target_tokens(values: dict[str, Any]) -> int | None:
    data = _data_settings(values)
    try:
        return None if data is None else data.make_objective().target_length_tokens
    except DataError:
        return None  # validation names what is wrong


def _data_settings(values: dict[str, Any]) -> DataSettings | None:
    """The data part alone, or None where it is not valid: validation names what is wrong."""
    try:
        return DataSettings.model_validate_json(json.dumps(values["data"]), strict=True)
    except (KeyError, TypeError, ValueError):
        return None


def _known_names(location: Sequence[int | str]) -> list[str]:
    """The keys allowed where an unknown one was found."""
    section: Any = RunConfig
    for name in location[:-1]:
        field = section.model_fields.get(name) if hasattr(section, "model_fields") else None
        section = field.annotation if field is not None else None
        if section is None:
            return []
    if hasattr(section, "model_fields"):
        return list(section.model_fields)
    return list(getattr(section, "__dataclass_fields__", ()))


def _problem(origin: str, detail: Any) -> str:
    """One line for one thing pydantic found."""
    location = [part for part in detail["loc"] if part != "__root__"]
    field = ".".join(str(part) for part in location) or "configuration"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _known_names(location)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{origin}: {field} is not a setting; {hint}"
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{origin}: {field} is missing; add it"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{origin}: {message}"
    return f"{origin}: {field} is {json.dumps(detail['input'])}: {message}"
