"""mosaicml-streaming over its own shards, shuffled."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from benchmarks.data.corpus import TokenSet
from benchmarks.data.loaders.interface import Loader, Run, collate


def stand_in_for_torchvision() -> None:
    """Lets the package load without torchvision, which it imports though nothing here has images.

    Wheels of torchvision fit one build of torch only.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return
    names = ("", ".datasets", ".transforms", ".transforms.functional")
    modules = {}
    for name in names:
        modules[name] = ModuleType("torchvision" + name)
        modules[name].__spec__ = ModuleSpec("torchvision" + name, None)
        modules[name].__path__ = []
    modules[".datasets"].VisionDataset = type("VisionDataset", (), {})  # type: ignore[attr-defined]
    modules[".transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    sys.modules.update({module.__name__: module for module in modules.values()})


class _Run(Run):
    def __init__(self, dataset: Any, loader: Any) -> None:
        self._dataset, self._loader = dataset, loader

    def batches(self) -> Iterator[Any]:
        return iter(self._loader)

    def state(self, batches: int) -> Any:
        return self._loader.state_dict()


class Mosaic(Loader):
    """StreamingDataset and StreamingDataLoader with their defaults and shuffling on."""

    def __init__(self) -> None:
        stand_in_for_torchvision()
        import streaming

        self._streaming = streaming

    def prepare(self, data: TokenSet) -> None:
        """Writes MDS shards."""
        folder = data.folder("mds")
        if (folder / "index.json").exists():
            return
        kind = f"ndarray:uint16:{data.window_tokens}" if data.window_tokens else "ndarray:uint16"
        columns = {"tokens": kind}
        with self._streaming.MDSWriter(
            out=str(folder), columns=columns, size_limit=8 * 2**20
        ) as writer:
            for sample in data.samples():
                writer.write({"tokens": sample})

    def open(self, data: TokenSet, workers: int, state: Any = None) -> Run:
        """Begins where a state says."""
        self._streaming.base.util.clean_stale_shared_memory()
        dataset = self._streaming.StreamingDataset(
            local=str(data.folder("mds")), batch_size=data.batch, shuffle=True, shuffle_seed=0
        )
        loader = self._streaming.StreamingDataLoader(
            dataset,
            batch_size=data.batch,
            num_workers=workers,
            collate_fn=collate,
            drop_last=True,
        )
        if state is not None:
            loader.load_state_dict(state)
        return _Run(dataset, loader)
