"""A SentencePiece model as a self-contained `tokenizer.json`, with the same ids.

The project tokenizes documents with SentencePiece, one segment (a line with its end) after the
other. Users of an exported checkpoint need neither SentencePiece nor protobuf: the `tokenizers`
library repeats the segmentation with the same regular expression and the same unigram model.

The ids agree except where two segmentations of a line have the same score up to rounding, as those
of a rule of dashes have: SentencePiece adds scores in float32 and `tokenizers` in float64, so that
such a tie may break differently. Either way the text comes back exactly.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

SENTENCEPIECE_FILE: Final = "spiece.model"
"""Name of the SentencePiece model inside an export folder."""

WORD_BOUNDARY: Final = "\u2581"
"""The character that stands for a space inside pieces."""

UNREACHABLE_SCORE: Final = -1.0e6
"""Score of pieces that text must never match: `<0x0A>` written out in a document is six characters.

SentencePiece keeps control and byte pieces out of its search; `tokenizers` searches its whole
vocabulary, so these pieces get a score below any segmentation into known characters. An unknown
character then costs even more, which changes nothing: a character without a piece of its own is in
no other piece either, so that every segmentation pays for it alike. Only a reserved piece written
with unknown characters would still be cheaper, see `_split_unknown`.
"""

_PROBE: Final = (
    "  two  spaces\tand a tab\n\n"
    "    indented = 'text'  # \u201cquoted\u201d, \ufb01ne, cafe\u0301, \u65e5\u672c, \U0001f40d\n"
    "<0x0A> </s> <pad> <unk> trailing   "
)
"""Text on which a conversion is compared with the original before it is used."""


class TokenizerConversionError(ValueError):
    """A SentencePiece model that cannot be converted without changing ids."""


def sentinel_token(index: int) -> str:
    """Return the text of sentinel `index`, named as in T5: `<extra_id_0>` for the first span."""
    return f"<extra_id_{index}>"


def build_backend(spiece_model: Path, *, sentinels: int, segment_pattern: str) -> Tokenizer:
    """Convert a SentencePiece unigram model to a `tokenizers` tokenizer with the same ids.

    Sentinel k gets id `piece_count + sentinels - 1 - k`, the order of T5.

    Args:
        spiece_model: A unigram model with byte fallback, identity normalisation, neither dummy
            prefix nor whitespace trimming, and pad, eos and unk pieces.
        sentinels: Number of sentinels behind the pieces.
        segment_pattern: Regular expression whose successive matches are the segments that are
            encoded alone.

    Raises:
        TokenizerConversionError: The file is no such model, or the conversion gives other ids on a
            probe text.
    """
    original = _load_sentencepiece(spiece_model)
    vocabulary = _scored_pieces(original)
    vocabulary += [(sentinel_token(k), UNREACHABLE_SCORE) for k in reversed(range(sentinels))]
    if len({piece for piece, _ in vocabulary}) != len(vocabulary):
        raise TokenizerConversionError(
            f"{spiece_model}: holds a piece named like a sentinel, such as {sentinel_token(0)}; "
            "train it again with the sentinels kept out of the .model"
        )

    backend = Tokenizer(Unigram(vocabulary, unk_id=original.unk_id(), byte_fallback=True))
    # Splitting comes first: the segments are defined on the text as written.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(segment_pattern), behavior="isolated"),
            *_split_unknown(vocabulary),
            pre_tokenizers.Metaspace(WORD_BOUNDARY, prepend_scheme="never", split=False),
        ]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace(WORD_BOUNDARY, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    end = original.id_to_piece(original.eos_id())
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}",
        pair=f"$A {end} $B:1 {end}:1",
        special_tokens=[(end, original.eos_id())],
    )
    special_ids = (original.pad_id(), original.eos_id(), original.unk_id())
    special = [original.id_to_piece(index) for index in special_ids]
    special += [sentinel_token(k) for k in range(sentinels)]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    _check_probe(backend, original, spiece_model)
    return backend


class SpadeTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of an exported checkpoint, built from a SentencePiece model.

    A saved tokenizer is an ordinary `PreTrainedTokenizerFast` folder that `AutoTokenizer` loads
    without this package; this class only knows how to make one.
    """

    sentencepiece_file: Path | None = None
    """The model this tokenizer was converted from, copied beside it when it is saved."""

    @classmethod
    def from_sentencepiece(
        cls,
        spiece_model: Path,
        *,
        sentinels: int,
        segment_pattern: str,
        model_max_length: int | None = None,
    ) -> SpadeTokenizer:
        """Convert a SentencePiece model.

        Args:
            spiece_model: The `.model` file.
            sentinels: Number of sentinels; sentinel k has id `len(tokenizer) - 1 - k`.
            segment_pattern: Regular expression of the segments that are encoded alone.
            model_max_length: Length in tokens to which `truncation=True` cuts; None: no limit.

        Raises:
            TokenizerConversionError: See `build_backend`.
        """
        backend = build_backend(spiece_model, sentinels=sentinels, segment_pattern=segment_pattern)
        options: dict[str, Any] = {}
        if model_max_length is not None:
            options["model_max_length"] = model_max_length
        tokenizer = cls(
            tokenizer_object=backend,
            pad_token=backend.id_to_token(0),
            eos_token=backend.id_to_token(1),
            unk_token=backend.id_to_token(2),
            padding_side="right",
            clean_up_tokenization_spaces=False,
            **options,
        )
        tokenizer.sentencepiece_file = spiece_model
        return tokenizer

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[str, ...]:
        """Save a folder that any `transformers` loads, with the SentencePiece model beside it.

        Args:
            save_directory: Folder, made when absent.
            kwargs: As for `PreTrainedTokenizerFast.save_pretrained`.

        Returns:
            Paths of the files written.
        """
        written = tuple(super().save_pretrained(save_directory, **kwargs))
        folder = Path(save_directory)
        config_path = folder / "tokenizer_config.json"
        settings = json.loads(config_path.read_text(encoding="utf-8"))
        # The name under which every version of transformers finds the class without this package.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        # What transformers 5 records about how it loaded the tokenizer says nothing about it.
        for passing in ("backend", "is_local", "local_files_only"):
            settings.pop(passing, None)
        config_path.write_text(
            json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        if self.sentencepiece_file is not None:
            copy = folder / SENTENCEPIECE_FILE
            shutil.copyfile(self.sentencepiece_file, copy)
            written += (str(copy),)
        return written


def _load_sentencepiece(spiece_model: Path) -> sentencepiece.SentencePieceProcessor:
    """Load the model and checks what the conversion relies on."""
    try:
        # Not `model_file=`: it tells a missing file from a damaged one only on stderr.
        content = spiece_model.read_bytes()
        if not content:
            raise RuntimeError("the file is empty")
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TokenizerConversionError(
            f"{spiece_model}: not a readable SentencePiece model ({reason}); give the spiece.model "
            "of a tokenizer folder"
        ) from error
    ids = (model.pad_id(), model.eos_id(), model.unk_id())
    if ids != (0, 1, 2):
        raise TokenizerConversionError(
            f"{spiece_model}: pad, eos and unk have the ids {ids} instead of (0, 1, 2); train the "
            "tokenizer with `spade tokenizer train`"
        )
    if not any(model.IsByte(index) for index in range(model.vocab_size())):
        raise TokenizerConversionError(
            f"{spiece_model}: has no byte pieces, so that rare characters would be lost; train the "
            "tokenizer with `spade tokenizer train`"
        )
    expected = _PROBE.replace(" ", WORD_BOUNDARY)
    if model.Normalize(_PROBE) != expected:
        raise TokenizerConversionError(
            f"{spiece_model}: changes text before it encodes it (normalisation, dummy prefix or "
            "whitespace trimming); train the tokenizer with `spade tokenizer train`"
        )
    return model


def _scored_pieces(model: sentencepiece.SentencePieceProcessor) -> list[tuple[str, float]]:
    """List (piece, score) in id order, the scores such that text matches the same pieces."""
    pieces = []
    for index in range(model.vocab_size()):
        reserved = model.IsControl(index) or model.IsUnknown(index) or model.IsByte(index)
        score = UNREACHABLE_SCORE if reserved else model.GetScore(index)
        pieces.append((model.IdToPiece(index), score))
    return pieces


def _split_unknown(vocabulary: list[tuple[str, float]]) -> list[pre_tokenizers.PreTokenizer]:
    """Isolate characters of reserved pieces that no real piece holds, so that none is matched.

    An unknown character is cut off on both sides by any segmentation, so that this changes no id.
    """
    known = {piece for piece, score in vocabulary if score != UNREACHABLE_SCORE}
    reserved = {piece for piece, score in vocabulary if score == UNREACHABLE_SCORE}
    unknown = sorted({character for piece in reserved for character in piece} - known)
    if not unknown:
        return []
    pattern = "[" + "".join(map(re.escape, unknown)) + "]"
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]


def _check_probe(
    backend: Tokenizer, original: sentencepiece.SentencePieceProcessor, spiece_model: Path
) -> None:
    """Raise unless both tokenizers agree on the probe text, literal special tokens included."""
    backend.encode_special_tokens = True
    converted = backend.encode(_PROBE, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    expected = [
        index for line in _PROBE.splitlines(keepends=True) for index in original.encode(line)
    ]
    if converted != expected or backend.decode(converted, skip_special_tokens=False) != _PROBE:
        raise TokenizerConversionError(
            f"{spiece_model}: the converted tokenizer gives other ids than SentencePiece on the "
            "probe text; train a unigram model with `spade tokenizer train`"
        )
