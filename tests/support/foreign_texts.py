"""Texts in foreign tars: made up, tokenized directly, and read through an index."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from data_pipeline.foreign.text_member import TextMember
from data_pipeline.foreign.text_shards import TextShardDocuments, TokenCache
from data_pipeline.remote.dataset_folder import LocalFolder
from data_pipeline.shards.manifest import ShardInfo
from data_pipeline.tokenization.tokenizer import DocumentTokenizer


def texts(number: int, seed: int = 0) -> list[str]:
    words = random.Random(seed)
    return [
        " ".join(words.choices(["alpha", "beta", "γάμμα", "\n", "42,", "e" * 30], k=10 + n % 90))
        + f" number {n}."
        for n in range(number)
    ]


def infos(folder: Path) -> list[ShardInfo]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return [ShardInfo(**shard) for shard in manifest["shards"]]


def read_documents(
    folder: Path, tokenizer: DocumentTokenizer, text_member: TextMember
) -> list[list[int]]:
    """Ids of all documents through the index."""
    local, found = LocalFolder(folder), []
    for info in infos(folder):
        documents = TextShardDocuments(local, info, text_member, tokenizer, TokenCache())
        descriptor = local.open_shard(info)
        for position in range(info.documents):
            found.append(documents.document_tokens(descriptor, position).tolist())
        os.close(descriptor)
    return found


def direct(tokenizer: DocumentTokenizer, documents: list[str]) -> list[list[int]]:
    return [[*tokenizer.encode(text).tolist(), tokenizer.eos_token_id] for text in documents]
