"""Evaluation during training: what it measures, on any ranks, and that training does not notice."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluation_ranks
import numpy as np
import pytest
import torch
import torch.distributed as dist
from evaluation_ranks import SEED, evaluation_of, tiny_model
from torch.nn import functional

from data_pipeline.reading.stream import PretrainingStream
from data_pipeline.reading.unigram import target_unigram
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from pretrain.data_settings import DataSettings
from pretrain.evaluation.baselines import UNIGRAM_SAMPLES
from pretrain.evaluation.settings import EvaluationSettings
from pretrain.model_inputs import model_inputs
from pretrain.ranks import Ranks

ALONE = Ranks(0, 1, 0, "test")
OBJECTIVES = {"continuation": {"kind": "prefix_lm"}, "mixed": {"kind": "ul2"}}
SAMPLES = 8


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def data_of(folder: Path, **changed: Any) -> dict[str, Any]:
    """Two held-out sets, ragged windows, documents told apart."""
    return {
        "train": str(folder / "train"),
        "heldout": {"kept": str(folder / "heldout"), "known": str(folder / "train")},
        "tokenizer": str(folder / "tokenizer"),
        "input_length_tokens": 64,
        "windows": "document",
        "document_boundaries": True,
    } | changed


def never() -> bool:
    return False


def run_alone(data: dict[str, Any], file: Path, **settings: Any) -> dict[str, float]:
    evaluation = evaluation_of(data, {"samples": SAMPLES, **settings}, file, ALONE)
    record = evaluation.run(tiny_model(), never)
    evaluation.close()
    assert record is not None
    return record


@pytest.fixture(scope="module")
def on_ranks(prose_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every rank found, by case and world, of one process that forks all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    wide = {"samples": SAMPLES, "objectives": OBJECTIVES}
    single = data_of(prose_data, heldout=str(prose_data / "heldout"))
    cases = [
        {"name": "wide", "data": data_of(prose_data), "evaluation": wide, "worlds": [1, 2, 3]},
        # One micro-batch: all but one rank have none of their own.
        {"name": "few", "data": single, "evaluation": {"samples": 2}, "worlds": [1, 3]},
    ]
    request = folder / "request.json"
    request.write_text(json.dumps({"folder": str(folder), "cases": cases}))
    ended = subprocess.run(
        [sys.executable, evaluation_ranks.__file__, str(request)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    return {
        f"{case['name']}-{world}": [
            json.loads((folder / f"{case['name']}-{world}-{rank}.json").read_text())
            for rank in range(world)
        ]
        for case in cases
        for world in case["worlds"]
    }


@pytest.mark.slow
@pytest.mark.parametrize(("case", "worlds"), [("wide", (2, 3)), ("few", (3,))])
def test_any_number_of_ranks_finds_the_same_bits(
    on_ranks: dict[str, list[Any]], case: str, worlds: tuple[int, ...]
) -> None:
    (alone,) = on_ranks[f"{case}-1"]
    assert len(set(alone["record"].values())) > len(alone["record"]) / 2, "numbers of many kinds"
    for world in worlds:
        for found in on_ranks[f"{case}-{world}"]:
            assert found["record"] == alone["record"]


@pytest.mark.slow
def test_all_ranks_stop_at_the_same_place(on_ranks: dict[str, list[Any]]) -> None:
    # Three micro-batches of at most three samples for each of two sets and three objectives.
    for world, rounds in ((1, 18), (2, 9), (3, 6)):
        for found in on_ranks[f"wide-{world}"]:
            assert found["stopped"] is None
            assert found["rounds"] == rounds
    assert [found["rounds"] for found in on_ranks["few-3"]] == [1, 1, 1]


def test_losses_and_bits_per_byte_are_what_they_are_defined_as(
    prose_data: Path, tmp_path: Path
) -> None:
    """One sample at a time, no padding, text decoded."""
    values = data_of(prose_data)
    record = run_alone(values, tmp_path / "unigram.json", objectives=OBJECTIVES)
    data = DataSettings.model_validate_json(json.dumps(values))
    tokenizer = DocumentTokenizer.load(data.tokenizer)
    settings = EvaluationSettings.model_validate({"objectives": OBJECTIVES})
    model = tiny_model().eval()
    expected = {}
    for suffix, objective in (("", None), *((f"/{k}", v) for k, v in settings.objectives.items())):
        sums = np.zeros(5)
        for name in ("kept", "known"):
            stream = PretrainingStream(data.heldout_settings(SEED, name, objective))
            found = np.zeros(5)
            for number in range(SAMPLES):
                batch = stream.batch([number])
                with torch.no_grad():
                    logits = model(**model_inputs(batch, torch.device("cpu"))).logits[0].double()
                labels = batch.masked_labels()[0]
                nats = functional.cross_entropy(
                    logits, torch.from_numpy(labels), reduction="none"
                ).numpy()
                is_text = stream.vocabulary.is_text(labels)
                text = tokenizer.decode(labels[is_text])
                assert "\ufffd" not in text, "made of whole characters"
                size = len(text.encode())
                found += (nats.sum(), nats[is_text].sum(), len(labels), is_text.sum(), size)
            sums += found
            expected |= _defined(f"eval/{name}{suffix}", found)
        expected |= _defined(f"eval/heldout{suffix}", sums)
    for key, value in expected.items():
        assert record[key] == pytest.approx(value, rel=2e-6), key
    rest = {key for key in record if key not in expected and "/denoiser/" not in key}
    paths = {key.rpartition("/")[0] for key in expected}
    assert rest == {f"{path}/unigram_{key}" for path in paths for key in ("loss", "text_loss")}


def _defined(path: str, sums: np.ndarray) -> dict[str, float]:
    nats, text_nats, targets, text, size = sums.tolist()
    return {
        f"{path}/loss": nats / targets,
        f"{path}/text_loss": text_nats / text,
        f"{path}/bits_per_byte": text_nats / math.log(2) / size,
    }


def test_the_unigram_losses_are_those_of_the_baseline(prose_data: Path, tmp_path: Path) -> None:
    values = data_of(prose_data, heldout=str(prose_data / "heldout"), windows="concat")
    record = run_alone(values, tmp_path / "unigram.json")
    data = DataSettings.model_validate_json(json.dumps(values))
    baseline = target_unigram(PretrainingStream(data.stream_settings(SEED)), UNIGRAM_SAMPLES)
    heldout = PretrainingStream(data.heldout_settings(SEED))
    labels = heldout.batch(np.arange(SAMPLES)).masked_labels()
    text = labels[heldout.vocabulary.is_text(labels)]
    expected = baseline.nats[labels].mean(), baseline.text_nats[text].mean()
    assert record["eval/heldout/unigram_loss"] == pytest.approx(expected[0], rel=1e-12)
    assert record["eval/heldout/unigram_text_loss"] == pytest.approx(expected[1], rel=1e-12)
    names = ("loss", "text_loss", "unigram_loss", "unigram_text_loss", "bits_per_byte")
    assert set(record) == {f"eval/heldout/{name}" for name in names}


def test_neither_order_nor_company_of_sets_moves_a_bit(prose_data: Path, tmp_path: Path) -> None:
    data = data_of(prose_data)
    together = run_alone(data, tmp_path / "unigram.json", objectives=OBJECTIVES)
    turned = dict(reversed(data["heldout"].items()))
    other = dict(reversed(OBJECTIVES.items()))
    file = tmp_path / "turned.json"
    assert run_alone(data | {"heldout": turned}, file, objectives=other) == together
    kept = run_alone(data | {"heldout": {"kept": data["heldout"]["kept"]}}, file)
    assert len(kept) == 10
    assert {key: together[key] for key in kept if "/kept/" in key}.items() <= kept.items()
    assert kept["eval/heldout/loss"] == kept["eval/kept/loss"]


def test_denoisers_share_out_the_loss_of_their_mixture(prose_data: Path, tmp_path: Path) -> None:
    data = data_of(prose_data, objective={"kind": "ul2", "s_weight": 4.0})
    record = run_alone(data, tmp_path / "unigram.json")
    found = {key for key in record if key.startswith("eval/heldout/denoiser/")}
    names = {key.split("/")[3] for key in found}
    assert len(names) > 2, "these samples have several denoisers"
    assert "s_noise25" in names
    assert found == {
        f"eval/heldout/denoiser/{name}/{kind}" for name in names for kind in ("loss", "text_loss")
    }
    losses = [record[f"eval/heldout/denoiser/{name}/loss"] for name in names]
    assert min(losses) < record["eval/heldout/loss"] < max(losses)


def test_training_does_not_notice(prose_data: Path, tmp_path: Path) -> None:
    """With dropout on and in the middle of an accumulation, one part of the model in eval mode."""
    data = data_of(prose_data)
    evaluation = evaluation_of(data, {"samples": 3}, tmp_path / "unigram.json", ALONE)
    settings = DataSettings.model_validate_json(json.dumps(data)).stream_settings(SEED)

    def train(*, evaluates: bool) -> list[Any]:
        stream = PretrainingStream(settings)
        model = tiny_model(dropout=0.3)
        model.train()
        model.model.decoder.eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        torch.manual_seed(11)
        seen: list[Any] = []
        for step in range(2):
            for half in range(2):
                batch = stream.batch(np.arange(4) + 8 * step + 4 * half)
                loss = model(**model_inputs(batch, torch.device("cpu"))).loss
                loss.backward()
                seen.append(loss.item())
                if evaluates:
                    evaluation.run(model, lambda step=step: step == 1)  # one is broken off
            optimizer.step()
            optimizer.zero_grad()
        seen += [[module.training for module in model.modules()], torch.get_rng_state().tolist()]
        return [*seen, [parameter.tolist() for parameter in model.parameters()]]

    assert train(evaluates=True) == train(evaluates=False)
    evaluation.close()


def test_an_error_in_the_model_leaves_it_in_its_mode(prose_data: Path, tmp_path: Path) -> None:
    evaluation = evaluation_of(data_of(prose_data), {}, tmp_path / "unigram.json", ALONE)
    model = tiny_model().train()

    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        evaluation.run(model, never)
    assert all(module.training for module in model.modules())
