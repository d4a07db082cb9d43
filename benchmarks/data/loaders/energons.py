"""megatron-energon over the same tars of `.npy` members, with a trivial cooker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.loaders.mosaic import stand_in_for_torchvision

# Its parts below need it while they are imported.
stand_in_for_torchvision()

import megatron.energon as energon  # noqa: E402

from benchmarks.data.corpus import TokenSet  # noqa: E402
from benchmarks.data.loaders.interface import Loader, Run, collate  # noqa: E402
from benchmarks.data.loaders.tars import NaiveWebDataset, ids_of  # noqa: E402

_SHUFFLED_SAMPLES = 1_000


@energon.edataclass
class _Tokens(energon.Sample):  # type: ignore[misc]
    """Ids, with what energon needs to find the sample again."""

    tokens: Any


@energon.stateless
def _cook(sample: dict[str, Any]) -> Any:
    return _Tokens(**energon.basic_sample_keys(sample), tokens=ids_of(sample))


class _Task(energon.DefaultTaskEncoder):  # type: ignore[misc]
    """Ids out of raw bytes, collated as for the others."""

    cookers = (energon.Cooker(_cook),)
    decoder = None

    @energon.stateless
    def batch(self, samples: list[Any]) -> Any:
        return collate([sample.tokens for sample in samples])


class _Run(Run):
    endless = True

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def batches(self) -> Iterator[Any]:
        return iter(self._loader)

    def state(self, batches: int) -> Any:
        return self._loader.save_state_rank()


class Energon(Loader):
    """`get_train_dataset` and `get_savable_loader`; its epochs never end."""

    def prepare(self, data: TokenSet) -> None:
        """Lets energon index the tars."""
        NaiveWebDataset().prepare(data)
        folder = data.folder("tars")
        if (folder / ".nv-meta" / "dataset.yaml").exists():
            return
        command = [str(Path(sys.executable).parent / "energon"), "prepare", str(folder)]
        command += ["--non-interactive", "--force-overwrite", "--split-ratio", "1,0,0"]
        command += ["--sample-type", "CrudeWebdataset", "--num-workers", "2"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Restores a state."""
        worker = energon.WorkerConfig(rank=0, world_size=1, num_workers=workers)
        dataset = energon.get_train_dataset(
            data.folder("tars"),
            batch_size=data.batch,
            shuffle_buffer_size=_SHUFFLED_SAMPLES,
            max_samples_per_sequence=100,
            worker_config=worker,
            task_encoder=_Task(),
        )
        loader = energon.get_savable_loader(dataset)
        if state is not None:
            loader.restore_state_rank(state)
        return _Run(loader)
