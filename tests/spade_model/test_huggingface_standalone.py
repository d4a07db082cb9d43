"""A saved folder works where our package is not: its own code, the same numbers, saved again."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("transformers")

import transformers
from huggingface_models import CAUSAL, built, ragged, some_ids
from packaging.version import Version
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import spade_model.huggingface as package
from spade_model.huggingface import SpadeForCausalLM, SpadeForConditionalGeneration, standalone

CODE = {
    "configuration_spade.py",
    "modeling_spade.py",
    "spade_attention.py",
    "spade_network.py",
    "spade_state_space.py",
}

STRANGER = """
import json, sys
sys.modules["spade_model"] = None  # Whoever imports it, fails.
import torch
from pathlib import Path
from safetensors.torch import load_file
import transformers as t

folder = Path(sys.argv[1])
for name in ("seq2seq", "causal"):
    kind = t.AutoModelForSeq2SeqLM if name == "seq2seq" else t.AutoModelForCausalLM
    model, report = kind.from_pretrained(
        folder / name, trust_remote_code=True, output_loading_info=True
    )
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    kept = load_file(folder / f"{name}.safetensors")
    given = {key: kept[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(model(**given, labels=kept["input_ids"]).logits, kept["logits"])
    assert torch.equal(model.generate(**given, max_new_tokens=8), kept["greedy"])
    assert torch.equal(model.generate(**given, max_new_tokens=8, num_beams=3), kept["beams"])
    uncached = model.generate(**given, max_new_tokens=8, use_cache=False)
    assert torch.equal(uncached, kept["greedy"])

missing = {}
for name in (
    "AutoModel",
    "AutoModelForTextEncoding",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
):
    model, report = getattr(t, name).from_pretrained(
        folder / "seq2seq", trust_remote_code=True, output_loading_info=True
    )
    assert not report["unexpected_keys"], name
    missing[name] = sorted(report["missing_keys"])
    # A stranger's own copy is complete again.
    model.save_pretrained(folder / "again")
    again = getattr(t, name).from_pretrained(folder / "again", trust_remote_code=True)
    ids = kept["input_ids"]
    given = {"decoder_input_ids": ids} if name == "AutoModel" else {}
    assert torch.equal(model(input_ids=ids, **given)[0], again(input_ids=ids, **given)[0]), name
classifier = t.AutoModelForSequenceClassification.from_pretrained(
    folder / "tuned", trust_remote_code=True
)
kept = load_file(folder / "tuned.safetensors")
with torch.no_grad():
    assert torch.equal(classifier(input_ids=kept["input_ids"]).logits, kept["logits"])
print(json.dumps(missing))
"""


def test_the_files_are_whole_and_import_nothing_of_ours() -> None:
    files = standalone.standalone_files()
    assert set(files) == CODE
    defined: dict[str, set[str]] = {}
    for name, text in files.items():
        tree = ast.parse(text)
        defined[name] = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in CODE, ast.unparse(node)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "spade_model" not in ast.unparse(node)
        assert "/" not in text.splitlines()[0]
    for place in standalone.AUTO_MAP.values():
        file, _, class_name = place.partition(".")
        assert class_name in defined[f"{file}.py"]
    # Early 5.x copies only what the file with the models names itself.
    named = {x.partition(".")[0] for x in standalone.AUTO_MAP.values()} | {
        node.module
        for node in ast.walk(ast.parse(files["modeling_spade.py"]))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert {f"{name}.py" for name in named} == CODE
    # Every class that is registered can be found in the folder as well.
    assert {x.partition(".")[2] for x in standalone.AUTO_MAP.values()} == {
        name for name in package.__all__ if name.startswith("Spade") and "Tokenizer" not in name
    }


def test_two_meanings_of_a_name_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"spade_model.one": "T = 1\ndef f(): pass\n", "spade_model.two": "T = 1\nf = 2\n"}
    monkeypatch.setattr(standalone, "_source", sources.__getitem__)
    file = standalone._FlatFile("spade_network")
    file.add("spade_model.one")
    with pytest.raises(AssertionError, match="two gives f another meaning"):
        file.add("spade_model.two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exported models, a fine-tuned one, and what they compute here."""
    folder = tmp_path_factory.mktemp("given away")
    ids, mask, _ = ragged([21, 13], "left")
    given = {"input_ids": ids, "attention_mask": mask}
    models: dict[str, Any] = {
        "seq2seq": built(SpadeForConditionalGeneration),
        "causal": built(SpadeForCausalLM, **CAUSAL),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        kept = dict(given)
        with torch.no_grad():
            kept["logits"] = model(**given, labels=ids).logits
        kept["greedy"] = model.generate(**given, max_new_tokens=8)
        kept["beams"] = model.generate(**given, max_new_tokens=8, num_beams=3)
        contiguous = {key: value.contiguous() for key, value in kept.items()}
        save_file(contiguous, folder / f"{name}.safetensors")
    tuned = AutoModelForSequenceClassification.from_pretrained(folder / "seq2seq").eval()
    tuned.save_pretrained(folder / "tuned")
    with torch.no_grad():
        kept = {"input_ids": ids, "logits": tuned(input_ids=ids).logits}
    save_file(kept, folder / "tuned.safetensors")
    return folder


@pytest.mark.parametrize("name", ["seq2seq", "causal", "tuned"])
def test_saving_a_model_saves_its_code(folder: Path, name: str) -> None:
    assert {path.name for path in (folder / name).iterdir()} >= CODE
    written = json.loads((folder / name / "config.json").read_text())
    assert written["auto_map"] == standalone.AUTO_MAP


def test_our_package_is_preferred_to_the_copy(folder: Path) -> None:
    for trust in (None, False, True):
        # The first 5.x take the copy if it is trusted.
        if not trust or Version(transformers.__version__) >= Version("5.20"):
            model = AutoModelForSeq2SeqLM.from_pretrained(
                folder / "seq2seq", trust_remote_code=trust
            )
            assert type(model) is SpadeForConditionalGeneration
    assert model(input_ids=some_ids(1, 5), labels=some_ids(1, 3)).loss.isfinite()


@pytest.mark.slow
def test_a_stranger_gets_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    """In a process that cannot import our package."""
    environment = os.environ | {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "AutoModel": [],
        "AutoModelForTextEncoding": [],
        "AutoModelForSequenceClassification": ["classifier.bias", "classifier.weight"],
        "AutoModelForTokenClassification": ["classifier.bias", "classifier.weight"],
        "AutoModelForQuestionAnswering": ["qa_outputs.bias", "qa_outputs.weight"],
    }
