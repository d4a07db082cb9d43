"""What is remembered of the last collective operations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.resilience.collectives import KEPT, CollectiveRecorder


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[CollectiveRecorder]:
    """In a group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    recorder = CollectiveRecorder().attach()
    yield recorder
    recorder.detach()
    dist.destroy_process_group()


def states(recorder: CollectiveRecorder) -> list[str]:
    return [line.split(maxsplit=3)[3].rstrip() for line in recorder.lines()]


def test_operations_are_told_with_shape_and_state(recorder: CollectiveRecorder) -> None:
    dist.all_reduce(torch.zeros(3, 2))
    dist.all_gather([torch.zeros(4)], torch.zeros(4))
    dist.barrier()
    dist.all_gather_object([None], {"any": "thing"})
    lines = [" ".join(line.split("s ago")[1].split()) for line in recorder.lines()]
    assert lines == [
        "all_reduce [3, 2] float32 returned",
        "all_gather [4] float32 returned",
        "barrier returned",
        "all_gather_object returned",
    ], "one line each, also for those that are made of others"


def test_a_failure_and_a_handle_are_told(recorder: CollectiveRecorder) -> None:
    with pytest.raises(NotImplementedError):
        dist.broadcast(torch.zeros(1).to_sparse(), src=0)
    work = dist.all_reduce(torch.zeros(1), async_op=True)
    assert work is not None
    work.wait()
    assert [line.split()[-1] for line in recorder.lines()] == ["NotImplementedError", "completed"]
    del work
    assert recorder.lines()[-1].endswith("waited for"), "the handle and its tensors are not kept"


def test_only_the_last_are_kept(recorder: CollectiveRecorder) -> None:
    for length in range(KEPT + 5):
        dist.all_reduce(torch.zeros(length))
    assert len(recorder.lines()) == KEPT
    assert f"[{KEPT + 4}]" in recorder.lines()[-1]


def test_threads_are_told_apart(recorder: CollectiveRecorder) -> None:
    """One thread inside an operation does not hide another's."""
    threads = [
        threading.Thread(target=lambda: [dist.all_reduce(torch.zeros(1)) for _ in range(4)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorder.lines()) == 16


def test_everything_is_left_as_it_was_found(tmp_path: Path) -> None:
    before = {name: getattr(dist, name) for name in dir(dist)}
    recorder = CollectiveRecorder().attach()
    assert dist.all_reduce is not before["all_reduce"]
    recorder.detach()
    assert all(getattr(dist, name) is value for name, value in before.items())
