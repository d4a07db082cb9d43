"""Traps that other exports have fallen into: what a user of the exported folder must never meet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("transformers")

import sentencepiece
import transformers
from finetune_models import write_exported
from safetensors import safe_open

import spade_model.huggingface
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from spade_model.huggingface.standalone import AUTO_MAP

HEADS = {
    "AutoModel",
    "AutoModelForQuestionAnswering",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTextEncoding",
    "AutoModelForTokenClassification",
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the exporter's parts write it."""
    return write_exported(tmp_path_factory.mktemp("exported") / "model")


def in_a_clean_process(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Without our packages, a network or somebody who answers questions."""
    absent = "import sys; sys.modules |= dict.fromkeys(['spade_model', 'sentencepiece'])\n"
    with_modules = {"HF_MODULES_CACHE": str(arguments[0]) + "-modules", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", absent + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=os.environ | with_modules | {"PYTHONPATH": ""},
        cwd=Path(str(arguments[0])).parent,
    )


def test_every_class_is_in_the_auto_map_and_registered(exported: Path) -> None:
    """A.2.12: a map of the saved class alone leaves the other heads without code."""
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert HEADS | {"AutoConfig"} <= AUTO_MAP.keys()
    for name, place in config["auto_map"].items():
        file, _, class_name = place.partition(".")
        text = (exported / f"{file}.py").read_text(encoding="utf-8")
        assert f"class {class_name}" in text, name
        assert hasattr(spade_model.huggingface, class_name), name


def test_no_class_of_the_tokenizer_that_only_one_version_knows(exported: Path) -> None:
    """A.4, B.9: version 4 knows neither TokenizersBackend nor a list of special tokens."""
    settings = json.loads((exported / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"extra_special_tokens", "auto_map", "backend", "is_local"} & settings.keys()
    assert (settings["pad_token"], settings["eos_token"], settings["unk_token"]) == (
        "<pad>",
        "</s>",
        "<unk>",
    )


def test_the_head_is_not_stored_and_files_say_pt(exported: Path) -> None:
    """A.5: aliased tensors, and the metadata that early readers want."""
    with safe_open(exported / "model.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        names = set(file.keys())
        kinds = {file.get_tensor(name).dtype for name in names}
    assert "lm_head.weight" not in names
    assert "model.shared.weight" in names
    assert not any(kind.is_complex for kind in kinds), "A.2.16: bfloat16 drops imaginary parts"
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in exported.iterdir())


def test_generation_has_its_own_file_and_a_start(exported: Path) -> None:
    """A.2.7: without it 20 tokens are generated, and settings in config.json break saving."""
    settings = json.loads((exported / "generation_config.json").read_text())
    config = json.loads((exported / "config.json").read_text())
    generation = transformers.GenerationConfig().to_dict().keys() - {"use_cache"}
    ids = {"pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id"}
    own = {"transformers_version", "output_attentions", "output_hidden_states"}
    assert not (config.keys() & generation) - ids - own
    assert settings["decoder_start_token_id"] == 0
    for key in (
        *("model_type", "architectures", "auto_map", "is_encoder_decoder", "vocab_size", "d_model"),
        *("tie_word_embeddings", "pad_token_id", "eos_token_id", "decoder_start_token_id"),
        *("use_cache", "dtype", "transformers_version"),
    ):
        assert key in config, key
    assert config["tie_word_embeddings"] is True


def test_nobody_is_asked_and_nobody_needs_sentencepiece(exported: Path) -> None:
    """A.4.14: the tokenizer loads by each documented call without a question."""
    script = """
import json
from transformers import AutoTokenizer, PreTrainedTokenizerFast
folder = sys.argv[1]
found = [
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
    PreTrainedTokenizerFast.from_pretrained(folder),
]
print(json.dumps([one("bright <extra_id_0> \U0001f40d").input_ids for one in found]))
"""
    done = in_a_clean_process(script, exported)
    assert done.returncode == 0, done.stderr[-1500:]
    assert "[y/N]" not in done.stdout
    ids = json.loads(done.stdout.splitlines()[-1])
    ours = transformers.AutoTokenizer.from_pretrained(exported)  # registered: no question either
    assert ids == [ours("bright <extra_id_0> \U0001f40d").input_ids] * 3
    assert 2 not in ids[0], "a snake is bytes, not unknown"


def test_a_refusal_names_the_remedy(exported: Path) -> None:
    """A.2.15: without trust and without the package."""
    script = """
from transformers import AutoModelForSeq2SeqLM
AutoModelForSeq2SeqLM.from_pretrained(sys.argv[1], trust_remote_code=False)
"""
    done = in_a_clean_process(script, exported)
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


def long_document() -> str:
    """About 60,000 tokens with many words of nearly equal segmentations."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(0, 8, (9000, 9), generator=generator).tolist()
    words = ["".join("aeionrst"[x] for x in row[: 3 + row[0]]) for row in letters]
    lines = [" ".join(words[start : start + 12]) + "." for start in range(0, len(words), 12)]
    return "\n".join(lines) + "\n\t  end ▪ \U0001f40d\n"


def test_a_long_document_has_the_ids_of_its_lines(exported: Path) -> None:
    """A.4: SentencePiece over a whole document sums float32 scores, and near ties flip."""
    document = long_document()
    reference = DocumentTokenizer.load(exported.parent / "tokenizer").encode(document).tolist()
    assert len(reference) > 40_000
    backend = transformers.AutoTokenizer.from_pretrained(exported).backend_tokenizer
    found = backend.encode(document, add_special_tokens=False).ids
    if found != reference:  # equal scores may be cut otherwise; nothing else may differ
        model = sentencepiece.SentencePieceProcessor(model_file=str(exported / "spiece.model"))
        for line in document.splitlines(keepends=True):
            ids, wanted = backend.encode(line, add_special_tokens=False).ids, model.encode(line)
            scores = [sum(map(model.GetScore, one)) for one in (ids, wanted)]
            assert ids == wanted or scores[0] == pytest.approx(scores[1], rel=1e-6), line
    assert backend.decode(found, skip_special_tokens=False) == document


def test_sentinels_are_kept_out_of_the_sentencepiece_model(exported: Path) -> None:
    """A.4: else T5's classes append a hundred ids a second time."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(exported / "spiece.model"))
    pieces = [model.IdToPiece(index) for index in range(model.GetPieceSize())]
    assert not any(piece.startswith("<extra_id_") for piece in pieces)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    size = len(tokenizer)
    for number in range(size - len(pieces)):
        assert tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") == size - 1 - number
    # Text that looks like a special token is text, where it is asked for.
    split = tokenizer("</s> <pad>", add_special_tokens=False, split_special_tokens=True).input_ids
    assert not {0, 1} & set(split)


def test_the_code_imports_nothing_but_neighbours_and_what_everybody_has(exported: Path) -> None:
    """A.2.13: absolute imports of our package, or of folders, do not load."""
    names = {path.stem for path in exported.glob("*.py")}
    for path in exported.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        for module in re.findall(r"^\s*from (\S+) import", text, re.MULTILINE):
            top = module.partition(".")[0]
            if module.startswith("."):
                assert module[1:] in names, (path.name, module)
            else:
                assert top in sys.stdlib_module_names | {"torch", "transformers"}, module


def test_card_fits_the_hubs_own_parser() -> None:
    """A.5: the front matter is YAML that huggingface_hub reads."""
    from huggingface_hub import ModelCard

    from pretrain.exporting.model_card import model_card

    card = ModelCard(model_card(small_provenance()))
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text2text-generation"
    assert "custom_code" in card.data.tags
    assert "trust_remote_code=True" in card.text
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
    assert yaml.safe_load(card.content.split("---\n")[1]).keys() == {
        "library_name",
        "pipeline_tag",
        "tags",
    }


def small_provenance() -> dict[str, Any]:
    from spade_model import SpadeConfig

    return {
        "run": "tiny",
        "step": 3,
        "sample_index": 12,
        "tokens_seen": 999,
        "parameters": 12345,
        "dtype": "float32",
        "code_version": "abc",
        "fingerprints": {"train": "a", "heldout": "b", "tokenizer": "c"},
        "heldout": None,
        "curve": [{"step": 3, "tokens_seen": 999, "loss": 2.5, "heldout_loss": None}],
        "tokenizer": {
            "vocab_size": 200,
            "piece_count": 192,
            "sentinel_count": 8,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "unk_token_id": 2,
        },
        "objective": {
            "kind": "span_corruption",
            "input_length_tokens": 64,
            "target_length_tokens": 14,
        },
        "model": SpadeConfig(vocab_size=200).to_dict(),
        "training": {"global_batch_size": 4, "precision": "fp32", "seed": 0},
    }
