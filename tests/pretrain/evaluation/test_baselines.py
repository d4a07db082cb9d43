"""Frequencies of training targets: counted once in a run, whatever becomes of their file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_pipeline.objectives import make_objective
from data_pipeline.reading.source import StreamSettings
from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import UnigramBaseline, target_unigram
from pretrain.errors import RunError
from pretrain.evaluation.baselines import UNIGRAM_SAMPLES, unigram_baselines
from pretrain.ranks import Ranks


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def settings_of(folder: Path, kind: str = "span_corruption", seed: int = 3) -> StreamSettings:
    objective = make_objective(kind, input_length_tokens=64)
    return StreamSettings(sources={"train": folder}, objective=objective, seed=seed)


def baselines(file: Path, **training: StreamSettings) -> dict[str, UnigramBaseline]:
    vocab = PretrainingStream(next(iter(training.values()))).vocabulary
    return unigram_baselines(
        training, vocab, file=file, ranks=Ranks(0, 1, 0, "test"), device=torch.device("cpu")
    )


def test_the_file_stands_for_the_samples(prose_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "unigram.json"
    one, other = settings_of(prose_data / "train"), settings_of(prose_data / "train", "prefix_lm")
    first = baselines(file, trained=one, other=other)
    for name, settings in (("trained", one), ("other", other)):
        counted = target_unigram(PretrainingStream(settings), UNIGRAM_SAMPLES)
        assert np.array_equal(first[name].counts, counted.counts)
    assert not np.array_equal(first["trained"].counts, first["other"].counts)

    # What stands in the file is not counted again.
    written = file.read_text()
    marked = {key: [count + 1 for count in counts] for key, counts in json.loads(written).items()}
    file.write_text(json.dumps(marked))
    second = baselines(file, trained=one, other=other)
    assert np.array_equal(second["other"].counts, first["other"].counts + 1)
    # Other samples are.
    third = baselines(file, trained=settings_of(prose_data / "train", seed=4))
    assert not np.array_equal(third["trained"].counts, second["trained"].counts)
    assert len(json.loads(file.read_text())) == 1


def test_a_damaged_file_is_made_again(prose_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "unigram.json"
    settings = settings_of(prose_data / "heldout")
    expected = baselines(file, trained=settings)["trained"].counts
    written = file.read_text()
    ((key, counts),) = json.loads(written).items()
    values = [0, "many", -1, 2**70, 1.5, True, None]
    damages = [json.dumps({key: [value] * len(counts)}) for value in values]
    damages += ["", "{", "[]", json.dumps({key: 3}), json.dumps({key: [1, 2]}), "[" * 99999]
    for damage in damages:
        file.write_text(damage)
        assert np.array_equal(baselines(file, trained=settings)["trained"].counts, expected)
        assert file.read_text() == written


def test_a_folder_that_cannot_be_written_is_one_line(prose_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "gone" / "unigram.json"
    with pytest.raises(RunError, match=f"cannot write {file}: {os.strerror(2)}; "):
        baselines(file, trained=settings_of(prose_data / "heldout"))
