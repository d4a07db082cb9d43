"""One sequence on several ranks: ``python context_ranks.py FOLDER SIZE…``, or ``… FOLDER again``.

Imports once and forks the ranks of every group, each of which goes through all `CASES` and writes
what it found into `FOLDER/SIZE-RANK.pt`. What they are compared with is the same without a part.
With ``again`` two ranks do nothing but what is to be the same in bits at every start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from spade_model.activation_checkpointing import ActivationCheckpointing
from spade_model.causal_lm import SpadeForCausalLM
from spade_model.config import CheckpointingKind, SpadeConfig
from spade_model.context_parallel.gradients import average_gradients
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart
from spade_model.context_parallel.traffic import Traffic
from spade_model.huggingface import SpadeForConditionalGeneration, SpadePretrainedConfig
from spade_model.seq2seq import SpadeForSeq2Seq

TINY = SpadeConfig(
    vocab_size=40,
    d_model=16,
    num_heads=2,
    head_dim=8,
    d_ff=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    state_dim=4,
    local_radius_tokens=5,
    max_target_length_tokens=12,
)
LENGTH = 43
# Parts by the number of ranks: some shorter than the window, so that halos come from several.
UNEVEN = {1: (43,), 2: (30, 13), 3: (21, 3, 19), 4: (2, 17, 4, 20)}
EVEN = {1: (43,), 2: (22, 21), 3: (15, 14, 14), 4: (11, 11, 11, 10)}


@dataclass(frozen=True)
class Case:
    """One network and the kind of batch that it is given."""

    changes: dict[str, Any]
    lengths: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=lambda: UNEVEN)
    padded: bool = False
    packed: bool = False
    backend: str = "auto"
    checkpointing: CheckpointingKind = "none"
    steps: int = 0
    """Of AdamW in float32."""

    @property
    def config(self) -> SpadeConfig:
        return dataclasses.replace(TINY, **self.changes)


CASES = {
    "s4": Case({"state_space_layers": 2}, steps=10),
    "s4 padded": Case(
        {"normalization": "post", "final_norm": False, "shared_relative_bias": True},
        lengths=EVEN,
        padded=True,
        steps=10,
        checkpointing="full",
    ),
    "s4 packed, all trained": Case(
        {"trainable_state_space": ("C", "D", "log_dt", "A", "B", "P"), "position": "alibi"},
        packed=True,
        padded=True,
        checkpointing="selective",
    ),
    "s4d_lin in chunks": Case(
        {
            "state_space": "s4d_lin",
            "state_space_discretization": "zero_order_hold",
            "attention": "chunk",
            "combine": "add",
            "decoder_position": "rope",
        },
        steps=10,
    ),
    "s4d_inv in chunks, padded": Case(
        {"state_space": "s4d_inv", "attention": "chunk", "position": "rope"},
        padded=True,
        backend="blocked",
        steps=10,
    ),
    "s4d_legs, two channels": Case(
        {"state_space": "s4d_legs", "state_space_channels": 2, "position": "rope"},
        packed=True,
        backend="blocked",
        checkpointing="full",
        steps=10,
    ),
    "ema packed in chunks": Case(
        {
            "state_space": "ema",
            "state_space_layers": "every 1",
            "combine": "stack",
            "attention": "chunk",
        },
        packed=True,
        padded=True,
        steps=10,
    ),
    "window alone": Case(
        {"state_space": "none", "position": "none", "attention_bias": True},
        backend="reference",
        padded=True,
    ),
}


def batch(case: Case) -> dict[str, Tensor | None]:
    """Tokens, labels, and masks with padding at both ends, in the middle and over whole parts."""
    generator = torch.Generator().manual_seed(5)
    valid = segments = None
    if case.padded:
        valid = torch.ones(3, LENGTH, dtype=torch.bool)
        valid[0, 24:] = False  # Whole parts without a token.
        valid[1, :8] = False
        valid[2, 17:22] = False
        valid[2, 40:] = False
    if case.packed:
        segments = torch.zeros(3, LENGTH, dtype=torch.int64)
        segments[0, 6:8], segments[0, 8:] = 4, 2  # The last one runs over several parts.
        segments[1, 21:] = 1  # Ends where a part ends.
        segments[2, ::2] = 3  # Documents of one token.
    return {
        "input_ids": torch.randint(2, TINY.vocab_size, (3, LENGTH), generator=generator),
        "labels": torch.randint(2, TINY.vocab_size, (3, 7), generator=generator),
        "attention_mask": valid,
        "segment_ids": segments,
    }


def make_model(case: Case, dtype: torch.dtype, **changes: Any) -> SpadeForSeq2Seq:
    torch.manual_seed(1)
    model = SpadeForSeq2Seq(dataclasses.replace(case.config, **changes))
    with torch.no_grad():
        model.model.shared.weight.mul_(20)  # Outputs of order one, so that errors would show.
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.normal_()
    model.set_attention_backend(case.backend)
    model.set_activation_checkpointing(ActivationCheckpointing(case.checkpointing))
    return model.to(dtype).train()


def inputs_of(case: Case, part: ContextPart | None) -> dict[str, Any]:
    """A rank's share of a batch: a slice of all that is about the input."""
    given = batch(case)
    if part is None:
        return dict(given)
    cut = {
        name: x if name == "labels" or x is None else x[:, part.tokens] for name, x in given.items()
    }
    return {**cut, "part": part}


def gradients_of(model: SpadeForSeq2Seq) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def measure(case: Case, part: ContextPart | None) -> dict[str, Any]:
    """Outputs and gradients in both precisions."""
    found: dict[str, Any] = {}
    group = ContextGroup.alone() if part is None else part.group
    given = inputs_of(case, part)
    for dtype in (torch.float64, torch.float32):
        model = make_model(case, dtype)
        output = model(**given)
        output.loss.backward()
        average_gradients(model.parameters(), group)
        found[str(dtype)] = {
            "loss": output.loss.detach(),
            "logits": output.logits.detach(),
            "encoder": output.encoder_hidden_states.detach(),
            "gradients": gradients_of(model),
        }
    return found


def train(case: Case, part: ContextPart | None) -> dict[str, Any]:
    """Steps of AdamW, and what the network generates behind them."""
    group = ContextGroup.alone() if part is None else part.group
    given, model = inputs_of(case, part), make_model(case, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(case.steps):
        loss = model(**given).loss
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model.parameters(), group)
        optimizer.step()
        losses.append(loss.item())
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    generated = model.eval().generate(
        given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=6, part=part
    )
    return {"losses": losses, "weights": weights, "generated": generated}


CAUSAL = {"s4": {}, "ema": {"state_space": "ema", "attention": "chunk"}}
# The last part has nothing to predict.
CAUSAL_LENGTHS = {1: (43,), 2: (42, 1), 3: (21, 21, 1), 4: (2, 20, 20, 1)}


def causal(kind: str, part: ContextPart | None) -> dict[str, Any]:
    """Logits, loss and gradients of a language model on padded rows of several documents."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, num_encoder_layers=0, **CAUSAL[kind])
    model = SpadeForCausalLM(config).double().train()
    with torch.no_grad():
        model.model.shared.weight.mul_(20)
    model.set_activation_checkpointing(ActivationCheckpointing("full"))
    given = batch(CASES["s4 packed, all trained"])
    ids, valid, segments = (given[x] for x in ("input_ids", "attention_mask", "segment_ids"))
    assert ids is not None
    assert valid is not None
    assert segments is not None
    # What a padded token predicts has no meaning.
    labels = ids.masked_fill(~valid | ~valid.roll(1, dims=1), -100)
    own = slice(None) if part is None else part.tokens
    output = model(
        ids[:, own],
        labels[:, own],
        attention_mask=valid[:, own],
        segment_ids=segments[:, own],
        part=part,
    )
    # As under loss scaling: what is behind the loss has a share in all gradients.
    (3.0 * output.loss).backward()
    if part is not None:
        average_gradients(model.parameters(), part.group)
    return {
        "loss": output.loss.detach(),
        "logits": output.logits.detach(),
        "gradients": {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
    }


WRITING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
    "sampled": {"do_sample": True, "temperature": 2.0, "top_p": 0.9},
    "sampled beams": {"do_sample": True, "temperature": 2.0, "num_beams": 2},
}


def written(part: ContextPart | None) -> dict[str, Tensor]:
    """What `transformers` generates from padded inputs, with a cache."""
    case = CASES["s4 padded"]
    given = inputs_of(case, part)
    del given["labels"], given["segment_ids"]
    model = SpadeForConditionalGeneration(SpadePretrainedConfig.from_spade_config(case.config))
    model.load_state_dict(make_model(case, torch.float32).state_dict())
    found = {}
    for name, settings in WRITING.items():
        torch.manual_seed(9)
        found[name] = model.eval().generate(**given, max_new_tokens=8, min_new_tokens=4, **settings)
    return found


def bits_of_a_job(group: ContextGroup) -> str:
    """Digest of the weights after steps with dropout."""
    model = make_model(CASES["s4"], torch.float32, dropout=0.2)
    given = inputs_of(CASES["s4"], ContextPart(group, UNEVEN[group.size]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(4)
    for _ in range(3):
        optimizer.zero_grad()
        model(**given).loss.backward()
        average_gradients(model.parameters(), group)
        optimizer.step()
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def with_dropout(part: ContextPart, checkpointing: CheckpointingKind) -> dict[str, Any]:
    """A training step of a network that drops much."""
    case = CASES["s4"]
    model = make_model(case, torch.float32, dropout=0.3)
    model.set_activation_checkpointing(ActivationCheckpointing(checkpointing))
    torch.manual_seed(3)
    output = model(**inputs_of(case, part))
    output.loss.backward()
    return {
        "loss": output.loss.detach(),
        "encoder": output.encoder_hidden_states.detach(),
        "gradients": gradients_of(model),
        "state": torch.get_rng_state(),
    }


def sent(
    group: ContextGroup, lengths: tuple[int, ...], checkpointing: CheckpointingKind
) -> list[tuple[str, bool, int]]:
    """What a training step sends: kind, whether backward, bytes."""
    traffic = Traffic()
    part = ContextPart(dataclasses.replace(group, traffic=traffic), lengths)
    model = make_model(CASES["s4"], torch.float32)
    model.set_activation_checkpointing(ActivationCheckpointing(checkpointing))
    ids = torch.ones(2, lengths[group.rank], dtype=torch.int64)
    model(ids, torch.ones(2, 6, dtype=torch.int64), part=part).loss.backward()
    return [(x.kind, x.backward, x.sent_bytes) for x in traffic.transfers]


def disagreements(group: ContextGroup) -> dict[str, str]:
    """What ranks are told that were not given the same."""
    told = {}
    odd, lengths = group.rank == group.size - 1, [10] * group.size

    def attempt(name: str, *, rows: int = 1, cut: list[int] = lengths, **given: Any) -> None:
        torch.manual_seed(group.rank if name == "generator" else 0)
        model = make_model(CASES["s4"], torch.float32, dropout=0.1)
        torch.manual_seed(group.rank if name == "generator" else 0)
        part = ContextPart(group, tuple(cut))
        ids = torch.ones(rows, given.pop("tokens", cut[group.rank]), dtype=torch.int64)
        mask = torch.ones_like(ids).bool() if given.pop("mask", False) else None
        try:
            model(ids, ids[:, :3], attention_mask=mask, part=part)
        except ValueError as error:
            told[name] = str(error)

    attempt("rows", rows=2 if odd else 1)
    attempt("cut", cut=[11, *lengths[1:-1], 9] if odd else lengths)
    attempt("tokens", tokens=9 if odd else 10)
    attempt("mask", mask=odd)
    attempt("generator")
    return told


def go_through(group: ContextGroup) -> dict[str, Any]:
    found: dict[str, Any] = {"cases": {}}
    for name, case in CASES.items():
        part = ContextPart(group, case.lengths[group.size])
        found["cases"][name] = measure(case, part)
        if case.steps:
            found["cases"][name]["steps"] = train(case, part)
    part = ContextPart(group, CAUSAL_LENGTHS[group.size])
    found["causal"] = {kind: causal(kind, part) for kind in CAUSAL}
    found["written"] = written(ContextPart(group, EVEN[group.size]))
    found["bits"] = bits_of_a_job(group)
    part = ContextPart(group, EVEN[group.size])
    kinds: tuple[CheckpointingKind, ...] = ("none", "none", "full", "selective")
    found["dropout"] = [with_dropout(part, kind) for kind in kinds]
    long, short = (100,) * group.size, (20,) * group.size
    found["traffic"] = [
        (lengths, kind, sent(group, lengths, kind))
        for lengths, kind in (
            (UNEVEN[group.size], "none"),
            (short, "none"),
            (long, "none"),
            (long, "full"),
        )
    ]
    found["disagreements"] = disagreements(group)
    return found


def _rank(rank: int, size: int, folder: Path, *, again: bool) -> None:
    torch.set_num_threads(1)
    store = folder / f"{size}.store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    assert dist.group.WORLD is not None
    group = ContextGroup.of(dist.group.WORLD)
    found = {"bits": bits_of_a_job(group)} if again else go_through(group)
    torch.save(found, folder / f"{size}-{rank}.pt")
    dist.destroy_process_group()


def main() -> int:
    """Returns 0 if every rank ended well."""
    folder, failed = Path(sys.argv[1]), False
    again = sys.argv[2:] == ["again"]
    for size in [2] if again else map(int, sys.argv[2:]):
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                _rank(rank, size, folder, again=again)
                os._exit(0)
            children.append(child)
        failed |= any(os.waitpid(child, 0)[1] != 0 for child in children)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
