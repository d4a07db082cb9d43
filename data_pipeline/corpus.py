"""What a corpus is: files found under the given paths, documents in them, and their split."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from data_pipeline.corpus_files import SUFFIXES, CorpusFile, read_records
from data_pipeline.errors import DataError
from data_pipeline.standard_library import write_standard_library_corpus

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
    """One text with its name."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A document that cannot be used, and why."""

    name: str
    reason: str


def iterate_documents(
    paths: Sequence[Path],
    *,
    text_field: str = "text",
    name_field: str = "id",
    on_problem: Callable[[Problem], None] | None = None,
) -> Iterator[Document]:
    """Streams every usable document of a corpus, one in memory at a time.

    Args:
        paths: `.txt`, `.jsonl`, `.jsonl.gz`, `.parquet` files, or folders of those.
        text_field: JSON field or parquet column with the text.
        name_field: JSON field or parquet column with the name.
        on_problem: Called with each document that cannot be used; by default each is logged as a
            warning.

    Yields:
        Documents in a fixed order: paths as given, files of a folder sorted by name.

    Raises:
        DataError: If a path is missing or corrupt, or there is no usable document at all.
    """
    files, _ = find_files(paths)
    usable, first_problem = 0, None
    for file in files:
        for record in read_records(file, text_field=text_field, name_field=name_field):
            if record.text is not None:
                usable += 1
                yield Document(record.name, record.text)
                continue
            problem = Problem(record.name, record.problem or "unusable")
            first_problem = first_problem or problem
            if on_problem is None:
                _LOGGER.warning("skipped %r: %s", problem.name, problem.reason)
            else:
                on_problem(problem)
    if usable == 0:
        raise no_usable_documents(len(files), first_problem)


def no_usable_documents(num_files: int, first_problem: Problem | None) -> DataError:
    """The error for a corpus in which nothing is left to use."""
    if first_problem is None:
        return DataError(
            f"the corpus is empty: {num_files} files hold no document; name files with text in them"
        )
    return DataError(
        f"no document of the corpus is usable ({num_files} files; the first, "
        f"{first_problem.name!r}: {first_problem.reason}): correct the files, or name the field "
        "that holds the text with text_field"
    )


def find_files(paths: Sequence[Path]) -> tuple[list[CorpusFile], int]:
    """Finds the corpus files under `paths`.

    Args:
        paths: Files, or folders searched through all levels; entries whose names begin with a
            dot, and links to folders, are left out.

    Returns:
        The files (paths in the order given, each folder sorted by name), and how many files of
        the folders were left out because they are of another kind.

    Raises:
        DataError: If a path is missing or of another kind, or a folder holds no corpus file.
    """
    if not paths:
        raise DataError("no corpus given: name at least one file or folder")
    files: list[CorpusFile] = []
    num_ignored = 0
    for path in map(Path, paths):
        if path.is_dir():
            found, ignored = _search(path)
            if not found:
                raise DataError(
                    f"the corpus folder {path} holds no {', '.join(SUFFIXES)} file "
                    f"({ignored} files of other kinds): name a folder with such files"
                )
            files += found
            num_ignored += ignored
        elif path.is_file():
            file = CorpusFile(path, path.name)
            if not file.suffix:
                raise DataError(
                    f"{path} is no corpus file: its name must end in {', '.join(SUFFIXES)}"
                )
            files.append(file)
        else:
            raise DataError(f"the corpus path {path} does not exist: check the spelling")
    return files, num_ignored


def _search(folder: Path) -> tuple[list[CorpusFile], int]:
    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot list {error.filename}: {error.strerror}; change its permissions"
        ) from error

    found: list[CorpusFile] = []
    num_ignored = 0
    for root, subfolders, names in os.walk(folder, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(root) / name
            file = CorpusFile(path, path.relative_to(folder).as_posix())
            if name.startswith("."):
                continue
            if file.suffix and path.is_file():
                found.append(file)
            else:
                num_ignored += 1
    return sorted(found, key=lambda file: file.name), num_ignored


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
