"""Whether a run's data sets are there and as they were written, found out in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipeline.shards.manifest import Manifest, ShardInfo
    from pretrain.config import RunConfig

_WHOLLY_READ_BYTES = 64 * 2**20
"""Up to this size, of all data sets together, every byte is read; a fraction of a second."""
_INDEX_BYTES = 64 * 2**20
"""Of indexes, whose checksums are compared; those beyond are only looked for."""
_INDEX_SHARE = 1 / 256
"""About the size of an index beside its shard's."""
_THREADS = 16
"""A network file system answers each question late, and many at a time."""
_LISTED = 3
"""Problems of one data set that are told; the first say enough."""


def data_problems(config: RunConfig) -> list[str]:
    """What is wrong with the data sets of a run, one line each.

    The manifests have been read when the configuration was. Every shard must be there with the
    manifest's size, and its index too. Small data sets are read to their last byte; of large ones
    the indexes are compared with their checksums as far as a few seconds go, and the rest is what
    ``spade data verify`` is for: a run compares every block that it reads. Of remote data sets the
    first and the last shard are asked for.

    Raises:
        ValueError: A place is none that can be read.
    """
    problems: list[str] = []
    wholly, indexes = _WHOLLY_READ_BYTES, _INDEX_BYTES
    for field, place in _places(config):
        manifest = config.data.load_manifest(place)
        size_bytes = sum(info.size_bytes for info in manifest.shards)
        if isinstance(place, str):
            found = list(_remote_problems(config, place, manifest))
        elif size_bytes <= wholly:
            wholly -= size_bytes
            found = list(_all_problems(place))
        else:
            found = list(_present_problems(place, manifest, indexes))
            indexes -= int(size_bytes * _INDEX_SHARE)
        problems += [f"{field}: {problem}" for problem in found[:_LISTED]]
        if len(found) > _LISTED:
            problems.append(f"{field}: {len(found) - _LISTED} more problems: spade data verify")
    return problems


def _places(config: RunConfig) -> Iterator[tuple[str, Path | str]]:
    """Fields and places of all data sets, each place once."""
    data = config.data
    seen: set[str] = set()
    parts = (
        ("train", isinstance(data.train, str), data.locations()),
        ("heldout", isinstance(data.heldout, str), data.heldout_locations()),
    )
    for part, single, places in parts:
        for name, place in places.items():
            if str(place) not in seen:
                seen.add(str(place))
                yield f"data.{part}" if single else f"data.{part}.{name}", place


def _all_problems(folder: Path) -> Iterator[str]:
    from data_pipeline.inspection.verify import verify_dataset

    for damage in verify_dataset(folder).damages:
        yield f'{folder}/{damage}; make it again with "spade data repair"'


def _present_problems(folder: Path, manifest: Manifest, index_bytes: int) -> Iterator[str]:
    """Compares sizes of all shards and checksums of so many bytes of indexes."""
    compared, left = [], float(index_bytes)
    for info in manifest.shards:
        compared.append(left > 0)
        left -= info.size_bytes * _INDEX_SHARE

    def examine(info: ShardInfo, compare: bool) -> str | None:
        from data_pipeline.errors import DataError
        from data_pipeline.reading.shard_reader import check_shard_size
        from data_pipeline.remote.dataset_folder import LocalFolder

        try:
            check_shard_size(folder, info)
            if compare:
                LocalFolder(folder).read_bytes(info.index_file, info.index_checksum)
        except DataError as error:
            return str(error)
        if not (folder / info.index_file).is_file():
            return f'{folder / info.index_file} is missing; make it again with "spade data repair"'
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        for problem in pool.map(examine, manifest.shards, compared):
            if problem is not None:
                yield problem


def _remote_problems(config: RunConfig, url: str, manifest: Manifest) -> Iterator[str]:
    from data_pipeline.remote.dataset_folder import open_dataset_folder

    folder = open_dataset_folder(url)
    try:
        for file in dict.fromkeys((manifest.shards[0].file, manifest.shards[-1].file)):
            if not folder.exists(file):
                yield f"{folder.name}/{file} is missing, though the manifest lists it"
    finally:
        folder.close()
