"""Published weights and configuration become a folder of ours, or one line says why not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the import needs the extra hf")

from golden import GOLDEN, NEEDS_GOLDEN, Case
from published_names import published_names
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from spade_model.huggingface.importing.msrlongt5 import import_msrlongt5
from spade_model.huggingface.importing.published_files import PublishedFileError
from spade_model.published import published_config, seq2seq_state
from spade_model.published_shapes import TIED, UNUSED, published_shapes
from spade_model.seq2seq import SpadeForSeq2Seq

FACTS: dict[str, Any] = {
    **{"vocab_size": 11, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 6, "num_layers": 2},
    **{"s4_state_dim": 4, "s4_n_ssm": 2, "max_position_embeddings": 16, "local_radius": 3},
    **{"feed_forward_proj": "relu", "have_bias": False, "decoder_start_token_id": 2},
}
C = "encoder.block.0.layer.0.s4.s4.kernel.kernel.C"


def write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> tuple[Path, Path]:
    weights, config = folder / "weights.safetensors", folder / "config.json"
    save_file({name: x.clone().contiguous() for name, x in tensors.items()}, weights)
    config.write_text(json.dumps(facts))
    return weights, config


@pytest.fixture
def published() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return published_names(FACTS)


@NEEDS_GOLDEN
@pytest.mark.parametrize(
    "name", ["seq2seq_post_frozen", "seq2seq_post_trainable", "seq2seq_pre_gated_haveBias"]
)
def test_published_logits(name: str, tmp_path: Path) -> None:
    """Of a checkpoint saved before its first forward, and as it is saved afterwards."""
    case = Case(name, torch.float32)
    tensors = {key[2:]: x for key, x in case.tensors.items() if key.startswith("w.")}
    facts = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    for length in (0, facts["max_position_embeddings"]):
        folder = tmp_path / str(length)
        folder.mkdir()
        saved = converted(tensors, length)
        report = import_msrlongt5(*write(folder, saved, facts), folder / "out")
        assert report.kernel_lengths == (length,)
        model = AutoModelForSeq2SeqLM.from_pretrained(folder / "out").eval()
        labels = case["in.labels"]
        with torch.no_grad():
            output = model(case["in.input_ids"], case["in.attention_mask"], labels=labels)
        case.check("out.logits", output.logits, labels != -100)
        case.check("out.loss", output.loss)


def converted(tensors: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """What the published code saves after a first forward with this length: C (I - Ad^L)."""
    if length == 0:
        return tensors
    prefix = C[:-1]
    facts = {key: tensors[prefix + key] for key in ("inv_w_real", "w_imag", "log_dt")}
    half = torch.complex(-facts["inv_w_real"].double().exp(), facts["w_imag"].double())
    low_rank = torch.view_as_complex(tensors[prefix + "P"][0].double())
    rows = torch.view_as_complex(tensors[C].double())
    for feature, log_dt in enumerate(facts["log_dt"].double()):
        copy = feature % half.shape[0]
        w, p = (torch.cat([x[copy], x[copy].conj()]) for x in (half, low_rank))
        A = torch.diag(w) - torch.outer(p, p.conj())
        step, one = log_dt.exp() / 2 * A, torch.eye(len(w), dtype=w.dtype)
        Ad = torch.linalg.solve(one - step, one + step)
        full = torch.cat([rows[:, feature], rows[:, feature].conj()], dim=-1)
        changed = full - full @ torch.linalg.matrix_power(Ad, length)
        rows[:, feature] = changed[:, : half.shape[1]]
    return {**tensors, C: torch.view_as_real(rows).float(), prefix + "L": torch.tensor(length)}


@pytest.mark.parametrize(("kind", "biased"), [("relu", False), ("gated-gelu", True)])
def test_every_weight_arrives(kind: str, biased: bool, tmp_path: Path) -> None:
    facts = {**FACTS, "feed_forward_proj": kind, "have_bias": biased}
    torch.manual_seed(0)
    theirs = published_names(facts)
    theirs[f"{C[:-1]}L"] = torch.tensor(0)
    config = published_config(facts)
    assert {name: tuple(x.shape) for name, x in theirs.items()} == published_shapes(config)
    report = import_msrlongt5(*write(tmp_path, theirs, facts), tmp_path / "out")
    assert report.logit_difference < 1e-5
    assert report.kernel_lengths == (0,)
    assert sorted(report.files) == sorted(x.name for x in (tmp_path / "out").iterdir())
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    state = loaded.state_dict()
    for name, x in seq2seq_state(theirs, config).items():
        assert torch.equal(state[name], x), name
    assert report.parameters == sum(x.numel() for x in SpadeForSeq2Seq(config).parameters())
    assert loaded.generation_config.decoder_start_token_id == 2


def test_the_length_in_the_output_matrix_is_undone(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    saved = converted(published, 24)
    assert not torch.allclose(saved[C], published[C], rtol=0.01)
    report = import_msrlongt5(*write(tmp_path, saved, FACTS), tmp_path / "out")
    assert report.kernel_lengths == (24,)
    found = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.encoder.layers.0.mixing.state_space.C"
    torch.testing.assert_close(found[name], published[C], rtol=1e-4, atol=1e-4)


def test_repeated_and_unused_tensors_are_named(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    more = dict.fromkeys(TIED, published["shared.weight"]) | {UNUSED[0]: torch.ones(32, 2)}
    report = import_msrlongt5(*write(tmp_path, {**published, **more}, FACTS), tmp_path / "out")
    assert set(report.ignored) == set(more)
    other = {**published, TIED[0]: published["shared.weight"] + 1}
    with pytest.raises(PublishedFileError, match=f"{TIED[0]} differs from shared.weight"):
        import_msrlongt5(*write(tmp_path, other, FACTS), tmp_path / "other")


def test_a_state_space_in_several_layers(published: dict[str, Tensor], tmp_path: Path) -> None:
    first, second = "encoder.block.0.layer.0.", "encoder.block.1.layer.0."
    parts = ("s4.", "norm_global.", "norm_local.", "aggregate.")
    more = {
        second + name[len(first) :]: x
        for name, x in published.items()
        if name.startswith(tuple(first + part for part in parts))
    }
    facts = {**FACTS, "s4_every_n_layers": 1}
    report = import_msrlongt5(*write(tmp_path, {**published, **more}, facts), tmp_path / "out")
    assert report.kernel_lengths == (64, 64)


def test_half_precision_weights_are_widened(published: dict[str, Tensor], tmp_path: Path) -> None:
    half = {name: x.half() if x.is_floating_point() else x for name, x in published.items()}
    import_msrlongt5(*write(tmp_path, half, FACTS), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {x.dtype for x in found.values()} == {torch.float32}


Q = "decoder.block.1.layer.1.EncDecAttention.q.weight"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({Q: None}, rf"missing: {Q}"),
        ({"encoder.extra.weight": torch.ones(2)}, r"unexpected: encoder\.extra\.weight"),
        ({Q: torch.ones(8, 4)}, rf"{Q} is \[8, 4\] and not \[8, 8\]"),
        ({TIED[0]: torch.ones(3, 8)}, rf"{TIED[0]} is \[3, 8\] and not \[11, 8\]"),
        ({Q: torch.ones(8, 8, dtype=torch.int64)}, rf"of another type: {Q} is I64"),
        ({f"{C[:-1]}L": torch.tensor(1.5)}, r"\.L is F32"),
        ({f"{C[:-1]}L": torch.tensor(-4)}, r"\.L is -4"),
        ({Q: torch.full((8, 8), torch.nan)}, rf"not finite: {Q}"),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, Tensor | None],
    complaint: str,
    published: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    changed = {**published, **change}
    kept = {name: x for name, x in changed.items() if x is not None}
    weights, config = write(tmp_path, kept, FACTS)
    check_refused(weights, config, tmp_path / "out", complaint)


def check_refused(weights: Path, config: Path, out: Path, complaint: str) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(PublishedFileError, match=complaint) as caught:
        import_msrlongt5(weights, config, out)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()
    assert sorted(out.parent.iterdir()) == before, "nothing is left behind"


def test_many_problems_are_one_readable_line(tmp_path: Path) -> None:
    weights, config = write(tmp_path, {"a": torch.ones(1)}, FACTS)
    with pytest.raises(PublishedFileError, match=r"and \d+ more; unexpected: a;") as caught:
        import_msrlongt5(weights, config, tmp_path / "out")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.bin", b"anything"),
        ("model.safetensors", b"PK\x03\x04 the start of what torch.save writes"),
        ("model.safetensors", b"\x80\x02}q\x00."),
    ],
)
def test_pickles_are_refused_unopened(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FACTS))
    (tmp_path / name).write_bytes(content)
    check_refused(
        tmp_path / name, tmp_path / "config.json", tmp_path / "out", "is a pickle.*weights_only"
    )


def header(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x02",
        header(b"{}", 1 << 40),
        header(b"not json"),
        header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 999999999999]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + bytes(4),
        header(b'{"a": {"dtype": "Q9\\n\x1b[2J", "shape": [1], "data_offsets": [0, 4]}}')
        + bytes(4),
        header(b"[" * 100_000),
    ],
)
def test_damaged_and_malicious_headers(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(FACTS))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(content)
    check_refused(weights, tmp_path / "config.json", tmp_path / "out", "no complete safetensors")


def test_a_file_cut_anywhere_is_refused(published: dict[str, Tensor], tmp_path: Path) -> None:
    weights, config = write(tmp_path, published, FACTS)
    whole = weights.read_bytes()
    for fraction in (0.0, 0.01, 0.3, 0.7, 0.99):
        weights.write_bytes(whole[: int(fraction * len(whole))])
        check_refused(weights, config, tmp_path / "out", "no complete safetensors")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is no JSON"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "is no JSON"),
        (json.dumps({**FACTS, "model_type": "t5"}), "model_type is 't5'"),
        (json.dumps({**FACTS, "tie_word_embeddings": False}), "tie_word_embeddings"),
        (json.dumps({**FACTS, "s4_channels": 2}), "s4_channels is 2"),
        (json.dumps({**FACTS, "num_layers": "two"}), "config.json: num_"),
        (json.dumps({**FACTS, "feed_forward_proj": "swish"}), "feed_forward_proj='swish'"),
        (json.dumps({**FACTS, "s4_every_n_layers": 0}), "every 0"),
    ],
)
def test_a_wrong_configuration(
    text: str, complaint: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    weights, config = write(tmp_path, published, FACTS)
    config.write_text(text)
    check_refused(weights, config, tmp_path / "out", complaint)


def test_what_stands_at_the_place_is_left_alone(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    weights, config = write(tmp_path, published, FACTS)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    check_refused(weights, config, out, "already holds something")
    assert (out / "mine").read_text() == "precious"
    check_refused(weights, config, out / "mine", "is no folder")
    (out / "mine").unlink()
    assert import_msrlongt5(weights, config, out).path == out, "an empty folder is filled"


def test_a_folder_that_loads_back_differently_is_not_kept(
    published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spade_model.huggingface.importing import folder

    weights, config = write(tmp_path, published, FACTS)
    save_model = folder.save_model

    def spoil(plain: SpadeForSeq2Seq, place: Path) -> None:
        spoilt = SpadeForSeq2Seq(plain.config)
        spoilt.load_state_dict(
            {
                name: 2 * x if name.endswith("contract.weight") else x
                for name, x in plain.state_dict().items()
            }
        )
        save_model(spoilt, place)

    monkeypatch.setattr(folder, "save_model", spoil)
    check_refused(weights, config, tmp_path / "out", "logits differ")
