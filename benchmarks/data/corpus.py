"""The corpus of the measurements: Python sources of this machine, tokenized once by us, and kept.

Files are cut at line ends into documents of log-normal lengths, a few hundred tokens in the median
and a long tail, like those of the web.
"""

from __future__ import annotations

import json
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.data.options import Options

_SUFFIXES = (".py", ".md", ".rst", ".txt")
_MEDIAN_CHARACTERS, _SPREAD = 3_500, 0.9
_WINDOWS = {"windows of 2,048": (2_048, 16), "windows of 16,384": (16_384, 4)}
_DOCUMENTS_BATCH = 32
_CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class TokenSet:
    """One way to cut the corpus into samples.

    Attributes:
        name: Of the set.
        root: Folder of the corpus, in which loaders keep their own form of it.
        window_tokens: Length of the samples; None for documents as they are.
        batch: Samples a batch.
    """

    name: str
    root: Path
    window_tokens: int | None
    batch: int

    @property
    def shards(self) -> Path:
        """Our data set; its windows are cut while reading."""
        return self.root / "data" / "train"

    def folder(self, form: str) -> Path:
        """Where one loader's form of this set lies."""
        return self.root / f"{form}-{self.window_tokens or 'documents'}"

    @cached_property
    def tokens(self) -> npt.NDArray[Any]:
        """All tokens in a row, of whole windows: [tokens]."""
        tokens: npt.NDArray[Any] = np.load(self.root / "tokens.npy", mmap_mode="r")
        if self.window_tokens:
            tokens = tokens[: len(tokens) // self.window_tokens * self.window_tokens]
        return tokens

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """Where samples end in `tokens`: [samples]."""
        if self.window_tokens:
            return np.arange(self.window_tokens, len(self.tokens) + 1, self.window_tokens)
        ends: npt.NDArray[np.int64] = np.load(self.root / "ends.npy")
        return ends

    def samples(self) -> Iterator[npt.NDArray[Any]]:
        """Each sample's tokens."""
        start = 0
        for end in self.ends.tolist():
            yield np.array(self.tokens[start:end])
            start = end


def token_set(name: str, root: Path) -> TokenSet:
    """Return a set by name."""
    window_tokens, batch = _WINDOWS.get(name, (None, _DOCUMENTS_BATCH))
    return TokenSet(name, root, window_tokens, batch)


def warm_page_cache(root: Path) -> None:
    """Read all forms of the corpus once, so that nobody waits for the disk."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_CHUNK_BYTES):
                    pass


def prepare_corpus(options: Options) -> Path:
    """Make corpus, tokenizer and shards if they are not there yet; return their folder."""
    from data_pipeline.building.build import build_dataset
    from data_pipeline.corpora.corpus import Document
    from data_pipeline.tokenization.tokenizer import train_tokenizer

    root = options.cache / f"corpus-{options.corpus_bytes}-{options.vocab_size}"
    if _is_ready(root):
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    print(f"preparing the corpus in {root}", flush=True)
    corpus = root / "corpus.jsonl"
    texts = list(_documents(options.corpus_bytes))
    with corpus.open("w", encoding="utf-8") as lines:
        for number, text in enumerate(texts):
            lines.write(json.dumps({"id": str(number), "text": text}) + "\n")
    documents = (Document(str(number), text) for number, text in enumerate(texts))
    tokenizer = train_tokenizer(
        documents, vocab_size=options.vocab_size, sentinels=256, out=root / "tokenizer"
    )
    build_dataset([corpus], tokenizer, root / "data", heldout_fraction=0.0)
    _write_tokens(root)
    return root


def _is_ready(root: Path) -> bool:
    """Whether the corpus is complete, and in today's format."""
    from data_pipeline.errors import DataError
    from data_pipeline.shards.manifest import Manifest

    try:
        Manifest.load(root / "data" / "train")
    except DataError:
        return False
    return (root / "ends.npy").is_file()


def _documents(corpus_bytes: int) -> Iterator[str]:
    """Pieces of source files, about so many bytes together."""
    paths = sysconfig.get_paths()
    random = np.random.default_rng(0)
    left = corpus_bytes
    files = [
        path
        for folder in dict.fromkeys((paths["stdlib"], *_library_folders()))
        for path in sorted(Path(folder).rglob("*"))
        if path.suffix in _SUFFIXES and path.is_file() and not path.is_symlink()
    ]
    for path in dict.fromkeys(files):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        start = 0
        while start < len(text):
            length = int(_MEDIAN_CHARACTERS * random.lognormal(0, _SPREAD)) + 100
            end = text.find("\n", start + length) + 1 or len(text)
            yield text[start:end]
            left -= len(text[start:end].encode())
            start = end
            if left <= 0:
                return


def _library_folders() -> list[str]:
    """The folders that hold numpy and the other libraries."""
    return [str(Path(np.__file__).parents[1])]


def _write_tokens(root: Path) -> None:
    """Our shards once more as one array, for the forms of the peers."""
    import tarfile

    parts = []
    for shard in sorted((root / "data" / "train").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".npy") and file is not None:
                    content = file.read()
                    header_bytes = 10 + int.from_bytes(content[8:10], "little")
                    parts.append(np.frombuffer(content, dtype="<u2", offset=header_bytes))
    np.save(root / "tokens.npy", np.concatenate(parts))
    np.save(root / "ends.npy", np.cumsum([len(part) for part in parts]))
