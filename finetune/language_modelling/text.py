"""Files of text as one stream of token ids, with what is counted beside the tokens.

Perplexity per token cannot be compared between tokenizers. So words and bytes of the text as it
stands in the file are counted as well, and the same loss is divided by these.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from finetune.errors import FinetuneError
from finetune.tables import is_json, read_table

_LINES_AT_ONCE = 4000
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class Text:
    """Documents of a file."""

    path: Path
    documents: list[str]
    """A plain file is one document, a row of JSON lines another."""

    @property
    def words(self) -> int:
        """What stands between white space, and line ends.

        So WikiText counts, whose every line ends in a token of its own; its validation text has
        213,886 + 3,760 = 217,646 words.
        """
        return sum(len(text.split()) + text.count("\n") for text in self.documents)

    @property
    def size_bytes(self) -> int:
        """Length in UTF-8, exactly as given."""
        return sum(len(text.encode()) for text in self.documents)


@dataclass(frozen=True)
class EncodedText:
    """A stream of tokens, and what it was made of."""

    path: Path
    ids: NDArray[np.int32]
    """[T + 1]: end of text, then each document with an end of text behind it. All but the first are
    to be predicted."""
    documents: int
    words: int
    size_bytes: int
    lines: int
    changed_lines: int
    """Lines that the tokenizer does not give back as they were."""

    @property
    def tokens(self) -> int:
        """T: what is predicted, ends of documents included."""
        return len(self.ids) - 1


def read_text(path: Path, text_column: str) -> Text:
    """Read a file.

    Args:
        path: Plain text, or JSON lines if its name ends so; with ``.gz`` behind it gzipped.
        text_column: Of JSON lines.

    Raises:
        FinetuneError: It is no such file, or holds no word.
        OSError: It cannot be read.
    """
    if is_json(path):
        table = read_table(path, (text_column,))
        text = Text(path, [row.cells[text_column] for row in table.rows])
    else:
        text = Text(path, [_plain_text(path)])
    if text.words == 0:
        raise FinetuneError(f"{path}: holds no words; give a file with text")
    for number, document in enumerate(text.documents, start=1):
        if not _is_unicode(document):
            raise FinetuneError(
                f"{path}, row {number}: holds half of a surrogate pair; mend the \\u escapes"
            )
    return text


def encode_text(text: Text, tokenizer: PreTrainedTokenizerBase) -> EncodedText:
    """Return the stream of a file's documents.

    Lines are encoded one by one, as in pretraining: a word's tokens do not depend on what stands
    far from it. Each line is decoded again and compared.

    Args:
        text: The documents.
        tokenizer: From `finetune.exported.load_tokenizer`.
    """
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    parts = [end]
    lines = changed = 0
    for document in text.documents:
        for some in _groups(document):
            encoded = tokenizer(some, add_special_tokens=False, verbose=False).input_ids
            decoded = tokenizer.batch_decode(
                encoded, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            lines += len(some)
            changed += sum(one != other for one, other in zip(some, decoded, strict=True))
            parts += [np.array(ids, dtype=np.int32) for ids in encoded]
        parts.append(end)
    return EncodedText(
        text.path,
        np.concatenate(parts),
        documents=len(text.documents),
        words=text.words,
        size_bytes=text.size_bytes,
        lines=lines,
        changed_lines=changed,
    )


def check_ids(text: EncodedText, vocab_size: int) -> None:
    """Make sure that a model knows all tokens of a text.

    Raises:
        FinetuneError: It does not.
    """
    largest = int(text.ids.max())
    if largest >= vocab_size:
        raise FinetuneError(
            f"{text.path}: the tokenizer makes id {largest} and the model has {vocab_size}; use "
            "the tokenizer that the model was trained with"
        )


def describe_text(name: str, text: EncodedText) -> str:
    """Return a line for the user, with what the tokenizer loses."""
    line = (
        f"{name}: {text.tokens:,} tokens of {text.words:,} words, {text.size_bytes:,} bytes, "
        f"{text.documents:,} documents of {text.path}"
    )
    if text.changed_lines:
        line += (
            f"; the tokenizer does not give back {text.changed_lines:,} of {text.lines:,} lines as "
            "they were: bits per byte do not pay for what it loses"
        )
    return line


def _plain_text(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FinetuneError(f"{path}: damaged gzip file ({error}); make it again") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise FinetuneError(
            f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file"
        ) from error


def _is_unicode(text: str) -> bool:
    """Whether a string has a UTF-8 form; JSON can write others."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _groups(document: str) -> Iterator[list[str]]:
    """Lines with their ends, some at a time."""
    group: list[str] = []
    for match in _LINE.finditer(document):
        group.append(match[0])
        if len(group) == _LINES_AT_ONCE:
            yield group
            group = []
    if group:
        yield group
