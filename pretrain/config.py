"""The configuration of a run: typed, strict, and checked before any process starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from pretrain.checkpoints.settings import CheckpointSettings
from pretrain.data_settings import DataSettings
from pretrain.engine.settings import DeepSpeedSettings
from pretrain.errors import ConfigError
from pretrain.evaluation.settings import EvaluationSettings
from pretrain.initial_weights import check_initial_weights
from pretrain.optimization.curriculum import stage_at
from pretrain.optimization.settings import (
    Curriculum,
    OptimizerSettings,
    ScheduleSettings,
    SpikeSettings,
)
from pretrain.parallel import ParallelSettings
from pretrain.resilience.settings import ResilienceSettings
from pretrain.section import NonNegative, Positive, Section, problem_lines
from pretrain.telemetry.settings import TelemetrySettings
from pretrain.yaml_text import parse_yaml, read_yaml, to_yaml
from spade_model.config import AttentionBackend, CheckpointingKind, SpadeConfig
from spade_model.config_checks import learned_quantities, nearest_name


class TrainSettings(Section):
    """The loop."""

    seed: NonNegative = 0
    """Initial weights, order of samples, masks and dropout all follow from it."""
    max_steps: Positive
    """Optimizer updates of the whole run; skipped steps do not count."""
    global_batch_size: Positive
    """Samples of one optimizer step, over all ranks and accumulation."""
    micro_batch_size: Positive
    """Samples of one forward pass on one rank."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of the matrix products; weights, state-space layers, softmax and loss stay float32. `fp16`
    scales the loss and is for GPUs that lack bfloat16."""
    gradient_clipping: Annotated[float, Field(gt=0)] = 1.0
    """Largest global gradient norm."""
    activation_checkpointing: CheckpointingKind = "none"
    """`full` keeps of each layer its input and computes the layer again in the backward pass: far
    less memory, a third more work; `selective` keeps the matrix products as well: less is saved,
    and less computed again."""
    activation_checkpointing_every_layers: Positive = 1
    """Of so many layers one is treated so; 1 means all."""
    compile: bool = False
    """Compile the layers with torch.compile: faster after a first step of a minute or more. Needs a
    C++ compiler on CPUs."""
    matrix_product_precision: Literal["ieee", "tf32"] = "ieee"
    """On GPUs, how float32 matrix products are computed: `tf32` is faster and rounds to ten bits;
    it concerns what autocast leaves in float32, the state-space kernels among it."""
    attention_backend: AttentionBackend = "auto"
    """Who computes the encoder's attention: tiles for CPUs, blocks for GPUs, `flex` for torch's
    compiled kernels, `reference` for the quadratic definition; `auto` chooses by device."""
    deterministic: bool = False
    """On GPUs use only kernels that give the same bits every time, about a quarter slower: needed
    for runs that are to be equal bit for bit. On CPUs they always are."""
    curriculum: Curriculum = ()
    """Smaller batches or shorter windows at first, as stages counted in tokens."""
    log_every_steps: Positive = 1
    """Steps between two lines of metrics."""


class Stage(NamedTuple):
    """What holds for a part of the run."""

    global_batch_size: int
    input_length_tokens: int


class RunConfig(Section):
    """One pretraining run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """The run's folder is `run_dir/name`: letters, digits, dot, dash and underscore."""
    run_dir: Path = Path("runs")
    """Folder of all runs."""
    initial_weights: Path | None = None
    """Folder of a Hugging Face model of ours whose weights the run starts from; none means weights
    drawn from `train.seed`. A run that goes on from a checkpoint does not read it again."""
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
    spikes: SpikeSettings = SpikeSettings()
    """What happens when loss or gradients jump."""
    resilience: ResilienceSettings = ResilienceSettings()
    """What ends a run that cannot or shall not go on."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """What is told while it goes on."""
    parallel: ParallelSettings = ParallelSettings()
    """What ranks share out beside samples and weights."""
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
        warmup_steps = self.schedule.steps_of_warmup()
        if warmup_steps + self.schedule.decay_steps > train.max_steps:
            raise ValueError(
                f"schedule.warmup_steps {warmup_steps} and schedule.decay_steps "
                f"{self.schedule.decay_steps} together exceed train.max_steps {train.max_steps}; "
                "shorten one of them"
            )
        every, evaluated_every = self.checkpoint.every_steps, self.evaluation.every_steps
        if self.checkpoint.keep_best and every % evaluated_every:
            raise ValueError(
                f"checkpoint.keep_best {self.checkpoint.keep_best} keeps checkpoints of steps that "
                f"were evaluated, but checkpoint.every_steps {every} is no multiple of "
                f"evaluation.every_steps {evaluated_every}; change one of them"
            )
        self._check_curriculum()
        lengths = [stage.input_length_tokens for stage in train.curriculum]
        shortest = min([data.input_length_tokens, *(length for length in lengths if length)])
        self.parallel.check(model, shortest, compiled=train.compile)
        self.evaluation.check_lengths(data, model.max_target_length_tokens)
        self.optimizer.check_sharding(self.deepspeed.zero_stage)
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

    def _check_curriculum(self) -> None:
        for number, stage in enumerate(self.train.curriculum):
            name = f"train.curriculum.{number}"
            batch = stage.global_batch_size
            if batch is not None and batch % self.train.micro_batch_size:
                raise ValueError(
                    f"{name}.global_batch_size {batch} is no multiple of train.micro_batch_size "
                    f"{self.train.micro_batch_size}; change one of them"
                )
            length = stage.input_length_tokens
            if length is None:
                continue
            if length > self.data.input_length_tokens:
                raise ValueError(
                    f"{name}.input_length_tokens {length} exceeds data.input_length_tokens "
                    f"{self.data.input_length_tokens}; raise that, it is the longest of the run"
                )
            if length <= self.model.local_radius_tokens:
                raise ValueError(
                    f"{name}.input_length_tokens {length} is within model.local_radius_tokens "
                    f"{self.model.local_radius_tokens}; lengthen it"
                )

    def stage(self, tokens_seen: int) -> Stage:
        """Batch and length that hold after so many tokens."""
        found = stage_at(self.train.curriculum, tokens_seen)
        batch = None if found is None else found.global_batch_size
        length = None if found is None else found.input_length_tokens
        return Stage(batch or self.train.global_batch_size, length or self.data.input_length_tokens)

    def data_of(self, stage: Stage) -> DataSettings:
        """The data settings of a stage: as configured, with its length."""
        return self.data.model_copy(update={"input_length_tokens": stage.input_length_tokens})

    def accumulation_steps(self, world_size: int, global_batch_size: int | None = None) -> int:
        """Micro-batches of one step on each rank.

        Args:
            world_size: Number of ranks.
            global_batch_size: Of a stage of the curriculum; by default the run's.

        Raises:
            ConfigError: If the global batch cannot be cut evenly over the ranks.
        """
        batch = global_batch_size or self.train.global_batch_size
        groups, left_over = divmod(world_size, self.parallel.context)
        if left_over or groups == 0:
            raise ConfigError(
                f"parallel.context {self.parallel.context} does not divide {world_size} processes; "
                "change one of them"
            )
        samples = self.train.micro_batch_size * groups
        if batch % samples:
            name = "train.global_batch_size"
            if batch != self.train.global_batch_size:
                name = "global_batch_size of a stage of train.curriculum"
            sharers = "processes" if groups == world_size else "groups of processes"
            raise ConfigError(
                f"{name} {batch} is no multiple of train.micro_batch_size "
                f"{self.train.micro_batch_size} x {groups} {sharers} = {samples}; change the "
                "batch or the number of processes"
            )
        return batch // samples

    def most_accumulation_steps(self, world_size: int) -> int:
        """The same for the largest batch of the run; all batches are checked.

        Raises:
            ConfigError: If one of them cannot be cut evenly over the ranks.
        """
        batches = [stage.global_batch_size for stage in self.train.curriculum]
        steps = [self.accumulation_steps(world_size, batch) for batch in (None, *batches)]
        return max(steps)

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
            raise ConfigError("\n".join(problem_lines(cls, origin, error))) from None

    @classmethod
    def load(
        cls, path: Path, overrides: Sequence[str] = (), *, data_here: bool = True
    ) -> RunConfig:
        """Read a YAML file, apply ``a.b=c`` overrides, fill in what the data decide, and check.

        Nothing is started and nothing is written. The data sets named must exist, since the
        vocabulary and the number of sentinels are checked against them.

        Args:
            path: The YAML file.
            overrides: ``section.key=value`` words; the value is read as YAML.
            data_here: Whether this machine sees the data sets. If not, nothing is checked against
                them, and the vocabulary must be given.

        Raises:
            ConfigError: One line a problem: field, value, remedy.
            DataError: If a data set's manifest is missing or damaged.
        """
        values = read_yaml(path)
        for override in overrides:
            _apply_override(values, override)
        manifest = _train_manifest(values, str(path)) if data_here else None
        model = values.setdefault("model", {})
        if isinstance(model, dict):
            if manifest is not None:
                model.setdefault("vocab_size", manifest.vocab_size)
            elif not data_here and "vocab_size" not in model:
                raise ConfigError(
                    f"{path}: model.vocab_size is missing, and the data that have it cannot be "
                    "seen from here; add it (spade data inspect tells it)"
                )
            target_tokens = _target_tokens(values)
            if target_tokens is not None:
                model.setdefault("max_target_length_tokens", target_tokens)
                input_tokens = values["data"].get("input_length_tokens")
                if input_tokens is not None:
                    model.setdefault("trained_length_tokens", input_tokens)
        config = cls.from_dict(values, str(path))
        if data_here:
            config.check_data()
            if not any(config.run_path.glob("checkpoints/step-*[0-9]/manifest.json")):
                config.check_initial_weights()
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
        self.evaluation.check_data(self.data)

    def check_initial_weights(self) -> None:
        """Check that the run can start from the weights it names, if it names some.

        Raises:
            ConfigError: If there are none, or they are of another model or tokenizer.
            DataError: If the tokenizer cannot be read.
        """
        if self.initial_weights is not None:
            check_initial_weights(self.initial_weights, self.model, self.data.tokenizer)


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
