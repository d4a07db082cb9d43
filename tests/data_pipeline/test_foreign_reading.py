"""Reading windows of ids out of foreign tars through their indexes."""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import FaultyServer
from foreign_tars import write_tar
from foreign_texts import direct, infos, texts
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DamageError, DataError
from data_pipeline.foreign.dataset import index_dataset
from data_pipeline.foreign.index import TextIndex
from data_pipeline.foreign.text_member import TextMember
from data_pipeline.foreign.text_shards import OpenTextShard, TextShardDocuments, TokenCache
from data_pipeline.inspection.verify import verify_dataset
from data_pipeline.reading.dataset_reader import DatasetReader
from data_pipeline.remote.dataset_folder import (
    CacheSettings,
    LocalFolder,
    RemoteFolder,
    RetrySettings,
)
from data_pipeline.shards.manifest import Manifest, ShardInfo
from data_pipeline.tokenization.tokenizer import DocumentTokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(prose_data: Path) -> Path:
    return prose_data / "tokenizer"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> DocumentTokenizer:
    return DocumentTokenizer.load(tokenizer_folder)


class TestReading:
    @pytest.fixture
    def documents(self) -> list[str]:
        return texts(40)

    @pytest.fixture
    def folder(self, tmp_path: Path, tokenizer_folder: Path, documents: list[str]) -> Path:
        members = {f"{n:03d}.txt": text.encode() for n, text in enumerate(documents)}
        (tmp_path / "data").mkdir()
        write_tar(tmp_path / "data" / "x.tar", members, tarfile.PAX_FORMAT)
        index_dataset(tmp_path / "data", tokenizer_folder)
        return tmp_path / "data"

    def open(self, folder: Any, info: ShardInfo, tokenizer: DocumentTokenizer) -> OpenTextShard:
        return OpenTextShard(folder, info, TextMember(), tokenizer, TokenCache(2000))

    def test_verify_names_what_is_damaged(self, folder: Path) -> None:
        assert verify_dataset(folder).is_sound
        info = infos(folder)[0]
        tar, index = folder / info.file, folder / info.index_file
        sound, sound_index = tar.read_bytes(), index.read_bytes()
        offset_bytes = int(TextIndex.from_bytes(sound_index).offsets_bytes[7])
        tar.write_bytes(sound[:offset_bytes] + b"\x01" + sound[offset_bytes + 1 :])
        named = {damage.document for damage in verify_dataset(folder).damages}
        assert named == {f"text 7 (at byte {offset_bytes})", None}
        tar.write_bytes(sound[: len(sound) // 2])
        assert len(verify_dataset(folder).damages) > 10
        tar.unlink()
        assert "cannot be read" in str(verify_dataset(folder).damages[0])
        tar.write_bytes(sound)
        index.write_bytes(sound_index[:-1])
        assert [str(damage) for damage in verify_dataset(folder).damages] == [
            f"{info.file}: its index {info.index_file} is damaged"
        ]

    def test_windows_are_cut_out_of_the_texts_end_to_end(
        self, folder: Path, tokenizer: DocumentTokenizer, documents: list[str]
    ) -> None:
        shard = self.open(LocalFolder(folder), infos(folder)[0], tokenizer)
        line = np.concatenate(direct(tokenizer, documents)).astype(tokenizer.token_dtype)
        numbers = np.repeat(np.arange(len(documents)), shard.index.lengths_tokens.astype(int))
        places = random.Random(1)
        for _ in range(200):
            length = places.randint(1, 400)
            start = places.randint(0, len(line) - length)
            target = np.empty(length, tokenizer.token_dtype)
            segments = np.empty(length, np.uint16)
            shard.read(target.view(np.uint8).data, start, None, segments)
            assert np.array_equal(target, line[start : start + length])
            wanted = numbers[start : start + length]
            assert np.array_equal(segments, wanted - wanted[0] + 1)
        shard.close()

    def test_the_reader_of_data_sets_takes_texts_for_ids(
        self, folder: Path, tokenizer: DocumentTokenizer, documents: list[str]
    ) -> None:
        manifest = Manifest.load(folder)
        line = np.concatenate(direct(tokenizer, documents)).astype(tokenizer.token_dtype)
        reader = DatasetReader(LocalFolder(folder), manifest, tokenizer)
        target = np.empty(700, tokenizer.token_dtype)
        reader.read(target.view(np.uint8).data, 0, 123)
        assert np.array_equal(target, line[123:823])
        reader.close()
        assert (manifest.kind, manifest.tokens) == ("text", len(line))
        with pytest.raises(DataError, match="name its tokenizer"):
            DatasetReader(LocalFolder(folder), manifest)

    def test_any_flipped_byte_is_found_and_named(
        self, folder: Path, tokenizer: DocumentTokenizer
    ) -> None:
        path, info = folder / "x.tar", infos(folder)[0]
        sound = path.read_bytes()
        shard = self.open(LocalFolder(folder), info, tokenizer)
        places = random.Random(2)
        for _ in range(60):
            position = places.randrange(info.documents)
            size = int(shard.index.sizes_bytes[position])
            place = int(shard.index.offsets_bytes[position]) + places.randrange(size)
            harmed = bytearray(sound)
            harmed[place] ^= 1 << places.randrange(8)
            path.write_bytes(harmed)
            documents = TextShardDocuments(
                LocalFolder(folder), info, TextMember(), tokenizer, TokenCache()
            )
            descriptor = LocalFolder(folder).open_shard(info)
            with pytest.raises(DamageError, match=rf"x\.tar: text {position} ") as caught:
                documents.document_tokens(descriptor, position)
            assert caught.value.shard_file == "x.tar"
            end = int(shard.index.lengths_tokens[: position + 1].sum())
            start = end - int(shard.index.lengths_tokens[position])
            assert caught.value.ranges == ((start, end),)
            documents.document_tokens(descriptor, (position + 1) % info.documents)
            os.close(descriptor)
        os.truncate(path, 100)
        with pytest.raises(DamageError, match="cut off"):
            shard.read(memoryview(bytearray(4)), 500)
        shard.close()

    def test_another_tokenizer_program_is_noticed(
        self, folder: Path, tokenizer: DocumentTokenizer
    ) -> None:
        info = infos(folder)[0]
        documents = TextShardDocuments(
            LocalFolder(folder), info, TextMember(), tokenizer, TokenCache()
        )
        lengths = documents.index.lengths_tokens.copy()
        lengths[3] += 1
        object.__setattr__(documents.index, "lengths_tokens", lengths)
        descriptor = LocalFolder(folder).open_shard(info)
        with pytest.raises(DataError, match="the tokenizing library has changed"):
            documents.document_tokens(descriptor, 3)
        os.close(descriptor)

    def test_a_damaged_index_is_one_line(self, folder: Path, tokenizer: DocumentTokenizer) -> None:
        info = infos(folder)[0]
        (folder / "x.idx").write_bytes((folder / "x.idx").read_bytes()[:-3])
        with pytest.raises(DataError, match=r"x\.idx is damaged"):
            self.open(LocalFolder(folder), info, tokenizer)
        (folder / "x.idx").unlink()
        with pytest.raises(DataError, match=r"x\.idx"):
            self.open(LocalFolder(folder), info, tokenizer)

    def test_texts_come_over_http_and_a_damaged_copy_is_fetched_again(
        self, tmp_path: Path, folder: Path, tokenizer: DocumentTokenizer, documents: list[str]
    ) -> None:
        info = infos(folder)[0]
        with FaultyServer(folder) as server:
            server.plan("x.tar", ("cut", 3000), "flip")
            retry = RetrySettings(timeout_seconds=2, first_delay_seconds=0.01)
            cache = CacheSettings(folder=tmp_path / "cache", size_bytes=10**7, retry=retry)
            remote = RemoteFolder(server.url, cache)
            shard = self.open(remote, info, tokenizer)
            copy = tmp_path / "cache" / f"{info.checksum}.data"
            harmed = bytearray(copy.read_bytes())
            place = int(shard.index.offsets_bytes[7])
            harmed[place] ^= 1
            copy.write_bytes(harmed)
            ids = np.empty(info.tokens, tokenizer.token_dtype)
            shard.read(ids.view(np.uint8).data, 0)
            assert ids.tolist() == [id for ids in direct(tokenizer, documents) for id in ids]
            shard.close()
            remote.close()

    @given(st.binary(max_size=300), st.integers(0, 2**64 - 1), st.integers(0, 99))
    def test_an_index_is_taken_whole_or_refused(self, noise: bytes, number: int, at: int) -> None:
        column = np.array([512, 1536], "<u8"), np.array([10, 20], "<u8"), np.array([3, 4], "<u8")
        index = TextIndex(4096, "0" * 32, "1" * 32, *column, np.array([1, 2], "<u8"))
        data = index.to_bytes()
        assert TextIndex.from_bytes(data).to_bytes() == data
        harmed = bytearray(data)
        start = min(at, len(data) // 8 - 1) * 8
        harmed[start : start + 8] = number.to_bytes(8, "little")
        for candidate in (bytes(harmed), noise, data[:-8], data + noise[:8]):
            try:
                found = TextIndex.from_bytes(candidate)
            except DataError:
                continue
            assert found.to_bytes() == candidate or candidate[52:56] != bytes(4)
