"""What a corpus is: files found under the given paths, documents in them, and their split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import xxhash

from data_pipeline.corpora.corpus_files import SUFFIXES, CorpusFile, read_records
from data_pipeline.corpora.corpus_locations import Location, list_location
from data_pipeline.corpora.filters import TextRules
from data_pipeline.corpora.standard_library import write_standard_library_corpus
from data_pipeline.errors import DataError
from data_pipeline.remote.locations import check_location

__all__ = [
    "Document",
    "Problem",
    "find_files",
    "is_heldout",
    "iterate_documents",
    "write_standard_library_corpus",
]

_LOGGER = logging.getLogger("data_pipeline")


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its name, and the number of the input that it comes from."""

    name: str
    text: str
    source: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A document that cannot be used, and why."""

    name: str
    reason: str


def iterate_documents(
    inputs: Sequence[Location],
    *,
    text_field: str = "text",
    name_field: str = "id",
    rules: TextRules | None = None,
    on_problem: Callable[[Problem], None] | None = None,
) -> Iterator[Document]:
    """Streams every usable document of a corpus, one in memory at a time.

    Args:
        inputs: `.txt`, `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet` files, folders, patterns,
            or URLs of those.
        text_field: JSON field or parquet column with the text.
        name_field: JSON field or parquet column with the name.
        rules: Normalisation and filters; what they leave out is no problem and is not told.
        on_problem: Called with each document that cannot be used; by default each is logged as a
            warning.

    Yields:
        Documents in a fixed order: inputs as given, files of a folder sorted by name.

    Raises:
        DataError: If an input is missing or corrupt, or there is no usable document at all.
    """
    files, _ = find_files(inputs)
    usable, first_problem = 0, None
    for file in files:
        for record in read_records(file, text_field=text_field, name_field=name_field):
            if record.text is not None:
                usable += 1
                text: str | None = record.text
                if rules is not None:
                    text = rules.apply(record.text, record.size_bytes).text
                if text is not None:
                    yield Document(record.name, text, file.source)
                continue
            problem = Problem(record.name, record.problem or "unusable")
            first_problem = first_problem or problem
            if on_problem is None:
                _LOGGER.warning("skipped %r: %s", problem.name, problem.reason)
            else:
                on_problem(problem)
    if usable == 0:
        raise no_usable_documents(len(files), first_problem)


def no_usable_documents(
    num_files: int, first_problem: Problem | None, filtered: Mapping[str, int] | None = None
) -> DataError:
    """The error for a corpus in which nothing is left to use."""
    if filtered:
        counts = ", ".join(f"{name} {count}" for name, count in filtered.items())
        return DataError(
            f"the filters leave no document of the corpus (left out by {counts}): relax them"
        )
    if first_problem is None:
        return DataError(
            f"the corpus is empty: {num_files} files hold no document; name files with text in them"
        )
    return DataError(
        f"no document of the corpus is usable ({num_files} files; the first, "
        f"{first_problem.name!r}: {first_problem.reason}): correct the files, or name the field "
        "that holds the text with text_field"
    )


def find_files(inputs: Sequence[Location]) -> tuple[list[CorpusFile], int]:
    """Finds the corpus files of `inputs`.

    Args:
        inputs: Files, folders searched through all levels, patterns such as `docs/**/*.txt`, each
            a local path or a URL (s3, gs, http, https, hf, file); entries whose names begin with
            a dot, and links to folders, are left out.

    Returns:
        The files (inputs in the order given, each folder sorted by name), and how many files of
        the folders were left out because they are of another kind.

    Raises:
        DataError: If an input is missing or of another kind, or a folder holds no corpus file.
    """
    if not inputs:
        raise DataError("no corpus given: name at least one file or folder")
    files: list[CorpusFile] = []
    num_ignored = 0
    for source, given in enumerate(inputs):
        location = check_location(given)
        listing = list_location(location)
        found = [
            CorpusFile(entry.location, entry.name, source, entry.size_bytes, entry.version)
            for entry in listing.files
        ]
        usable = [file for file in found if file.suffix]
        ignored = len(found) - len(usable)
        if not usable and listing.is_single:
            raise DataError(
                f"{location} is no corpus file: its name must end in {', '.join(SUFFIXES)}"
            )
        if not usable:
            raise DataError(
                f"the corpus folder {location} holds no {', '.join(SUFFIXES)} file "
                f"({ignored} files of other kinds): name a folder with such files"
            )
        files += usable
        num_ignored += ignored
    return files, num_ignored


def is_heldout(name: str, fraction: float) -> bool:
    """Whether the document of this name belongs to the held-out part.

    A hash of the name alone decides, so the answer stays when documents are added or reordered,
    and what is held out at a fraction stays so at any larger one.

    Args:
        name: The document's name.
        fraction: Share held out, at least 0 and below 1.

    Raises:
        DataError: If the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise DataError(f"heldout_fraction must be at least 0 and below 1, not {fraction!r}")
    return xxhash.xxh3_64_intdigest(name_bytes(name)) < fraction * 2.0**64


def name_bytes(name: str) -> bytes:
    """The name as bytes, also where a file name is no valid Unicode."""
    return name.encode("utf-8", "surrogatepass")
