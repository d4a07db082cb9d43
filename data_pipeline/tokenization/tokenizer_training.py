"""Training the SentencePiece model: options, determinism, and errors that say what to do."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterable
from typing import Any

import sentencepiece

from data_pipeline.corpora.corpus import Document
from data_pipeline.errors import DataError
from data_pipeline.permutation import check_seed
from data_pipeline.progress import Progress, ProgressCallback
from data_pipeline.tokenization.exact_scores import with_exact_scores
from data_pipeline.tokenization.segments import StratifiedSample

# Three times as much makes 8,192 pieces only 0.3 % better (characters a token, Python sources).
DEFAULT_SAMPLE_BYTES = 4 * 2**20
# Sums over threads are floating point: another number would give another model. Any machine runs
# this many, whatever its cores.
TRAINING_THREADS = 8
# Padding, end, unknown, and the 256 bytes to fall back to.
NUM_META_PIECES = 3 + 256

_MAXIMUM_SEGMENT_BYTES = 2**16


def train_model(
    documents: Iterable[Document],
    *,
    vocab_size: int,
    sample_bytes: int,
    seed: int,
    equal_inputs: bool,
    progress: ProgressCallback | None,
) -> tuple[bytes, dict[str, Any]]:
    """Trains on a sample of the documents.

    Returns:
        The SentencePiece model and the facts of its training.

    Raises:
        DataError: If options are out of range or the text does not suit the vocabulary.
    """
    if vocab_size <= NUM_META_PIECES:
        raise DataError(
            f"vocab_size {vocab_size} is too small: {NUM_META_PIECES} pieces are special tokens "
            f"and bytes; ask for more than {NUM_META_PIECES}"
        )
    if sample_bytes < 1:
        raise DataError(f"sample_bytes must be at least 1, not {sample_bytes}")
    sample = StratifiedSample(sample_bytes, check_seed(seed), is_equal=equal_inputs)
    num_documents = 0
    for document in documents:
        sample.add(document)
        num_documents += 1
        if progress is not None:
            progress(Progress("read documents", num_documents, None, "documents"))
    segments = sample.segments()
    if not segments:
        raise DataError(
            f"no text to train a tokenizer on ({num_documents} documents): add documents"
        )
    model = _train_in_thread(segments, vocab_size, progress)
    if progress is not None:
        progress(Progress("train tokenizer", vocab_size, vocab_size, "pieces"))
    facts = {
        "documents": num_documents,
        "sample_bytes": sum(len(segment.encode()) for segment in segments),
        "sample_shares": "equal" if equal_inputs else "proportional",
        "sample_segments": len(segments),
        "seed": seed,
        "sentencepiece_version": sentencepiece.__version__,
        "threads": TRAINING_THREADS,
    }
    return model, facts


def _train_in_thread(
    segments: list[str], vocab_size: int, progress: ProgressCallback | None
) -> bytes:
    """Trains beside the main thread, because only that one is reached by Ctrl-C."""
    writer = io.BytesIO()
    errors: list[Exception] = []

    def train() -> None:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(segments),
                model_writer=writer,
                model_type="unigram",
                vocab_size=vocab_size,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                pad_piece="<pad>",
                eos_piece="</s>",
                unk_piece="<unk>",
                num_threads=TRAINING_THREADS,
                max_sentence_length=_MAXIMUM_SEGMENT_BYTES,
                minloglevel=2,
            )
        except (RuntimeError, ValueError, OSError) as error:
            errors.append(error)

    thread = threading.Thread(target=train, name="tokenizer training", daemon=True)
    thread.start()
    started_seconds = time.monotonic()
    while thread.is_alive():
        # SentencePiece does not say how far it is: a sign of life is all there is.
        if progress is not None:
            seconds = int(time.monotonic() - started_seconds)
            progress(Progress("train tokenizer", seconds, None, "seconds"))
        thread.join(timeout=0.1)
    if errors:
        raise _explained(str(errors[0]), vocab_size, segments) from errors[0]
    return with_exact_scores(writer.getvalue())


def _explained(message: str, vocab_size: int, segments: list[str]) -> DataError:
    text_bytes = sum(len(segment.encode()) for segment in segments)
    too_high = re.search(r"Vocabulary size too high \(\d+\).*?<= (\d+)", message)
    if too_high:
        return DataError(
            f"{text_bytes} bytes of text are too few for a vocabulary of {vocab_size} pieces: "
            f"they give at most {too_high[1]}; add text or ask for a smaller vocab_size"
        )
    too_small = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if too_small:
        return DataError(
            f"a vocabulary of {vocab_size} pieces is too small for this text, whose characters "
            f"alone need {too_small[2]}; ask for a larger vocab_size"
        )
    if "sentences_.empty()" in message:
        return DataError(
            f"the text ({text_bytes} bytes) holds nothing to learn {vocab_size} pieces from: "
            "add text"
        )
    return DataError(
        f"SentencePiece could not train {vocab_size} pieces on {text_bytes} bytes ({message}): "
        "add text or ask for another vocab_size"
    )
