"""The published language model becomes a folder of ours, or one line says why not."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the import needs the extra hf")

from golden import NEEDS_GOLDEN, Case
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from spade_model.huggingface.importing.fairseq_lm import FairseqLMReport, import_fairseq_lm
from spade_model.huggingface.importing.published_files import PublishedFileError
from spade_model.published import causal_layers_state
from spade_model.published_lm import published_lm_config, published_lm_shapes
from spade_model.stack import LongStack

ARGS: dict[str, Any] = {
    **{"activation_fn": "relu", "attention_type": "local", "decoder_attention_heads": 2},
    **{"decoder_embed_dim": 12, "decoder_ffn_embed_dim": 20, "decoder_layers": 2},
    **{"decoder_normalize_before": True, "local_radius": 5, "max_target_positions": 64},
    **{"no_token_positional_embeddings": True, "s4_every_n_layers": 2, "s4_n_ssm": 3},
    **{"s4_local_combine": "concat", "s4_state_dim": 4, "use_relative_attention": True},
    **{"share_decoder_input_output_embed": True, "dropout": 0.1},
    **{"s4_lr": '{"A": 0.0, "B": 0.001, "dt": null}', "lr_scheduler": "unknown to us"},
}
VOCABULARY = 30
EMBEDDING, HEAD = "decoder.embed_tokens.weight", "decoder.output_projection.weight"


def drawn(args: dict[str, Any]) -> dict[str, Tensor]:
    """A random state with the names that fairseq saves for such arguments."""
    shapes = published_lm_shapes(published_lm_config(args, VOCABULARY))
    generator = torch.Generator().manual_seed(3)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in state:
        if name.endswith("kernel.L"):
            state[name] = torch.tensor(0)
        elif name.endswith("log_dt"):
            state[name] -= 4
    tied = args["share_decoder_input_output_embed"]
    state[HEAD] = state[EMBEDDING].clone() if tied else torch.randn(VOCABULARY, 12)
    return {**state, "decoder.version": torch.tensor([3.0])}


def imported(
    folder: Path, args: dict[str, Any], state: dict[str, Tensor]
) -> tuple[FairseqLMReport, Any]:
    weights, config = folder / "weights.safetensors", folder / "config.json"
    save_file({name: x.contiguous() for name, x in state.items()}, weights)
    config.write_text(json.dumps(args))
    report = import_fairseq_lm(weights, config, folder / "out")
    return report, AutoModelForCausalLM.from_pretrained(folder / "out").eval()


@pytest.mark.parametrize("post", [False, True], ids=["pre", "post"])
@pytest.mark.parametrize("final", [True, False], ids=["final-norm", "no-final-norm"])
@pytest.mark.parametrize("embedding_norm", [True, False], ids=["embedding-norm", "bare"])
@pytest.mark.parametrize("shared", [True, False], ids=["tied", "untied"])
def test_what_surrounds_the_layers(
    post: bool, final: bool, embedding_norm: bool, shared: bool, tmp_path: Path
) -> None:
    """Scale, norms and head as fairseq's decoder applies them, around layers tested elsewhere."""
    args = {
        **ARGS,
        "decoder_normalize_before": not post,
        "no_decoder_final_norm": not final,
        "layernorm_embedding": embedding_norm,
        "share_decoder_input_output_embed": shared,
    }
    state = drawn(args)
    report, model = imported(tmp_path, args, state)
    layers = LongStack(model.config.to_spade_config(), causal=True).eval()
    layers.first_norm, layers.final_norm = nn.Identity(), nn.Identity()
    prefix = "decoder.layers."
    inner = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    layers.load_state_dict(causal_layers_state(inner, model.config.to_spade_config()))

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = (state[f"decoder.{name}.{kind}"] for kind in ("weight", "bias"))
        return nn.functional.layer_norm(x, (12,), weight, bias, 1e-5)

    ids = torch.randint(4, VOCABULARY, (2, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = 12**0.5 * state[EMBEDDING][ids]
        hidden = layers(norm("layernorm_embedding", hidden) if embedding_norm else hidden)
        hidden = norm("layer_norm", hidden) if final and not post else hidden
        expected = hidden @ state[HEAD].T
        found = model(ids).logits
    bound = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    assert report.tied == (shared and (post or final))
    assert report.tied == (model.lm_head.weight is model.model.shared.weight)
    assert set(report.ignored) == {"decoder.version"} | ({HEAD} if shared else set())
    assert model.config.trainable_state_space == ("C", "D", "B", "log_dt")
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (facts["source"], facts["published_config"]) == ("fairseq-lm", args)


@NEEDS_GOLDEN
@pytest.mark.parametrize("name", ["lm_layers_concat_post", "lm_layers_add_pre"])
def test_published_layers_inside(name: str, tmp_path: Path) -> None:
    """Each token of the published case is a word of its own, so that ids give its inputs."""
    case = Case(name, torch.float32)
    facts, hidden, valid = case.config, case["in.x"], case["in.nonpad"].bool()
    rows, length, width = hidden.shape
    args = {
        **ARGS,
        "decoder_embed_dim": width,
        "decoder_ffn_embed_dim": facts["ffn"],
        "decoder_attention_heads": facts["heads"],
        "decoder_layers": facts["layers"],
        "decoder_normalize_before": facts["normalize_before"],
        "no_decoder_final_norm": True,
        "no_scale_embedding": True,
        "local_radius": facts["local_radius"],
        "relative_attention_num_buckets": facts["relative_attention_num_buckets"],
        "relative_attention_max_distance": facts["relative_attention_max_distance"],
        "s4_every_n_layers": 1 if "1.s4_module.s4.D" in case.weights() else facts["layers"],
        "s4_local_combine": facts["combine"],
        "s4_weight": facts["s4_weight"],
        "s4_n_ssm": facts["s4_n_ssm"],
        "s4_state_dim": facts["s4_state_dim"],
        "share_decoder_input_output_embed": False,
    }
    state = {f"decoder.layers.{key[2:]}": x for key, x in case.tensors.items() if key[:2] == "w."}
    state[EMBEDDING] = hidden.reshape(rows * length, width)
    state[HEAD] = torch.zeros(rows * length, width)
    state[HEAD][:width] = torch.eye(width)  # The first logits are what the layers give.
    _, model = imported(tmp_path, args, state)
    ids = torch.arange(rows * length).reshape(rows, length)
    with torch.no_grad():
        logits = model(ids, attention_mask=valid.long()).logits
    case.check("out.x", logits[..., :width], valid)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"adaptive_softmax_cutoff": "20000,60000"}, "adaptive_softmax_cutoff.*one softmax"),
        ({"adaptive_input": True}, "adaptive_input is True"),
        ({"no_token_positional_embeddings": False}, "no absolute positions"),
        ({"activation_fn": "gelu"}, "activation_fn is 'gelu'"),
        ({"scale_heads": True}, "scale_heads is True"),
        ({"decoder_input_dim": 6}, "decoder_input_dim 6 differs"),
        ({"s4_n_ssm": 5}, "state_space_copies=5"),
        ({"decoder_ffn_embed_dim": 21}, r"fc1.weight is \[20, 12\] and not \[21, 12\]"),
        ({"layernorm_embedding": True}, "missing: decoder.layernorm_embedding.weight"),
        ({"decoder_layers": "two"}, "config.json: "),
        ({"s4_lr": "{"}, "config.json: "),
    ],
)
def test_what_is_not_computed_here_is_named(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(PublishedFileError, match=complaint) as caught:
        imported(tmp_path, {**ARGS, **change}, drawn(ARGS))
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(x.name for x in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(PublishedFileError, match=f"holds no matrix {EMBEDDING} but a;"):
        imported(tmp_path, ARGS, {"a": torch.ones(2)})
    other = {**drawn(ARGS), HEAD: torch.ones(VOCABULARY, 12)}
    with pytest.raises(PublishedFileError, match=f"{HEAD} differs from {EMBEDDING}"):
        imported(tmp_path, ARGS, other)
    gone = {name: x for name, x in ARGS.items() if name not in ("local_radius", "decoder_layers")}
    with pytest.raises(PublishedFileError, match="lacks decoder_layers, local_radius; give"):
        imported(tmp_path, gone, drawn(ARGS))


@pytest.mark.slow
def test_the_refusal_of_a_pickle_says_what_works(tmp_path: Path) -> None:
    """What it tells to run is run, on what fairseq saves: tensors beside a Namespace."""
    state = drawn(ARGS)
    saved = {"cfg": {"model": argparse.Namespace(**ARGS)}, "args": None, "model": state}
    torch.save(saved, tmp_path / "checkpoint_best.pt")
    config = tmp_path / "config.json"
    config.write_text("{}")
    with pytest.raises(PublishedFileError, match="is a pickle") as caught:
        import_fairseq_lm(tmp_path / "checkpoint_best.pt", config, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    command = str(caught.value).partition("convert it: ")[2]
    words = shlex.split(command)
    assert words[0] == "python"
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True, timeout=120)
    written = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(written[name], x) for name, x in state.items())
    report = import_fairseq_lm(tmp_path / "weights.safetensors", config, tmp_path / "out")
    assert report.logit_difference < 1e-5
