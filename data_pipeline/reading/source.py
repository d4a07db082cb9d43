"""One data set of a run's mixture, and the settings that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.objectives.batch import WHOLE, SamplePart
from data_pipeline.objectives.objective import Objective
from data_pipeline.permutation import IntegerArray, KeyArray, derive_keys, mix_keys, permute
from data_pipeline.reading.dataset_reader import DatasetReader
from data_pipeline.reading.mixture import Stage
from data_pipeline.reading.quarantine import (
    DEFAULT_MAXIMUM_FRACTION,
    DamagePolicy,
    QuarantineEntry,
)
from data_pipeline.reading.sample_order import SampleOrder
from data_pipeline.reading.windows import WindowLayout, WindowMode, make_windows
from data_pipeline.remote.dataset_folder import (
    CacheSettings,
    DatasetFolder,
    open_dataset_folder,
)
from data_pipeline.shards.manifest import Manifest
from data_pipeline.tokenization.tokenizer import DocumentTokenizer

# A new version of the samples must get new numbers, so that they are other samples.
_PURPOSE_SAMPLE_2 = 0x5A02
_PURPOSE_SUBSTITUTE_2 = 0x5B02


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """What decides about the samples of a run.

    Attributes:
        sources: Folders or URLs of data sets, by name. A name keeps its samples when other sources
            come and go.
        objective: What is made of each window.
        seed: Chooses order, masks and substitutes.
        stages: Weights of the sources; empty means by size, flattened by `temperature`.
        temperature: Of the weights by size; 1 is proportional to tokens.
        windows: How documents become windows.
        group_shards: Shards that are shuffled together; None means all.
        bucket_samples: In `document` windows, neighbouring samples of similar lengths.
        document_boundaries: Whether batches tell the documents of a window apart.
        on_damage: Whether damaged data end the run or are gone around.
        max_damaged_fraction: Share of a data set that may be damaged all the same.
        memory_map: Whether shards are read through memory maps: faster, but a shard that is cut off
            while it is used ends the process.
        quarantined: What is known to be damaged from before.
        cache: Where remote data sets are kept.
        tokenizer: Folder of the tokenizer; needed where a source holds texts.
        sentence_end: [ids] which end a sentence, for objectives that ask.
        part: Of each sample, what is read and made.
    """

    sources: Mapping[str, Path | str]
    objective: Objective
    seed: int
    stages: tuple[Stage, ...] = ()
    temperature: float = 1.0
    windows: WindowMode = "concat"
    group_shards: int | None = None
    bucket_samples: int = 64
    document_boundaries: bool = False
    on_damage: DamagePolicy = "fail"
    max_damaged_fraction: float = DEFAULT_MAXIMUM_FRACTION
    memory_map: bool = False
    quarantined: tuple[QuarantineEntry, ...] = ()
    cache: CacheSettings | None = None
    tokenizer: Path | None = None
    sentence_end: npt.NDArray[np.bool_] | None = field(default=None, compare=False)
    part: SamplePart = WHOLE


class Source:
    """One data set of the mixture, with its order and its reader.

    Attributes:
        name: Its name in the run.
        folder: Where it lies.
        manifest: What it holds.
        layout: How it is cut into windows.
        order: Which window each of its samples is.
        reader: Reads them.
    """

    def __init__(self, name: str, settings: StreamSettings) -> None:
        self.name = name
        self.folder: DatasetFolder = open_dataset_folder(settings.sources[name], settings.cache)
        self.manifest = Manifest.load(self.folder)
        self.layout: WindowLayout = make_windows(
            settings.windows, self.folder, self.manifest, settings.objective.window_tokens
        )
        key = xxhash.xxh3_64_intdigest(name.encode())
        self.order = SampleOrder(
            self.layout.counts,
            seed=settings.seed,
            source_key=key,
            group_shards=settings.group_shards,
            block_samples=settings.bucket_samples,
        )
        self._sample_key = mix_keys(derive_keys(settings.seed, _PURPOSE_SAMPLE_2), key)
        self._substitute_key = mix_keys(derive_keys(settings.seed, _PURPOSE_SUBSTITUTE_2), key)
        tokenizer = None
        if self.manifest.kind == "text" and settings.tokenizer is not None:
            tokenizer = DocumentTokenizer.load(settings.tokenizer)
        self.reader = DatasetReader(
            self.folder, self.manifest, tokenizer, memory_map=settings.memory_map
        )

    def locate(
        self, numbers: IntegerArray
    ) -> tuple[IntegerArray, IntegerArray, IntegerArray, KeyArray]:
        """Shards, first tokens, lengths and keys of this source's samples."""
        places = self.order.locate(numbers)
        starts, lengths = self.layout.spans(places.shards, places.buckets, places.ranks)
        return places.shards, starts, lengths, mix_keys(self._sample_key, numbers)

    def substitute(self, number: int, attempt: int) -> tuple[int, int, int]:
        """Shard, first token and length of what stands in for a damaged sample.

        Another window of the same epoch, by a permutation of its own for each attempt.
        """
        size = self.order.samples_per_epoch
        epoch, position = divmod(number, size)
        key = mix_keys(self._substitute_key, attempt)
        other = permute(np.array([position]), size, key) + epoch * size
        shards, starts, lengths, _ = self.locate(other)
        return int(shards[0]), int(starts[0]), int(lengths[0])
