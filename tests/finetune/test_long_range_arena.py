"""The recipe ``lra``: its networks, what its runs leave behind, and that it learns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune.errors import FinetuneError
from finetune.long_range_arena.networks import network_config
from finetune.long_range_arena.recipe import LongRangeArena
from finetune.run import run_recipe
from finetune.settings import TrainingSettings
from launch.cli import run as run_command

TINY = {"d_model": 32, "num_heads": 2, "d_ff": 32, "state_dim": 8, "local_radius_tokens": 3}
REACH_TOKENS = 2 * 3
"""Of the tiny network's attention: two layers."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of many lengths whose labels follow from their letters."""
    path = tmp_path_factory.mktemp("texts") / "reviews.jsonl"
    rows = [
        {"text": "aü"[row % 2] * (3 + row), "label": ("bad", "good")[row % 2]} for row in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def part(path: Path, bounds: str) -> Path:
    return Path(f"{path}[{bounds}]")


def make(texts: Path, **options: Any) -> LongRangeArena:
    options = {"changes": TINY, **options}
    return LongRangeArena("text", part(texts, ":16"), part(texts, "16:"), **options)


def test_padding_changes_no_output(texts: Path) -> None:
    recipe = make(texts)
    model = recipe.make_model(None).eval()
    rows = [recipe.training[index] for index in range(16)]
    together = recipe.collate(rows)
    # What fills up may be anything.
    other = torch.where(together["attention_mask"] == 1, together["input_ids"], 77)
    with torch.no_grad():
        logits = model(**together).logits
        replaced = model(other, together["attention_mask"]).logits
        alone = torch.cat([model(**recipe.collate([row])).logits for row in rows])
    torch.testing.assert_close(logits, replaced, rtol=0, atol=0)
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
    assert logits.std(dim=0).min() > 1e-4, "outputs differ from row to row"


@pytest.mark.parametrize("state_space", [True, False], ids=["with", "without"])
def test_what_is_far_is_seen_through_the_state_space_alone(texts: Path, state_space: bool) -> None:
    torch.manual_seed(0)
    model = make(texts, state_space=state_space).make_model(None).eval()
    ids = torch.randint(3, 259, (1, 60))
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    place = 30
    hidden = model.model(inputs_embeds=embedded).last_hidden_state
    # Squared: the sum of a normalized vector is constant.
    hidden[0, place].square().sum().backward()
    assert embedded.grad is not None
    seen = embedded.grad[0].abs().amax(dim=-1) > 0
    near = [index for index in range(60) if abs(index - place) <= REACH_TOKENS]
    assert seen[near].all()
    far = [index for index in range(60) if abs(index - place) > REACH_TOKENS]
    assert seen[far].all() if state_space else not seen[far].any()


def test_networks_are_those_that_were_asked_for() -> None:
    for task, layers, width in (("listops", 6, 80), ("text", 4, 128), ("image", 8, 160)):
        config = network_config(task, "published", 2000, {})  # type: ignore[arg-type]
        assert (config.num_encoder_layers, config.d_model, config.d_ff) == (
            layers,
            width,
            2 * width,
        )
        assert config.vocab_size == (18 if task == "listops" else 259)
    config = network_config("text", "small", 4096, {"state_space": "s4d_lin", "d_model": 96})
    assert (config.state_space, config.d_model, config.trained_length_tokens) == (
        "s4d_lin",
        96,
        4096,
    )
    for size, changes, complaint in (
        ("base", {}, "size is 'base': use small or published"),
        ("small", {"d_modell": 3}, "unknown model field 'd_modell'"),
        ("small", {"vocab_size": 3}, "field 'vocab_size' is given by the task"),
        ("small", {"pad_token_id": 3}, "is given by the task"),
        ("small", {"num_encoder_layers": 0}, "use 1 or more, this is an encoder"),
        ("small", {"state_space": "s5"}, "state_space"),
        ("small", {"d_model": "wide"}, "d_model"),
    ):
        with pytest.raises(FinetuneError, match=complaint) as caught:
            network_config("text", size, 100, changes)
        assert "\n" not in str(caught.value)


def test_a_run_leaves_a_model_that_reads_texts_by_itself(texts: Path, tmp_path: Path) -> None:
    said: list[str] = []
    unlabelled = tmp_path / "more.jsonl"
    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()[:5]]
    unlabelled.write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    tests = [part(texts, "20:"), part(texts, "18:20"), unlabelled]
    recipe = make(texts, tests=tests, max_length_tokens=30, say=said.append)
    assert said[1].startswith(f"validation: 8 rows of {texts}, 20 to 30 tokens, ")
    assert said[4] == f"more: 5 rows of {unlabelled}, 4 to 13 tokens, without labels"
    settings = TrainingSettings(epochs=1, batch_size=8, learning_rate=1e-3, dropout=0.1)
    results = run_recipe(recipe, settings, tmp_path / "run", say=lambda line: None)
    summary = results["summary"]
    assert set(summary["reviews"]) == {"accuracy", "most_frequent_class"}
    assert summary["reviews"]["most_frequent_class"]["mean"] == 0.5
    assert summary["more"] == {}
    assert summary["reviews-2"]["accuracy"]["values"][0] in (0, 0.5, 1)
    assert results["settings"]["recipe"]["network"]["num_decoder_layers"] == 0
    folder = tmp_path / "run" / "seed-0" / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.dropout == 0.1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = (tmp_path / "run" / "seed-0" / "predictions-more.jsonl").read_text().splitlines()
    for row, line in zip(rows, lines, strict=True):
        with torch.no_grad():
            shares = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].softmax(0)
        found = json.loads(line)["probabilities"]
        assert [found["bad"], found["good"]] == pytest.approx(shares.tolist(), abs=1e-4)
    # Other rows of the same file are other data.
    other = LongRangeArena("text", part(texts, ":15"), part(texts, "16:"), tests, changes=TINY)
    with pytest.raises(FinetuneError, match="holds a run with recipe"):
        run_recipe(other, settings, tmp_path / "run")


def test_pixels_and_pairs_are_learned_as_well(tmp_path: Path) -> None:
    """A step of each: classes of images are known by their numbers, pairs by two columns."""
    images = np.random.default_rng(0).integers(0, 256, (12, 5, 4), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(12) % 11)
    (tmp_path / "p.tsv").write_text("text1\ttext2\tlabel\n" + "one\tother\t1\ntwo\tmore\t0\n" * 4)
    for task, name in (("image", "i.npz"), ("retrieval", "p.tsv")):
        path = tmp_path / name
        recipe = LongRangeArena(task, path, path, changes=TINY)
        model = recipe.make_model(None)
        batch = recipe.collate([recipe.training[index] for index in range(4)])
        model(**batch).loss.backward()
        assert model.config.num_labels == (11 if task == "image" else 2)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert recipe.describe()["classes"] == ("0", "1")


def test_wrong_commands_are_one_line(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {
        "--task": "text",
        "--train": str(texts),
        "--validation": str(texts),
        "--out": str(tmp_path / "run"),
    }
    for changes, code, complaint in (
        ({"--task": "pathx"}, 1, "task 'pathx' is unknown: use listops, text"),
        ({"--train": f"{texts}[24:]"}, 1, "has no rows, the file has 24; choose other bounds"),
        ({"--train": f"{texts}[:1]"}, 1, "all labels are 'bad'"),
        ({"--task": "listops"}, 1, "no column 'Source'"),
        ({"--task": "image"}, 1, "rename or convert it"),
        ({"--task": "image", "--label-column": "y"}, 1, "task 'image' has images; leave them out"),
        ({"--second-text-column": "text2"}, 2, "needs --text-column beside it"),
        ({"--task": "retrieval", "--text-column": "text"}, 1, "task 'retrieval' has 2"),
        ({"--set": "d_model"}, 2, "write FIELD=VALUE"),
        ({"--set": "d_model=0"}, 1, "d_model"),
        ({"--set": "state_space=ema", "--without-state-space": None}, 1, "leave out field"),
        ({"--size": "huge"}, 1, "use small or published"),
        ({"--validation": str(tmp_path / "none.jsonl")}, 1, "none.jsonl"),
    ):
        options = [word for pair in {**good, **changes}.items() for word in pair if word]
        assert run_command(["finetune", "lra", *options]) == code, changes
        said = capsys.readouterr().err
        assert complaint in said
        assert said.count("error:") == said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_short_listops_are_learned_from_the_command_line(tmp_path: Path) -> None:
    """One operation on two to five digits: far better than the most frequent value."""
    data, out = tmp_path / "data", tmp_path / "run"
    make = ["--longer-than", "3", "--shorter-than", "8", "--max-depth", "2"]
    make += ["--training-rows", "1600", "--validation-rows", "200", "--test-rows", "200"]
    assert run_command(["finetune", "make-listops", "--out", str(data), *make]) == 0
    command = ["finetune", "lra", "--task", "listops", "--out", str(out)]
    for option, name in (("--train", "train"), ("--validation", "validation"), ("--test", "test")):
        command += [option, str(data / f"{name}.tsv")]
    command += ["--epochs", "2", "--batch-size", "16", "--learning-rate", "5e-3"]
    command += ["--set", "state_dim=8", "--set", "local_radius_tokens=3"]
    assert run_command(command) == 0
    summary = json.loads((out / "results.json").read_text())["summary"]
    assert summary["test"]["most_frequent_class"]["mean"] < 0.2
    assert summary["test"]["accuracy"]["mean"] > 0.45


MNIST = os.environ.get("SPADE_MNIST_DATA")


@pytest.mark.skipif(
    MNIST is None, reason="SPADE_MNIST_DATA names no folder with MNIST's t10k files"
)
def test_real_digits_are_read() -> None:
    path = Path(str(MNIST)) / "t10k-images-idx3-ubyte.gz"
    recipe = LongRangeArena("image", part(path, ":80%"), part(path, "80%:"))
    assert (len(recipe.training), len(recipe.validation)) == (8000, 2000)
    assert recipe.training.longest == 28 * 28
    # The first ten digits of this file are known to everybody.
    assert recipe.training.targets is not None
    assert recipe.training.targets[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
