"""Evaluations on several ranks: ``python evaluation_ranks.py REQUEST.json``.

Imports once and forks the ranks of every world that is asked for, each of which writes what it
found, floats as hexadecimal digits, into `FOLDER/CASE-WORLD-RANK.json`.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain.data_settings import DataSettings
from pretrain.evaluation.evaluation import Evaluation, build_evaluation
from pretrain.evaluation.settings import EvaluationSettings
from pretrain.ranks import Ranks
from pretrain.sample_groups import make_sample_group
from spade_model import SpadeForSeq2Seq
from spade_model.config import SpadeConfig

SEED = 7
MICRO_BATCH_SIZE = 3


def tiny_model(*, dropout: float = 0.1) -> SpadeForSeq2Seq:
    """The same weights at every call, drawn wide so that samples differ in what they cost."""
    torch.manual_seed(3)
    config = SpadeConfig(
        vocab_size=576,
        d_model=32,
        num_heads=2,
        head_dim=16,
        d_ff=64,
        num_encoder_layers=2,
        num_decoder_layers=1,
        state_dim=8,
        local_radius_tokens=15,
        max_target_length_tokens=128,
        dropout=dropout,
    )
    model = SpadeForSeq2Seq(config)
    with torch.no_grad():
        model.model.shared.weight.mul_(30)
    return model


def evaluation_of(
    data: dict[str, Any], evaluation: dict[str, Any], file: Path, ranks: Ranks
) -> Evaluation:
    """As a run builds it."""
    settings = DataSettings.model_validate_json(json.dumps(data))
    return build_evaluation(
        settings,
        EvaluationSettings.model_validate_json(json.dumps(evaluation)),
        settings.stream_settings(SEED),
        micro_batch_size=MICRO_BATCH_SIZE,
        baselines_file=file,
        ranks=ranks,
        group=make_sample_group(ranks, 1),
        device=torch.device("cpu"),
    )


def _rank(rank: int, world_size: int, case: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(1)
    store = folder / f"{case['name']}-{world_size}.store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    evaluation = evaluation_of(
        case["data"],
        case["evaluation"],
        folder / "unigram.json",
        Ranks(rank, world_size, rank, "test"),
    )
    model = tiny_model()
    rounds = count()
    stopped = evaluation.run(model, lambda: next(rounds) == 1)
    calls = count()
    record = evaluation.run(model, lambda: next(calls) < 0)
    assert record is not None
    found = {
        "stopped": stopped,
        "rounds": next(calls),
        "record": {key: value.hex() for key, value in record.items()},
    }
    (folder / f"{case['name']}-{world_size}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> int:
    """Returns 0 if every rank ended well."""
    request = json.loads(Path(sys.argv[1]).read_text())
    failed = False
    for case in request["cases"]:
        for world_size in case["worlds"]:
            children = []
            for rank in range(world_size):
                child = os.fork()
                if child == 0:
                    _rank(rank, world_size, case, Path(request["folder"]))
                    os._exit(0)
                children.append(child)
            failed |= any(os.waitpid(child, 0)[1] != 0 for child in children)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
