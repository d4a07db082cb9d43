"""Held-out sets and objectives in a configuration: what is refused, and what a resume sees."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pretrain.checkpoints.resume import differences, fingerprints
from pretrain.config import RunConfig
from pretrain.data_settings import DataSettings
from pretrain.errors import ConfigError
from pretrain.evaluation.settings import EvaluationSettings


def data_settings(folder: Path, **changed: Any) -> DataSettings:
    values = {part: str(folder / part) for part in ("train", "heldout", "tokenizer")}
    values |= {"input_length_tokens": 64} | changed
    return DataSettings.model_validate_json(json.dumps(values))


@pytest.mark.parametrize(
    ("heldout", "said"),
    [
        ({}, "names no data set"),
        ({"heldout": "x"}, "all held-out sets are evaluated together"),
        ({"../up": "x"}, "String should match pattern"),
        ({"a/loss": "x"}, "String should match pattern"),
        ({"": "x"}, "String should match pattern"),
        (["x"], "valid string"),
    ],
)
def test_names_of_heldout_sets_are_names(prose_data: Path, heldout: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        data_settings(prose_data, heldout=heldout)


def test_each_set_is_checked_by_its_name(prose_data: Path, tmp_path: Path) -> None:
    sets = {"kept": str(prose_data / "heldout"), "gone": str(tmp_path / "nowhere")}
    with pytest.raises(ValueError, match="nowhere"):
        data_settings(prose_data, heldout=sets).check_data()
    data_settings(prose_data, heldout=sets | {"gone": str(prose_data / "train")}).check_data()
    short = data_settings(
        prose_data, heldout={"kept": sets["kept"]}, input_length_tokens=60_000,
        objective={"kind": "prefix_lm"},
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.(train|heldout\.kept) holds no window of"):
        short.check_data()


@pytest.mark.parametrize(
    ("objective", "limit", "said"),
    [
        ({"kind": "prefix_lm"}, 8, r"objectives\.extra asks for up to \d+ tokens, but model\.max_"),
        ({"kind": "prefix_lm"}, 4096, None),
        ({"kind": "prefix_lm", "longest_target_tokens": 4}, 8, None),
        ({"kind": "span_corruption", "mean_span_tokens": 1.0, "noise_density": 0.7}, 4096,
         r"objectives\.extra: input_length_tokens 64 cannot be made with noise_density 0\.7"),
        ({"kind": "ul2"}, 4096, None),
    ],
)  # fmt: skip
def test_each_objective_must_suit_model_tokenizer_and_data(
    prose_data: Path, objective: dict[str, Any], limit: int, said: str | None
) -> None:
    data = data_settings(prose_data)
    settings = EvaluationSettings.model_validate({"objectives": {"extra": objective}})

    def check() -> None:
        settings.check_lengths(data, limit)
        settings.check_data(data)

    if said is None:
        check()
        return
    with pytest.raises(ValueError, match=said) as caught:
        check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "objectives", [{"a/b": {"kind": "ul2"}}, {"a": {"kind": "guess"}}, {"a": 3}]
)
def test_names_and_kinds_of_objectives_are_checked(objectives: Any) -> None:
    with pytest.raises(ValidationError):
        EvaluationSettings.model_validate({"objectives": objectives})


def test_a_resume_may_change_what_is_held_out_and_nothing_else(
    prose_data: Path, run_settings: dict[str, Any]
) -> None:
    run_settings["model"] |= {"vocab_size": 576, "max_target_length_tokens": 128}
    one = RunConfig.from_dict(run_settings)
    values = copy.deepcopy(run_settings)
    values["data"]["heldout"] = {
        "kept": str(prose_data / "heldout"),
        "known": str(prose_data / "train"),
    }
    several = RunConfig.from_dict(values)
    old, new = fingerprints(one), fingerprints(several)
    assert set(old) == {"train", "heldout", "tokenizer"}
    assert set(new) == {"train", "heldout.kept", "heldout.known", "tokenizer"}
    assert new["heldout.kept"] == old["heldout"]
    assert new["heldout.known"] == old["train"]
    assert differences(one, old, several, new, 100, 9000) == []
    assert differences(several, new, one, old, 100, 9000) == []
    (told,) = differences(several, new | {"train": "0"}, one, old, 100, 9000)
    assert "train data differ" in told
