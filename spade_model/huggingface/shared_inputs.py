"""Inputs that are too long for one process: a part of each on every process.

```python
torch.distributed.init_process_group()
part = part_of_all_processes(ids.shape[1])
model.generate(ids[:, part.tokens], part=part, num_beams=4, max_new_tokens=256)
```

`SpadeForConditionalGeneration` takes such a part in `forward` and in `generate`; each process then
has the same logits, loss and tokens. Where one samples, all are seeded alike.
"""

from __future__ import annotations

import torch.distributed as dist

from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart


def part_of_all_processes(total_tokens: int) -> ContextPart:
    """Cut inputs over all processes of `torch.distributed`, as equally as can be.

    Args:
        total_tokens: Of the whole inputs, padding included; the same in all processes.

    Raises:
        ValueError: There are fewer tokens than processes, or the processes have not met.
    """
    if not dist.is_initialized():
        raise ValueError("the processes have not met; call torch.distributed.init_process_group()")
    assert dist.group.WORLD is not None, "they have met"
    return ContextPart.of(ContextGroup.of(dist.group.WORLD), total_tokens)
