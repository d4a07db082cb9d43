"""The encoder with a classifier: loaded from a pretrained folder, blind to padding, trainable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_models import ragged, some_ids
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("transformers")

from transformers import AutoModelForSequenceClassification

from spade_model.huggingface import (
    SpadeForConditionalGeneration,
    SpadeForSequenceClassification,
    SpadePretrainedConfig,
)

TINY: dict[str, Any] = {
    "vocab_size": 90,
    "d_model": 32,
    "num_heads": 2,
    "head_dim": 12,
    "d_ff": 48,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "state_dim": 8,
    "local_radius_tokens": 7,
    "max_target_length_tokens": 40,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pretraining exports it."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("saved")
    SpadeForConditionalGeneration(SpadePretrainedConfig(**TINY)).save_pretrained(folder)
    return folder


def test_a_pretrained_checkpoint_lacks_only_the_classifier(saved: Path) -> None:
    model, report = AutoModelForSequenceClassification.from_pretrained(
        saved, num_labels=3, output_loading_info=True
    )
    assert isinstance(model, SpadeForSequenceClassification)
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert not report["unexpected_keys"]
    stored = load_file(saved / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, stored[name]), name
    assert not any("decoder" in name for name in model.state_dict())
    assert model.classifier.weight.abs().max() > 0


def test_survives_saving(saved: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved, num_labels=3).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.num_labels == 3
    ids = some_ids(2, 25)
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_part(saved: Path, side: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    ids, mask, rows = ragged([31, 9, 17], side)
    together = model(input_ids=ids, attention_mask=mask).logits
    for index, row in enumerate(rows):
        torch.testing.assert_close(
            together[[index]], model(input_ids=row).logits, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("num_labels", "labels", "problem"),
    [
        (3, torch.tensor([0, 2]), "single_label_classification"),
        (3, torch.tensor([[0.0, 1, 1], [1, 0, 0]]), "multi_label_classification"),
        (1, torch.tensor([0.5, -2.0]), "regression"),
    ],
)
def test_problem_types(num_labels: int, labels: Tensor, problem: str) -> None:
    torch.manual_seed(0)
    model = SpadeForSequenceClassification(SpadePretrainedConfig(**TINY, num_labels=num_labels))
    output = model(input_ids=some_ids(2, 15), labels=labels)
    assert model.config.problem_type == problem
    assert output.logits.shape == (2, num_labels)
    logits = output.logits
    expected = {
        "single_label_classification": lambda: -logits.log_softmax(1)[[0, 1], labels].mean(),
        "multi_label_classification": lambda: (
            -(
                labels * torch.sigmoid(logits).log() + (1 - labels) * torch.sigmoid(-logits).log()
            ).mean()
        ),
        "regression": lambda: ((logits[:, 0] - labels) ** 2).mean(),
    }[problem]()
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.classifier.weight.grad.abs().max() > 0
    assert model.model.shared.weight.grad.abs().max() > 0


def test_learns_what_is_in_the_text() -> None:
    torch.manual_seed(0)
    model = SpadeForSequenceClassification(SpadePretrainedConfig(**TINY, num_labels=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = some_ids(64, 24)
    labels = torch.arange(64) % 2
    ids[labels == 1, 11] = 3
    ids[labels == 0] = ids[labels == 0].clamp(min=4)
    for _ in range(40):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
