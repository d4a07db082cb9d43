"""Shards to fetch, and processes that fetch them."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from data_pipeline.remote.dataset_folder import RetrySettings

SHARD_BYTES = 400_000
QUICK = RetrySettings(
    attempts=4, timeout_seconds=2.0, first_delay_seconds=0.01, longest_delay_seconds=0.05
)

# Reads shards in an order of its own; ends with a line that tells how often each was right.
READER = """
import json, os, random, sys
import xxhash
from pathlib import Path
from data_pipeline.remote.dataset_folder import CacheSettings, RemoteFolder, RetrySettings
from tests_shard import Shard
url, cache, size_bytes, seed, rounds, shards = sys.argv[1:]
retry = RetrySettings(attempts=4, timeout_seconds=5.0, first_delay_seconds=0.01)
settings = CacheSettings(folder=Path(cache), size_bytes=int(size_bytes), retry=retry)
folder = RemoteFolder(url, settings)
shards = [Shard(**shard) for shard in json.loads(shards)]
order = random.Random(int(seed))
print("ready", flush=True)
wrong = 0
for _ in range(int(rounds)):
    shard = order.choice(shards)
    folder.prefetch(order.sample(shards, min(2, len(shards))))
    descriptor = folder.open_shard(shard)
    with os.fdopen(descriptor, "rb") as file:
        wrong += xxhash.xxh3_128_hexdigest(file.read()) != shard.checksum
folder.close()
print("wrong", wrong)
"""


@dataclass(frozen=True)
class Shard:
    file: str
    size_bytes: int
    checksum: str


def make_shards(folder: Path, number: int) -> list[Shard]:
    folder.mkdir(exist_ok=True)
    shards = []
    for position in range(number):
        data = random.Random(position).randbytes(SHARD_BYTES + position)
        file = f"shard-{position:06d}.tar"
        (folder / file).write_bytes(data)
        shards.append(Shard(file, len(data), xxhash.xxh3_128_hexdigest(data)))
    return shards


def start_reader(
    tmp_path: Path,
    url: str,
    shards: list[Shard],
    *,
    size_bytes: int,
    seed: int = 0,
    rounds: int = 30,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    (tmp_path / "tests_shard.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Shard:\n"
        "    file: str\n    size_bytes: int\n    checksum: str\n"
    )
    arguments = [url, str(tmp_path / "cache"), str(size_bytes), str(seed), str(rounds)]
    return subprocess.Popen(
        [sys.executable, "-c", READER, *arguments, json.dumps([asdict(item) for item in shards])],
        env=(environment or dict(os.environ)) | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def used_bytes(cache: Path) -> int:
    """Bytes of the cache's files at one moment: with the bookkeeping stopped, each file once."""
    if not (cache / "lock").exists():
        return 0
    sizes = {}
    with (cache / "lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(cache.iterdir(), reverse=True):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def ends_right(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.endswith("wrong 0\n"), output
