"""The data part of a configuration: which data sets, in which mixture, for which objective."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from data_pipeline.errors import DataError
from data_pipeline.objectives import Objective, make_objective
from data_pipeline.objectives.sentences import sentence_end_table
from data_pipeline.reading.mixture import Stage, temperature_weights
from data_pipeline.reading.quarantine import DamagePolicy, QuarantineEntry
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import special_tokens
from data_pipeline.reading.windows import WindowMode
from data_pipeline.remote.dataset_folder import CacheSettings, open_dataset_folder
from data_pipeline.shards.manifest import Manifest
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.errors import ConfigError
from pretrain.section import NonNegative, Positive, Section

Weight = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Of something that metrics are named after: letters, digits, dot, dash and underscore."""

SINGLE_SOURCE = "train"
"""Name of the data set where `data.train` is just a path."""

ALL_HELDOUT = "heldout"
"""Name of the held-out data taken together, and of the data set where `data.heldout` is just a
path."""


class SpanCorruptionSettings(Section):
    """T5's objective: masked spans are asked for."""

    kind: Literal["span_corruption"] = "span_corruption"
    """Chooses this objective."""
    noise_density: Fraction = 0.15
    """Fraction of a window's tokens that is masked (T5: 0.15)."""
    mean_span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of a masked span (T5: 3)."""


class Ul2Settings(Section):
    """UL2's mixture of regular, sequential and extreme denoisers."""

    kind: Literal["ul2"]
    """Chooses this objective."""
    r_weight: Weight = 2.0
    """Weight of regular denoising: short spans, few of them."""
    s_weight: Weight = 1.0
    """Weight of sequential denoising: the last quarter is asked for."""
    x_weight: Weight = 4.0
    """Weight of extreme denoising: long spans or many."""
    shortest_mean_span_tokens: Annotated[float, Field(ge=1)] = 3.0
    """Lower bound of the denoisers' mean span: raise it where long windows need more sentinels
    than the tokenizer has."""


class PrefixLmSettings(Section):
    """The end of a window is asked for, given its beginning."""

    kind: Literal["prefix_lm"]
    """Chooses this objective."""
    longest_target_tokens: Positive | None = None
    """Most tokens asked for; none means any number."""


class GapSentencesSettings(Section):
    """PEGASUS's objective: the sentences that say most about the rest are asked for."""

    kind: Literal["gap_sentences"]
    """Chooses this objective."""
    gap_ratio: Fraction = 0.2
    """Share of a window's tokens that is asked for, at most."""


ObjectiveSettings = Annotated[
    SpanCorruptionSettings | Ul2Settings | PrefixLmSettings | GapSentencesSettings,
    Field(discriminator="kind"),
]


class SourceSettings(Section):
    """One data set of a mixture."""

    path: str
    """Its folder or URL."""
    weight: Weight | None = None
    """Share of the samples, beside the other weights; left out by all, sizes decide."""


class StageSettings(Section):
    """Weights from a sample on."""

    from_sample: Positive
    """First sample of the run that they hold for."""
    weights: dict[str, Weight]
    """Weight of each source; sources left out rest."""


class DataSettings(Section):
    """Where the samples come from and what is asked of them."""

    train: str | dict[str, SourceSettings]
    """What to train on: the folder or URL of a data set written by `spade data build` or indexed by
    `spade data index`, or several by name with weights."""
    heldout: str | dict[Name, str]
    """What is never trained on: the folder or URL of a data set, or several by name, such as one a
    source. Each is evaluated by itself, and all of them together as `heldout`."""
    tokenizer: Path
    """Folder of the tokenizer that all were written with."""
    input_length_tokens: Annotated[int, Field(ge=16)] = 512
    """Longest encoder input after corruption, its closing end-of-sequence included."""
    objective: ObjectiveSettings = SpanCorruptionSettings()
    """What is made of a window of text."""
    temperature: Annotated[float, Field(ge=1)] = 1.0
    """Where no source has a weight: 1 mixes by size, more makes small sources count more."""
    stages: tuple[StageSettings, ...] = ()
    """Other weights later in the run."""
    windows: WindowMode = "concat"
    """`concat` lays documents end to end, so that every window is full; `document` never joins two
    of them: long ones are cut, and short ones batched with others of their length."""
    document_boundaries: bool = False
    """Keeps the documents of a window apart in the encoder: attention and state stop between."""
    bucket_samples: Positive = 64
    """In `document` windows, neighbouring samples of similar lengths; best a multiple of
    `train.micro_batch_size`."""
    group_shards: Positive | None = None
    """Shards that are shuffled together, so that only they must be at hand; none means all. Choose
    it for remote data."""
    workers: NonNegative = 0
    """Processes on each rank that make batches; 0 makes them in a thread."""
    memory_map: bool = False
    """Read shards through memory maps: faster, but a shard that is cut off while it is used ends
    the process (SIGBUS)."""
    on_damage: DamagePolicy = "fail"
    """Damaged data end the run, or are put in `quarantine` and replaced by other samples."""
    max_damaged_fraction: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Share of a data set that may be quarantined before the run ends all the same."""
    cache_folder: Path | None = None
    """Where remote shards are kept; none means the user's cache folder."""
    cache_bytes: Positive = 32 * 2**30
    """Most bytes of remote shards kept there."""

    @model_validator(mode="after")
    def _sources_fit_together(self) -> DataSettings:
        sources = self.sources()
        if not sources:
            raise ValueError("data.train names no data set; give it at least one")
        weighed = [name for name, source in sources.items() if source.weight is not None]
        if weighed and len(weighed) < len(sources):
            missing = next(name for name in sources if name not in weighed)
            raise ValueError(
                f"data.train.{missing} has no weight though {weighed[0]} has one; give all of them "
                "weights, or none"
            )
        for number, stage in enumerate(self.stages):
            for name in stage.weights:
                if name not in sources:
                    raise ValueError(
                        f"data.stages.{number} weighs {name!r}, which data.train does not name; "
                        f"known: {', '.join(sources)}"
                    )
            if number and stage.from_sample <= self.stages[number - 1].from_sample:
                raise ValueError(
                    f"data.stages.{number}.from_sample {stage.from_sample} is not beyond the stage "
                    "before; put the stages in order"
                )
        return self

    @model_validator(mode="after")
    def _heldout_sets_are_named(self) -> DataSettings:
        if isinstance(self.heldout, str):
            return self
        if not self.heldout:
            raise ValueError("data.heldout names no data set; give it at least one")
        if ALL_HELDOUT in self.heldout:
            raise ValueError(
                f"data.heldout.{ALL_HELDOUT} has the name under which all held-out sets are "
                "evaluated together; choose another"
            )
        return self

    def sources(self) -> dict[str, SourceSettings]:
        """The training data sets by name."""
        if isinstance(self.train, str):
            return {SINGLE_SOURCE: SourceSettings(path=self.train)}
        return dict(self.train)

    def locations(self) -> dict[str, Path | str]:
        """Where the training data sets lie, by name."""
        return {name: location_of(source.path) for name, source in self.sources().items()}

    def heldout_locations(self) -> dict[str, Path | str]:
        """Where the held-out data sets lie, by name."""
        if isinstance(self.heldout, str):
            return {ALL_HELDOUT: location_of(self.heldout)}
        return {name: location_of(place) for name, place in self.heldout.items()}

    def make_objective(self, objective: ObjectiveSettings | None = None) -> Objective:
        """An objective with these lengths.

        Args:
            objective: Which; None means the one that is trained.

        Raises:
            DataError: If the lengths are impossible.
        """
        chosen = objective or self.objective
        return make_objective(
            chosen.kind,
            input_length_tokens=self.input_length_tokens,
            **chosen.model_dump(exclude={"kind"}),
        )

    def manifests(self) -> dict[str, Manifest]:
        """Manifests of the training data sets by name.

        Raises:
            DataError: If one is missing or damaged.
        """
        return {name: self.load_manifest(place) for name, place in self.locations().items()}

    def load_manifest(self, location: Path | str) -> Manifest:
        """The manifest of one data set.

        Raises:
            DataError: If it is missing or damaged.
        """
        folder = open_dataset_folder(location, self._cache())
        try:
            return Manifest.load(folder)
        finally:
            folder.close()

    def first_weights(self, manifests: dict[str, Manifest]) -> dict[str, float]:
        """Weights of the sources at the beginning of the run, by size where none are given."""
        weights = {name: source.weight for name, source in self.sources().items()}
        given = {name: weight for name, weight in weights.items() if weight is not None}
        if given:
            return given
        tokens = {name: manifest.tokens for name, manifest in manifests.items()}
        return temperature_weights(tokens, self.temperature)

    def stream_settings(
        self, seed: int, quarantined: tuple[QuarantineEntry, ...] = ()
    ) -> StreamSettings:
        """The training stream.

        Args:
            seed: Of the run.
            quarantined: What is known to be damaged from before.
        """
        first = Stage(0, self.first_weights(self.manifests()))
        later = (Stage(stage.from_sample, stage.weights) for stage in self.stages)
        return self._stream_settings(
            self.locations(), seed, self.objective, (first, *later), quarantined
        )

    def heldout_settings(
        self, seed: int, name: str = ALL_HELDOUT, objective: ObjectiveSettings | None = None
    ) -> StreamSettings:
        """The stream of a held-out data set.

        Args:
            seed: Of the run.
            name: Which of `heldout_locations`.
            objective: What is made of its windows; None means the objective that is trained.
        """
        place = self.heldout_locations()[name]
        return self._stream_settings({name: place}, seed, objective or self.objective)

    def _stream_settings(
        self,
        sources: dict[str, Path | str],
        seed: int,
        objective: ObjectiveSettings,
        stages: tuple[Stage, ...] = (),
        quarantined: tuple[QuarantineEntry, ...] = (),
    ) -> StreamSettings:
        return StreamSettings(
            sources=sources,
            objective=self.make_objective(objective),
            seed=seed,
            stages=stages,
            windows=self.windows,
            group_shards=self.group_shards,
            bucket_samples=self.bucket_samples,
            document_boundaries=self.document_boundaries,
            memory_map=self.memory_map,
            on_damage=self.on_damage,
            max_damaged_fraction=self.max_damaged_fraction,
            quarantined=quarantined,
            cache=self._cache(),
            tokenizer=self.tokenizer,
            sentence_end=self._sentence_end(objective),
        )

    def _cache(self) -> CacheSettings | None:
        if self.cache_folder is None:
            return None
        return CacheSettings(folder=self.cache_folder, size_bytes=self.cache_bytes)

    def check_data(self) -> None:
        """Check the settings against the data sets and the tokenizer they name.

        Raises:
            ConfigError: If data sets and tokenizer do not belong together, or no window fits.
            DataError: If a manifest is missing or damaged, or the sentinels are too few.
        """
        named = self._manifests_by_field()
        first_name, first = next(iter(named.items()))
        for name, manifest in named.items():
            if manifest.tokenizer_fingerprint != first.tokenizer_fingerprint:
                raise ConfigError(
                    f"data.{name} was written with another tokenizer than data.{first_name}; build "
                    "both with one"
                )
        try:
            first.check_tokenizer(DocumentTokenizer.load(self.tokenizer))
        except DataError as error:
            raise ConfigError(f"data.tokenizer {self.tokenizer}: {error}") from None
        self.check_objective()

    def check_objective(self, objective: ObjectiveSettings | None = None) -> None:
        """Check that tokenizer and data sets have what an objective needs.

        Args:
            objective: Which; None means the one that is trained.

        Raises:
            ConfigError: If a data set holds no window that is long enough.
            DataError: If a manifest is missing or damaged, the sentinels are too few, or the
                lengths are impossible.
        """
        made = self.make_objective(objective)
        named = self._manifests_by_field()
        first = next(iter(named.values()))
        made.check_vocabulary(special_tokens(first, self._sentence_end(objective)))
        for name, manifest in named.items():
            if self.windows == "concat" and not any(
                shard.tokens >= made.window_tokens for shard in manifest.shards
            ):
                raise ConfigError(
                    f"data.{name} holds no window of {made.window_tokens} tokens "
                    f"({manifest.tokens} tokens in all); shorten data.input_length_tokens or add "
                    "documents"
                )

    def _manifests_by_field(self) -> dict[str, Manifest]:
        """Manifests of all data sets, by the fields of this section that name them."""
        single = isinstance(self.train, str)
        named = {
            "train" if single else f"train.{name}": manifest
            for name, manifest in self.manifests().items()
        }
        for name, place in self.heldout_locations().items():
            field = "heldout" if isinstance(self.heldout, str) else f"heldout.{name}"
            named[field] = self.load_manifest(place)
        return named

    def _sentence_end(self, objective: ObjectiveSettings | None) -> npt.NDArray[np.bool_] | None:
        """Which ids end a sentence, where the objective asks."""
        if (objective or self.objective).kind != "gap_sentences":
            return None
        return sentence_end_table(DocumentTokenizer.load(self.tokenizer))


def location_of(text: str) -> Path | str:
    """A URL as it stands, anything else as a path."""
    return text if "://" in text else Path(text)
