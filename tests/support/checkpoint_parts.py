"""A checkpoint as any other number of ranks would have written it."""

from __future__ import annotations

import math
from pathlib import Path

from pretrain.checkpoints.checkpoint_format import CONFIG, folder_name
from pretrain.checkpoints.reader import CheckpointReader
from pretrain.checkpoints.snapshot import WEIGHT, Snapshot
from pretrain.checkpoints.transaction import commit, partial_folder, write_part


def recut(checkpoint: Path, run: Path, world_size: int, kinds: tuple[str, ...] = (WEIGHT,)) -> Path:
    """Write a checkpoint's numbers again, all parameters one after another and cut evenly.

    Args:
        checkpoint: Of any number of ranks.
        run: The new checkpoint's run; made if it is absent.
        world_size: Number of ranks that shall have written it.
        kinds: What is kept of a parameter besides its weight, such as ``exp_avg``.
    """
    reader = CheckpointReader(checkpoint)
    shapes = reader.manifest["parameters"]
    total = sum(map(math.prod, shapes.values()))
    final = run / "checkpoints" / folder_name(reader.manifest["step"])
    final.parent.mkdir(parents=True)
    partial = partial_folder(final, 1)
    written = {}
    for rank in range(world_size):
        first, last = total * rank // world_size, total * (rank + 1) // world_size
        part = Snapshot()
        if rank == 0:
            whole = [name for name in reader.names if name not in shapes]
            part.whole = {name: reader.read_full(name) for name in whole}
        begin = 0
        for name, shape in shapes.items():
            start, stop = max(first - begin, 0), min(last - begin, math.prod(shape))
            if start < stop:
                part.places[name] = (start, stop - start)
                for kind in kinds:
                    values = reader.read_slice(kind, name, start, stop - start)
                    part.tensors[f"{kind}/{name}"] = values
            begin += math.prod(shape)
        config = (checkpoint / CONFIG).read_text(encoding="utf-8")
        written |= write_part(partial, rank, part, config)
    files = {name: file._asdict() for name, file in sorted(written.items())}
    commit(partial, final, reader.manifest | {"world_size": world_size, "files": files})
    return final
