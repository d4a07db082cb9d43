"""Samples of a pretraining run: numbers in, batches out.

Sample `i` is a pure function of the data sets, their mixture, the objective, the seed and `i`. So
the whole state of reading is one number, any process makes any sample at once, and nothing depends
on how many processes there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DamageError, DataError
from data_pipeline.objectives.batch import Batch, SpecialTokens, Windows
from data_pipeline.permutation import IntegerArray
from data_pipeline.reading.mixture import Mixture, Stage, temperature_weights
from data_pipeline.reading.part_reader import PartReader
from data_pipeline.reading.quarantine import Quarantine, QuarantineEntry
from data_pipeline.reading.recycled_memory import RecycledMemory
from data_pipeline.reading.samples import Samples
from data_pipeline.reading.shard_reader import check_shard_size
from data_pipeline.reading.source import Source, StreamSettings
from data_pipeline.remote.dataset_folder import (
    LocalFolder,
)
from data_pipeline.shards.manifest import Manifest

_MOST_SUBSTITUTES = 64
# Shards fetched ahead of the samples being read, beyond those of the current group.
_SHARDS_AHEAD = 4


class PretrainingStream:
    """Samples of a mixture of data sets under an objective. For one thread.

    Attributes:
        settings: What it was made of.
        mixture: Which source each sample comes from.
        quarantine: What has been found damaged.
        vocabulary: The ids.
    """

    def __init__(self, settings: StreamSettings) -> None:
        """Opens the data sets.

        Args:
            settings: What decides about the samples.

        Raises:
            DataError: If a manifest is missing or damaged, data sets come from different
                tokenizers, the vocabulary does not suit the objective, or no window fits.
        """
        if not settings.sources:
            raise DataError("no data set given: name at least one")
        self.settings = settings
        self._memory = RecycledMemory()
        self._sources = [Source(name, settings) for name in settings.sources]
        names = [source.name for source in self._sources]
        manifests = {source.name: source.manifest for source in self._sources}
        first = self._sources[0]
        for source in self._sources[1:]:
            if source.manifest.tokenizer_fingerprint != first.manifest.tokenizer_fingerprint:
                raise DataError(
                    f"sources {first.name!r} and {source.name!r} were made with different "
                    "tokenizers: build both with one"
                )
        self.vocabulary = special_tokens(first.manifest, settings.sentence_end)
        settings.objective.check_vocabulary(self.vocabulary)
        stages = settings.stages
        if not stages:
            tokens = {name: manifest.tokens for name, manifest in manifests.items()}
            stages = (Stage(0, temperature_weights(tokens, settings.temperature)),)
        self.mixture = Mixture(names, stages)
        self.quarantine = Quarantine(
            manifests,
            policy=settings.on_damage,
            maximum_fraction=settings.max_damaged_fraction,
        )
        self.quarantine.extend(settings.quarantined)
        self._parts: PartReader | None = None
        if settings.part.count > 1:
            self._parts = PartReader(settings, self._sources, self.quarantine, self.vocabulary)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """Manifests of the data sets by name."""
        return {source.name: source.manifest for source in self._sources}

    @property
    def samples_per_epoch(self) -> dict[str, int]:
        """Samples after which every window of a source has been seen once."""
        return {source.name: source.order.samples_per_epoch for source in self._sources}

    @property
    def mean_sample_bytes(self) -> float:
        """About what the ids of a sample, or its part, take, by the windows' mean length."""
        objective = self.settings.objective
        windows = sum(self.samples_per_epoch.values())
        tokens = sum(source.manifest.tokens for source in self._sources)
        mean_tokens = min(objective.window_tokens, tokens / windows)
        longest = objective.input_length_tokens
        if not objective.is_decoder_only:
            longest += objective.target_length_tokens
        item_bytes = self._sources[0].manifest.token_dtype.itemsize
        sample_bytes = mean_tokens * longest / objective.window_tokens * item_bytes
        return sample_bytes / self.settings.part.count

    def epochs(self, sample_index: int) -> dict[str, float]:
        """How often each source has been seen in the first `sample_index` samples."""
        counts = self.mixture.counts(sample_index)
        return {name: counts[name] / size for name, size in self.samples_per_epoch.items()}

    def check_files(self) -> None:
        """Looks at the size of every local shard, which finds missing and cut off ones at once.

        Raises:
            DataError: If one is missing or of another size, and may not be gone around.
        """
        for source in self._sources:
            if not isinstance(source.folder, LocalFolder):
                continue
            for info in source.manifest.shards:
                try:
                    check_shard_size(source.folder.path, info)
                except DataError as error:
                    damage = DamageError(str(error), shard_file=info.file, ranges=None)
                    self.quarantine.take(source.name, damage)

    def locate(self, sample_indices: npt.ArrayLike) -> Samples:
        """Finds samples.

        Args:
            sample_indices: [n] numbers of samples.

        Raises:
            DataError: If a number is negative.
        """
        sources, numbers = self.mixture.locate(sample_indices)
        shards, starts, lengths = (np.empty_like(numbers) for _ in range(3))
        keys = np.empty(len(numbers), dtype=np.uint64)
        for position, source in enumerate(self._sources):
            chosen = sources == position
            if chosen.any():
                found = source.locate(numbers[chosen])
                shards[chosen], starts[chosen], lengths[chosen], keys[chosen] = found
        return Samples(sources, numbers, shards, starts, lengths, keys)

    def read(self, samples: Samples) -> Windows:
        """The windows of samples before the objective.

        Raises:
            DataError: If data are damaged and may not be gone around.
        """
        width = int(samples.lengths.max(initial=0))
        dtype = self._sources[0].manifest.token_dtype
        tokens = self._memory.empty((len(samples.lengths), width), dtype)
        segments = None
        if self.settings.document_boundaries:
            segments = np.zeros(tokens.shape, dtype=np.uint16)
        lengths = samples.lengths
        substitutes: dict[int, tuple[int, int, int]] = {}
        rows = zip(
            samples.sources.tolist(),
            samples.shards.tolist(),
            samples.starts.tolist(),
            lengths.tolist(),
            strict=True,
        )
        memory = tokens.reshape(-1).view(np.uint8).data
        item_bytes = dtype.itemsize
        check = not self.quarantine.is_empty
        for row, (number, shard, start, length) in enumerate(rows):
            source = self._sources[number]
            if length < width:
                tokens[row, length:] = self.vocabulary.pad_token_id
            place = None if segments is None else segments[row, :length]
            try:
                sound = not (check and self._is_quarantined(source, shard, start, length))
                if sound:
                    first = row * width * item_bytes
                    target = memory[first : first + length * item_bytes]
                    source.reader.read(target, shard, start, place)
            except DamageError as error:
                self.quarantine.take(source.name, error)
                sound, check = False, True
            if not sound:
                substitutes[row] = self._find_substitute(source, int(samples.numbers[row]))
        if substitutes:
            tokens, lengths, segments = self._put_substitutes(
                substitutes, samples, tokens, segments
            )
        if tokens.size and int(tokens.max()) >= self.vocabulary.vocab_size:
            raise DataError(
                f"the data hold id {tokens.max()}, but the vocabulary has "
                f"{self.vocabulary.vocab_size}: build the data sets again"
            )
        return Windows(tokens, lengths, segments)

    def make(self, samples: Samples) -> Batch:
        """Reads samples, or their part, and does with them what the objective says.

        Raises:
            DataError: If data are damaged and may not be gone around.
        """
        return self._make_whole(samples) if self._parts is None else self._parts.make(samples)

    def make_whole(
        self, sample_indices: npt.ArrayLike, known: Iterable[QuarantineEntry] = ()
    ) -> Batch:
        """Makes whole samples, whichever part is asked for otherwise.

        Args:
            sample_indices: [n] numbers of samples, in any order.
            known: Damage that others have found, to be gone around from now on.

        Raises:
            DataError: As of `batch`.
        """
        self.quarantine.extend(known)
        return self._make_whole(self.locate(sample_indices))

    def _make_whole(self, samples: Samples) -> Batch:
        windows = self.read(samples)
        return self.settings.objective.make(windows, samples.keys, self.vocabulary)

    def batch(self, sample_indices: npt.ArrayLike) -> Batch:
        """Makes samples.

        Args:
            sample_indices: [n] numbers of samples, in any order.

        Raises:
            DataError: If a number is negative, or data are damaged and may not be gone around.
        """
        return self.make(self.locate(sample_indices))

    def prefetch(self, sample_index: int) -> None:
        """Lets remote data sets fetch in the background what comes from a sample on."""
        counts = self.mixture.counts(sample_index)
        ahead = (self.settings.group_shards or 0) + _SHARDS_AHEAD
        for source in self._sources:
            shards = source.order.upcoming_shards(counts[source.name], ahead)
            source.folder.prefetch([source.manifest.shards[shard] for shard in shards])

    def close(self) -> None:
        """Closes all files."""
        for source in self._sources:
            source.reader.close()
            source.folder.close()

    def _is_quarantined(self, source: Source, shard: int, start: int, length: int) -> bool:
        file = source.manifest.shards[shard].file
        return self.quarantine.contains(source.name, file, start, length)

    def _find_substitute(self, source: Source, number: int) -> tuple[int, int, int]:
        """The first sound window among those that may stand in for a damaged sample."""
        item_bytes = source.manifest.token_dtype.itemsize
        for attempt in range(_MOST_SUBSTITUTES):
            shard, start, length = source.substitute(number, attempt)
            try:
                if self._is_quarantined(source, shard, start, length):
                    continue
                source.reader.read(memoryview(bytearray(length * item_bytes)), shard, start)
            except DamageError as error:
                self.quarantine.take(source.name, error)
                continue
            return shard, start, length
        raise DataError(
            f"source {source.name!r}: none of {_MOST_SUBSTITUTES} windows that could stand in for "
            "a damaged one is sound"
        )

    def _put_substitutes(
        self,
        substitutes: Mapping[int, tuple[int, int, int]],
        samples: Samples,
        tokens: npt.NDArray[np.unsignedinteger],
        segments: npt.NDArray[np.uint16] | None,
    ) -> tuple[npt.NDArray[np.unsignedinteger], IntegerArray, npt.NDArray[np.uint16] | None]:
        """Fills the rows of damaged samples; a substitute may be longer than all of the batch."""
        lengths = samples.lengths.copy()
        for row, (_, _, length) in substitutes.items():
            lengths[row] = length
        extra = max(0, int(lengths.max()) - tokens.shape[1])
        if extra:
            pad = self.vocabulary.pad_token_id
            tokens = np.pad(tokens, ((0, 0), (0, extra)), constant_values=pad)
            if segments is not None:
                segments = np.pad(segments, ((0, 0), (0, extra)))
        for row, (shard, start, length) in substitutes.items():
            source = self._sources[int(samples.sources[row])]
            tokens[row, length:] = self.vocabulary.pad_token_id
            place = None
            if segments is not None:
                segments[row] = 0
                place = segments[row, :length]
            target = tokens[row, :length].view(np.uint8).data
            source.reader.read(target, shard, start, place)
        return tokens, lengths, segments


def special_tokens(
    manifest: Manifest, sentence_end: npt.NDArray[np.bool_] | None = None
) -> SpecialTokens:
    """The ids of a data set's tokenizer, as objectives want to know them."""
    return SpecialTokens(
        vocab_size=manifest.vocab_size,
        sentinel_count=manifest.sentinel_count,
        eos_token_id=manifest.eos_token_id,
        pad_token_id=manifest.pad_token_id,
        sentence_end=sentence_end,
    )
