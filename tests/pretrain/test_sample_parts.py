"""Ranks that share samples: what their models get is what one would, damaged copies or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from part_ranks import loaded, settings_of
from streams import random_documents, write_dataset
from worker_processes import Ranks

from data_pipeline.reading import shard_reader
from pretrain.sample_groups import SampleGroup
from spade_model.context_parallel.group import ContextGroup

SIZE = 3
MICRO_BATCHES = 16


def harmed_copy(sound: Path, copy: Path, shard: int) -> Path:
    """The same data set with a flipped bit in every third block of one shard."""
    shutil.copytree(sound, copy)
    path = copy / f"shard-{shard:06}.tar"
    data = bytearray(path.read_bytes())
    for place in range(2000, len(data), 3 * 4096):
        data[place] ^= 4
    path.write_bytes(data)
    return copy


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data set, copies that are harmed in different places, and one in all of them."""
    rng = np.random.default_rng(6)
    base = tmp_path_factory.mktemp("copies")
    sound = base / "sound"
    write_dataset(sound, [random_documents(rng, 60, median=400) for _ in range(3)])
    first = harmed_copy(sound, base / "first", 0)
    return {
        "sound": sound,
        "first": first,
        "last": harmed_copy(sound, base / "last", 2),
        "both": harmed_copy(first, base / "both", 2),
    }


OBJECTIVES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "ul2", "input_length_tokens": 150}, {"windows": "document"}),
    ({"kind": "span_corruption", "input_length_tokens": 600}, {"document_boundaries": True}),
    ({"kind": "gap_sentences", "input_length_tokens": 400}, {}),
    # Inputs of fewer tokens than ranks.
    ({"kind": "prefix_lm", "input_length_tokens": 9}, {"document_boundaries": True}),
]


@pytest.mark.slow
def test_ranks_go_around_the_same_damage(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one data set the damage that one rank would; of copies of it whatever any rank reads."""
    monkeypatch.setattr(shard_reader, "_RETRY_SECONDS", (0.0, 0.0))
    cases = [
        {
            "folders": [str(folders[name]) for name in names],
            "objective": objective,
            "settings": settings,
            "micro_batches": MICRO_BATCHES,
        }
        for objective, settings in OBJECTIVES
        for names in (("both",) * SIZE, ("sound", "first", "last"))
    ]
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"cases": cases, "out": str(tmp_path)}))
    script = str(Path(__file__).parent.parent / "support" / "part_ranks.py")
    ranks = Ranks([script, str(request)], processes=SIZE)
    assert ranks.wait() == [0] * SIZE, "\n".join(ranks.output)
    of_ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]
    alone = SampleGroup(0, 1, ContextGroup.alone())
    for number, case in enumerate(cases):
        sound, around = (
            loaded(settings_of({**case, "folders": [str(folders[name])]}, 0), alone, MICRO_BATCHES)
            for name in ("sound", "both")
        )
        assert around[1], "what is tested"
        for way in range(2):
            found = [rank[number][way] for rank in of_ranks]
            listed = [sorted(set(map(str, entries))) for _, entries in found]
            assert listed == [listed[0]] * SIZE
            assert listed[0]
            for batch, expected in enumerate(around[0]):
                parts = [inputs[batch] for inputs, _ in found]
                if number % 2 == 0:
                    check_inputs(parts, expected)
                    continue
                check_ranks_agree(parts)
                # What is damaged in one copy need not be read from that one.
                pairs = zip(rows_of(expected), rows_of(sound[0][batch]), strict=True)
                own = zip(rows_of(parts[0]), pairs, strict=True)
                assert all(row in either for row, either in own)


def rows_of(inputs: dict[str, Any]) -> list[list[int]]:
    """The labels of each sample, which tell of which window it was made."""
    return [[label for label in row if label >= 0] for row in inputs["labels"].tolist()]


def check_ranks_agree(parts: list[dict[str, Any]]) -> None:
    lengths = parts[0]["part"]
    assert all(part["part"] == lengths for part in parts)
    assert [part["input_ids"].shape[1] for part in parts] == list(lengths)
    assert all(torch.equal(part["labels"], parts[0]["labels"]) for part in parts)


def check_inputs(parts: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    size = whole["input_ids"].shape[1]
    """That parts are all of the inputs of some samples, and masked where they are more."""
    check_ranks_agree(parts)
    assert torch.equal(parts[0]["labels"], whole["labels"])
    assert all(("segment_ids" in part) == ("segment_ids" in whole) for part in parts)
    assert sum(parts[0]["part"]) == max(size, SIZE)
    ids = torch.cat([part["input_ids"] for part in parts], dim=1)
    assert torch.equal(ids[:, :size], whole["input_ids"])
    if "segment_ids" in whole:
        segments = torch.cat([part["segment_ids"] for part in parts], dim=1)
        assert torch.equal(segments[:, :size], whole["segment_ids"])
    everything = torch.ones_like(whole["input_ids"], dtype=torch.bool)
    mask = whole.get("attention_mask", everything)
    masks = [
        part.get("attention_mask", torch.ones_like(part["input_ids"], dtype=torch.bool))
        for part in parts
    ]
    assert torch.equal(torch.cat(masks, dim=1)[:, :size], mask)
    assert not torch.cat(masks, dim=1)[:, size:].any()
