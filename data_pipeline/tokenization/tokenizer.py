"""The tokenizer: a SentencePiece unigram model plus sentinels, in a folder with a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from data_pipeline.corpora.corpus import Document
from data_pipeline.errors import DataError
from data_pipeline.files import (
    canonical_json,
    explaining,
    make_folder,
    read_json_object,
    readable_json,
    write_atomically,
)
from data_pipeline.progress import ProgressCallback
from data_pipeline.tokenization.exact_scores import STEPS_PER_NAT
from data_pipeline.tokenization.segments import (
    BLOCK_CHARACTERS,
    SEGMENT_PATTERN,
    iterate_chunks,
    iterate_segments,
)
from data_pipeline.tokenization.tokenizer_training import DEFAULT_SAMPLE_BYTES, train_model

FORMAT_VERSION = 1
MODEL_FILE = "spiece.model"
MANIFEST_FILE = "tokenizer_manifest.json"

_SPACE_MARK = "\u2581"
_PURPOSE = "the manifest of a tokenizer"
_REMEDY = 'make the tokenizer again with "spade tokenizer train"'
# What decides about ids. Facts of the training do not, and stay out of the fingerprint.
_COUNTS = (
    "piece_count",
    "sentinel_count",
    "vocab_size",
    "pad_token_id",
    "eos_token_id",
    "unk_token_id",
)
_IDENTITY = ("format_version", *_COUNTS, "segment_pattern")


class DocumentTokenizer:
    """Turns documents into token ids and back.

    Ids from 0 to `piece_count - 1` are those of the SentencePiece model; sentinels follow, the
    first of them at the very top, as T5 has it. Special tokens written out in a text ("</s>",
    "<extra_id_0>") are ordinary text. `decode(encode(text)) == text` for every text, except that
    SentencePiece's own space mark U+2581 comes back as a space.
    """

    def __init__(self, model: bytes, manifest: dict[str, Any]) -> None:
        """Checks that model and manifest belong together; users call `load`.

        Args:
            model: Content of a SentencePiece model file.
            manifest: Content of the manifest file.

        Raises:
            DataError: If they do not belong together or the model is of another kind.
        """
        for field in (*_IDENTITY, "fingerprint"):
            if field not in manifest:
                raise DataError(f"{MANIFEST_FILE} has no field {field!r}; {_REMEDY}")
        if manifest["format_version"] != FORMAT_VERSION:
            raise DataError(
                f"the tokenizer has format version {manifest['format_version']!r}, this program "
                f"reads {FORMAT_VERSION}; {_REMEDY}"
            )
        for field in _COUNTS:
            if type(manifest[field]) is not int or not 0 <= manifest[field] < 2**31:
                raise DataError(
                    f"{MANIFEST_FILE} says {field} {manifest[field]!r}, which is no number of ids; "
                    f"{_REMEDY}"
                )
        if manifest["segment_pattern"] != SEGMENT_PATTERN:
            raise DataError(
                f"the tokenizer cuts documents by {manifest['segment_pattern']!r}, this program "
                f"by {SEGMENT_PATTERN!r}; {_REMEDY}"
            )
        if manifest["fingerprint"] != fingerprint_of(model, manifest):
            raise DataError(
                f"{MODEL_FILE} and {MANIFEST_FILE} do not belong together: the fingerprint "
                f"differs, so one of them was changed; restore both or {_REMEDY}"
            )
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            # A piece that is no UTF-8 would otherwise end a run at some later text.
            processor.id_to_piece(list(range(processor.piece_size())))
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{MODEL_FILE} is no SentencePiece model; {_REMEDY}") from error
        found = {
            "piece_count": processor.piece_size(),
            "pad_token_id": processor.pad_id(),
            "eos_token_id": processor.eos_id(),
            "unk_token_id": processor.unk_id(),
            "vocab_size": processor.piece_size() + manifest["sentinel_count"],
        }
        for field, value in found.items():
            if manifest[field] != value:
                raise DataError(
                    f"{MANIFEST_FILE} says {field} {manifest[field]!r}, the model has {value}; "
                    f"{_REMEDY}"
                )
        self._processor = processor
        self._model = model
        self._manifest = manifest
        self.piece_count: int = manifest["piece_count"]
        self.sentinel_count: int = manifest["sentinel_count"]
        self.vocab_size: int = manifest["vocab_size"]
        self.pad_token_id: int = manifest["pad_token_id"]
        self.eos_token_id: int = manifest["eos_token_id"]
        self.unk_token_id: int = manifest["unk_token_id"]
        self.fingerprint: str = manifest["fingerprint"]

    @classmethod
    def load(cls, folder: Path) -> DocumentTokenizer:
        """Reads a tokenizer folder.

        Raises:
            DataError: If something is missing, changed, or does not fit together.
        """
        folder = Path(folder)
        manifest = read_json_object(folder / MANIFEST_FILE, _PURPOSE, _REMEDY)
        with explaining("read", folder / MODEL_FILE):
            model = (folder / MODEL_FILE).read_bytes()
        try:
            return cls(model, manifest)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error

    def save(self, folder: Path) -> None:
        """Writes the tokenizer folder, each file wholly or not at all, the manifest last.

        Raises:
            DataError: If the system refuses.
        """
        make_folder(folder)
        write_atomically(folder / MODEL_FILE, self._model)
        write_atomically(folder / MANIFEST_FILE, readable_json(self._manifest))

    @cached_property
    def token_dtype(self) -> np.dtype[Any]:
        """Little-endian type that holds every id: two bytes up to 65,536 ids, else four."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    @cached_property
    def text_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of the text that each id stands for, int64 [vocab_size].

        None for sentinels, padding, end, and the id of what is unknown. Where nothing was unknown,
        the ids of a text stand for as many bytes as the text has.
        """
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for number, piece in enumerate(self._processor.id_to_piece(list(range(self.piece_count)))):
            if self._processor.is_byte(number):
                sizes[number] = 1
            elif not self._processor.is_control(number) and number != self.unk_token_id:
                sizes[number] = len(piece.replace(_SPACE_MARK, " ").encode())
        return sizes

    def covers(self, character: str) -> bool:
        """Whether a character is in the vocabulary, not only its UTF-8 bytes."""
        ids = self._processor.encode(character)
        return not any(self._processor.is_byte(number) for number in ids)

    def sentinel_id(self, number: int) -> int:
        """Id of sentinel `number`, counted from 0 at the top of the vocabulary.

        Raises:
            DataError: If there are not so many.
        """
        if not 0 <= number < self.sentinel_count:
            raise DataError(
                f"sentinel {number} asked for, but the tokenizer has {self.sentinel_count}: "
                "train a tokenizer with more sentinels"
            )
        return self.vocab_size - 1 - number

    def encode(self, text: str, *, num_threads: int = 1) -> npt.NDArray[Any]:
        """Token ids of a document, without an end-of-sequence id.

        Args:
            text: The whole document; memory beyond text and ids stays bounded.
            num_threads: Threads to encode segments with; the ids do not depend on it.

        Returns:
            [tokens] of `token_dtype`.

        Raises:
            DataError: If the text is no valid Unicode.
        """
        return self.encode_documents([text], num_threads=num_threads)[0][:-1]

    def encode_documents(
        self,
        texts: Sequence[str],
        *,
        num_threads: int = 1,
        after_block: Callable[[], None] | None = None,
    ) -> list[npt.NDArray[Any]]:
        """Token ids of several documents, each with an end-of-sequence id; the fast way.

        Args:
            texts: Whole documents.
            num_threads: Threads to encode segments with; the ids do not depend on it.
            after_block: Called now and then.

        Returns:
            An array [tokens] of `token_dtype` for each text.

        Raises:
            DataError: If a text is no valid Unicode.
        """
        end = np.array([self.eos_token_id], self.token_dtype)
        parts: list[list[npt.NDArray[Any]]] = [[] for _ in texts]
        for owners, chunks in _chunk_groups(texts, self._cut):
            try:
                encoded = self._processor.encode(
                    chunks, return_type="numpy", num_threads=num_threads
                )
            except (UnicodeEncodeError, TypeError) as error:
                # A string that has no UTF-8 form is "no string" to SentencePiece.
                raise DataError(f"cannot encode text with a lone surrogate ({error})") from error
            for owner, ids in zip(owners, encoded, strict=True):
                parts[owner].append(ids.astype(self.token_dtype))
            if after_block is not None:
                after_block()
        return [np.concatenate([*some, end]) for some in parts]

    @cached_property
    def _cut(self) -> Callable[[str], Iterator[str]]:
        """How documents are cut: in chunks where those give the ids of their segments."""
        numbers = list(range(self.piece_count))
        is_whole = not any("\n" in piece for piece in self._processor.id_to_piece(numbers))
        scores = np.array(self._processor.get_score(numbers)) * STEPS_PER_NAT
        if is_whole and np.array_equal(scores, np.round(scores)):
            return iterate_chunks
        return iterate_segments

    def decode(self, ids: npt.ArrayLike) -> str:
        """Text of token ids; sentinels come out as <extra_id_N>, padding and end as nothing.

        Args:
            ids: [tokens] integers below `vocab_size`.

        Raises:
            DataError: If an id is out of range.
        """
        numbers = np.asarray(ids, dtype=np.int64)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.vocab_size:
            raise DataError(
                f"cannot decode ids from {numbers.min()} to {numbers.max()}: "
                f"the vocabulary has {self.vocab_size}"
            )
        parts = []
        start = 0
        for position in [*np.flatnonzero(numbers >= self.piece_count).tolist(), len(numbers)]:
            parts.append(self._processor.decode(numbers[start:position].tolist()))
            if position < len(numbers):
                parts.append(f"<extra_id_{self.vocab_size - 1 - int(numbers[position])}>")
            start = position + 1
        return "".join(parts)


def _chunk_groups(
    texts: Sequence[str], cut: Callable[[str], Iterator[str]]
) -> Iterator[tuple[list[int], list[str]]]:
    """Cuts texts, and gathers what is cut in groups of bounded size.

    Yields:
        Numbers of the texts, and the chunks.
    """
    owners: list[int] = []
    chunks: list[str] = []
    characters = 0
    for number, text in enumerate(texts):
        for chunk in cut(text):
            owners.append(number)
            chunks.append(chunk)
            characters += len(chunk)
            if characters >= BLOCK_CHARACTERS:
                yield owners, chunks
                owners, chunks, characters = [], [], 0
    if chunks:
        yield owners, chunks


def fingerprint_of(model: bytes, manifest: dict[str, Any]) -> str:
    """SHA-256, in hex, over the model and every manifest field that decides about ids."""
    identity = {field: manifest[field] for field in _IDENTITY}
    return hashlib.sha256(canonical_json(identity) + b"\n" + model).hexdigest()


def train_tokenizer(
    documents: Iterable[Document],
    *,
    vocab_size: int = 8192,
    sentinels: int = 128,
    out: Path,
    sample_bytes: int = DEFAULT_SAMPLE_BYTES,
    seed: int = 0,
    equal_inputs: bool = False,
    progress: ProgressCallback | None = None,
) -> DocumentTokenizer:
    """Trains a tokenizer and writes its folder.

    The result is the same for the same documents (in any order) and options, on any number of
    cores.

    Args:
        documents: Training documents; only a sample of them is kept in memory.
        vocab_size: Pieces of the SentencePiece model, sentinels not counted.
        sentinels: Sentinel ids appended behind the pieces.
        out: Folder to write.
        sample_bytes: Most text to train on, a megabyte taking about 1 s (prose) to 4 s (code); much
            larger vocabularies need more than the default.
        seed: Chooses the sample.
        equal_inputs: Give every input the same share of the sample, instead of one by its size.
        progress: Told how many documents have been read, then that training goes on.

    Raises:
        DataError: If options are out of range, the text is too small for the vocabulary, or
            `out` cannot be written.

    Source: Kudo, "Subword regularization", 2018 (unigram model); byte fallback instead of an
    unknown token; sentinels as in Raffel et al., "Exploring the limits of transfer learning with
    a unified text-to-text transformer", 2020.
    """
    if not 1 <= sentinels <= 2**20:
        raise DataError(f"sentinels must be from 1 to {2**20}, not {sentinels!r}")
    # First, so that a folder that cannot be written is not found out after the training.
    make_folder(out)
    model, facts = train_model(
        documents,
        vocab_size=vocab_size,
        sample_bytes=sample_bytes,
        seed=seed,
        equal_inputs=equal_inputs,
        progress=progress,
    )
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "piece_count": vocab_size,
        "sentinel_count": sentinels,
        "vocab_size": vocab_size + sentinels,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "unk_token_id": 2,
        "segment_pattern": SEGMENT_PATTERN,
        "training": facts,
    }
    manifest["fingerprint"] = fingerprint_of(model, manifest)
    tokenizer = DocumentTokenizer(model, manifest)
    tokenizer.save(out)
    return tokenizer
