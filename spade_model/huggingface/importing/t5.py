"""T5 and LongT5 of `transformers` as a warm start: copied where SPADE computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, LongT5Config, PreTrainedModel

from spade_model.config import SpadeConfig
from spade_model.huggingface.importing.folder import (
    INPUT_TOKENS,
    WrittenFolder,
    check_absent,
    check_logits,
    made_up_batch,
    write_folder,
)
from spade_model.huggingface.importing.published_files import (
    PublishedFileError,
    one_line,
    read_json_object,
    sha256_of,
)
from spade_model.huggingface.importing.vocabulary import (
    MATRICES,
    copy_tokenizer,
    exchange_vocabulary,
    read_vocabulary,
    tokenizer_notes,
)
from spade_model.huggingface.tokenization import SpadeTokenizer
from spade_model.layers import GlobalLocalMixing, LongLayer
from spade_model.published_t5 import t5_config, t5_state
from spade_model.seq2seq import SpadeForSeq2Seq

_MODEL_TYPES = ("t5", "mt5", "longt5")


@dataclass(frozen=True)
class T5Report(WrittenFolder):
    """What was made of a T5 or LongT5."""

    source_logit_difference: float
    """Largest absolute difference between the logits of `transformers` and those of the copied
    weights without state spaces, where every token sees what it saw there."""
    new: dict[str, int]
    """Tensors that the source does not have, with their numbers; see `_begin_like_the_source`."""
    left_out: dict[str, int]
    """Tensors of the source that SPADE has no place for, with their numbers."""
    notes: tuple[str, ...]
    """What else is not as it was."""


def import_t5(
    source: Path,
    out: Path,
    own: Mapping[str, Any],
    *,
    tie_head: bool = False,
    tokenizer: SpadeTokenizer | None = None,
    seed: int = 0,
) -> T5Report:
    """Make a SPADE of a T5's sizes and weights.

    Args:
        source: A folder of `transformers` with safetensors.
        out: Where to write: absent or an empty folder.
        own: Fields of `SpadeConfig` that T5 leaves open, see `published_t5.SPADES_OWN`.
        tie_head: Leave out a head that is not the embedding: pretraining knows no such heads.
        tokenizer: One of ours in place of the source's, see `vocabulary`; None keeps the source's.
        seed: Of what is new.

    Raises:
        PublishedFileError: The folder is no T5, holds something that SPADE does not compute, `out`
            is taken, the disk refuses, or a comparison fails.
    """
    check_absent(out)
    theirs = _load(source)
    try:
        ours = t5_config(theirs.config.to_dict(), own)
    except (TypeError, ValueError) as error:
        raise PublishedFileError(f"{source}: {one_line(error)}") from error
    state, unplaced = t5_state(theirs.state_dict(), ours, scales_output=_scales_output(theirs))
    tied = torch.equal(state["lm_head.weight"], state["model.shared.weight"])
    difference, level = _compare_with_source(theirs, state, ours, tied=tied, source=source)
    left_out = {name: theirs.state_dict()[name].numel() for name in unplaced}
    notes = _differences(theirs, ours)
    if not tied and tie_head:
        left_out["lm_head.weight"] = state["lm_head.weight"].numel()
        tied = True
    elif not tied:
        notes.append(
            "the output head keeps weights of its own, which fine-tuning knows and pretraining "
            "does not; --tie-head leaves them out"
        )
    if tied:
        state["lm_head.weight"] = state["model.shared.weight"]
    vocabulary = read_vocabulary(source, ours.vocab_size)
    exchanged: dict[str, dict[str, int]] = {}
    if tokenizer is None:
        notes += tokenizer_notes(vocabulary, ours.vocab_size)
    else:
        ours, state, exchanged = _with_tokenizer(ours, state, vocabulary, tokenizer, source, seed)
    plain, new = _with_new_parts(ours, state, level, tied=tied, seed=seed)
    facts: dict[str, Any] = {
        "source_logit_difference": difference,
        "new": new | exchanged.get("new", {}),
        "left_out": left_out | exchanged.get("left_out", {}),
        "notes": tuple(notes),
    }
    weights = {path.name: sha256_of(path) for path in sorted(source.glob("*.safetensors"))}
    provenance = {
        "source": str(theirs.config.model_type),
        "weights_sha256": weights,
        "published_config": read_json_object(source / "config.json"),
        "seed": seed,
        **facts,
    }

    def add_tokenizer(folder: Path) -> None:
        if tokenizer is None:
            copy_tokenizer(source, folder)
        else:
            tokenizer.save_pretrained(folder)

    return T5Report(**vars(write_folder(plain, out, provenance, add_tokenizer)), **facts)


def _load(source: Path) -> PreTrainedModel:
    """Load the source in float32; every tensor of the network has to be there."""
    kind = read_json_object(source / "config.json").get("model_type")
    if kind not in _MODEL_TYPES:
        raise PublishedFileError(
            f"{source}/config.json: model_type is {kind!r}; give a folder of "
            f"{', '.join(_MODEL_TYPES[:-1])} or {_MODEL_TYPES[-1]}"
        )
    if not any(source.glob("*.safetensors")):
        raise PublishedFileError(
            f"{source}: holds no *.safetensors; where you trust it, save it again with "
            "transformers: AutoModelForSeq2SeqLM.from_pretrained(OLD).save_pretrained(NEW)"
        )
    try:
        model, facts = AutoModelForSeq2SeqLM.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PublishedFileError(f"{source}: cannot be loaded: {one_line(error)}") from error
    except Exception as error:  # safetensors and huggingface_hub have classes of their own
        raise PublishedFileError(f"{source}: cannot be read: {one_line(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if facts[what]:
            names = ", ".join(sorted(map(str, facts[what]))[:3])
            raise PublishedFileError(
                f"{source}: {what.replace('_', ' ')}: {names}; give a whole encoder-decoder"
            )
    wrong = [name for name, x in model.state_dict().items() if not bool(x.isfinite().all())]
    if wrong:
        raise PublishedFileError(
            f"{source}: holds numbers that are not finite: {wrong[0]}; fetch it again"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def _scales_output(theirs: PreTrainedModel) -> bool:
    """Whether the decoder's output is scaled; early 5.x has no word of its own for that."""
    config = theirs.config
    return bool(getattr(config, "scale_decoder_outputs", config.tie_word_embeddings))


def _compare_with_source(
    theirs: PreTrainedModel,
    state: Mapping[str, Tensor],
    ours: SpadeConfig,
    *,
    tied: bool,
    source: Path,
) -> tuple[float, list[float]]:
    """Compare the copied weights with `transformers`, without what is new.

    Returns:
        The largest difference of a logit, and how large the output of each encoder layer's
        attention is: its root mean square under our pattern of attention.
    """
    reference, reach = _local_reference(theirs)
    bare = dataclasses.replace(
        ours,
        state_space="none",
        attention="full" if reach is None else "window",
        local_radius_tokens=reach or ours.local_radius_tokens,
    )
    batch = made_up_batch(bare, max(INPUT_TOKENS, 3 * (reach or 0) + 5))
    with torch.no_grad():
        mask = batch["attention_mask"].long()
        expected = reference(**{**batch, "attention_mask": mask}, use_cache=False).logits
        found = _loaded(SpadeForSeq2Seq(bare), state, tied=tied)(**batch).logits
        difference = check_logits(found, expected, f"{source}: not imported: translated, its")
        mixed = dataclasses.replace(ours, state_space="none")
        levels = _attention_levels(_loaded(SpadeForSeq2Seq(mixed), state, tied=tied), batch)
    return difference, levels


def _local_reference(theirs: PreTrainedModel) -> tuple[PreTrainedModel, int | None]:
    """The source with the attention that we can have, and its radius; None sees everything.

    LongT5 with transient global tokens is compared without them: the same weights under LongT5's
    local attention.
    """
    config = theirs.config
    if not isinstance(config, LongT5Config):
        return theirs, None
    if config.encoder_attention_type == "local":
        return theirs, config.local_radius
    local = LongT5Config(**{**config.to_dict(), "encoder_attention_type": "local"})
    local.scale_decoder_outputs = _scales_output(theirs)
    reference = type(theirs)(local)
    long = "TransientGlobalSelfAttention"
    state = {
        name.replace(long, "LocalSelfAttention"): x
        for name, x in theirs.state_dict().items()
        if ".global_" not in name
    }
    if not torch.equal(state["lm_head.weight"], state["shared.weight"]):
        reference.lm_head.weight = nn.Parameter(torch.empty_like(state["lm_head.weight"]))
    reference.load_state_dict(state)
    return reference.eval(), config.local_radius


def _loaded(plain: SpadeForSeq2Seq, state: Mapping[str, Tensor], *, tied: bool) -> SpadeForSeq2Seq:
    if not tied:
        plain.lm_head.weight = nn.Parameter(torch.empty_like(state["lm_head.weight"]))
    plain.load_state_dict(state)
    return plain.eval()


def _attention_levels(plain: SpadeForSeq2Seq, batch: Mapping[str, Tensor]) -> list[float]:
    levels: list[float] = []
    valid = batch["attention_mask"]

    def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        levels.append(float(output[valid].square().mean().sqrt()))

    for layer in _encoder_layers(plain):
        layer.mixing.local_attention.register_forward_hook(note)
    plain.encode(batch["input_ids"], valid)
    return levels


def _encoder_layers(plain: SpadeForSeq2Seq) -> list[LongLayer]:
    return [layer for layer in plain.model.encoder.layers if isinstance(layer, LongLayer)]


def _with_new_parts(
    ours: SpadeConfig, state: dict[str, Tensor], levels: list[float], *, tied: bool, seed: int
) -> tuple[SpadeForSeq2Seq, dict[str, int]]:
    """Build the model; return it and the numbers in what is new, by name."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        plain = SpadeForSeq2Seq(ours)
    _begin_like_the_source(plain, levels)
    drawn = plain.state_dict()
    new = {name: x.numel() for name, x in drawn.items() if name not in state}
    return _loaded(plain, {**drawn, **state}, tied=tied), new


@torch.no_grad()
def _begin_like_the_source(plain: SpadeForSeq2Seq, levels: list[float]) -> None:
    """Have layers with a state space begin as if they had none, as nearly as their norms allow.

    ``W [LN g; LN a] + b`` begins as ``[0 | 1]``, with the norm of attention's output at the size
    that this output has in the source. W learns from the first step on, and through it the state
    space. What ``combine: stack`` does cannot begin so.
    """
    for layer, level in zip(_encoder_layers(plain), levels, strict=True):
        mixing = layer.mixing
        if not isinstance(mixing, GlobalLocalMixing) or mixing.combine == "stack":
            continue
        local = mixing.local_norm.get_parameter("weight").fill_(level)
        if mixing.combine == "add":
            mixing.global_norm.get_parameter("weight").zero_()
            local.div_(max(1.0 - mixing.global_weight, 1e-3))
            continue
        width = mixing.aggregate.out_features
        mixing.aggregate.weight.zero_()
        mixing.aggregate.weight[:, -width:].copy_(torch.eye(width))
        mixing.aggregate.bias.zero_()


def _differences(theirs: PreTrainedModel, ours: SpadeConfig) -> list[str]:
    """What the encoder no longer does as the source does it."""
    notes = []
    config = theirs.config
    ours_in_words = {
        "window": f"a window of {ours.local_radius_tokens} tokens on either side",
        "chunk": f"chunks of {ours.local_radius_tokens + 1} tokens",
        "full": "everything",
    }[ours.attention]
    if not isinstance(config, LongT5Config):
        if ours.attention != "full":
            notes.append(f"encoder tokens attended to everything, now to {ours_in_words}")
    elif (ours.attention, ours.local_radius_tokens) != ("window", config.local_radius):
        notes.append(
            f"encoder tokens attended to a window of {config.local_radius} tokens on either side, "
            f"now to {ours_in_words}"
        )
    if getattr(config, "encoder_attention_type", "local") != "local":
        notes.append("encoder tokens attended to means of blocks as well, now they do not")
    return notes


def _with_tokenizer(
    ours: SpadeConfig,
    state: dict[str, Tensor],
    vocabulary: Mapping[str, int] | None,
    tokenizer: SpadeTokenizer,
    source: Path,
    seed: int,
) -> tuple[SpadeConfig, dict[str, Tensor], dict[str, dict[str, int]]]:
    """Put another vocabulary under the weights; also what that makes new and leaves out."""
    if vocabulary is None:
        raise PublishedFileError(
            f"{source}: has no tokenizer, so that nobody knows which rows belong to the pieces of "
            "--tokenizer; put it beside the weights"
        )
    made = exchange_vocabulary(state, vocabulary, tokenizer.get_vocab(), seed=seed)
    changed = dataclasses.replace(
        ours,
        vocab_size=made.kept + made.drawn,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    matrices = len({id(state[name]) for name in MATRICES})
    width = matrices * ours.d_model
    rows = {
        "new": {f"model.shared.weight, {made.drawn} rows": made.drawn * width},
        "left_out": {f"shared.weight, {made.dropped} rows": made.dropped * width},
    }
    return changed, made.state, rows
