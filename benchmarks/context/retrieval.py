"""What the beginning of a text says, asked at its end, farther away than any window reaches.

The task is that of `benchmarks.common.far_header`, drawn to scale: the first quarter of a text of
any length votes for the values of four registers, all else is noise, and the questions stand in its
last quarter, so that the nearest evidence is half the text away. Answers are made where the
questions are, by the encoder alone: a decoder would look at the beginning by itself.

A network is trained on short texts, then on longer and longer ones. Whenever texts grow, the time
steps of the state space shrink by the same factor. It is a system in continuous time (arXiv
2111.00396), so its kernels stretch with the text and all weights stay as they are. Then texts are
asked about that are longer than any it was trained on, each cut over processes.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common.far_header import (
    CHANCE,
    REGISTERS,
    Tagger,
    Texts,
    Training,
    make_texts,
    tagger_config,
    train_step,
)
from benchmarks.common.report import Table
from benchmarks.context.options import Options
from benchmarks.context.ranks import run_on_ranks
from spade_model.context_parallel.group import ContextGroup
from spade_model.context_parallel.part import ContextPart

_NETWORKS = {"SPADE": "s4", "window only": "none"}
_LAST_STEPS = 10
"""Of a stage, whose mean loss is shown."""


def draw_texts(count: int, length_tokens: int, generator: torch.Generator) -> Texts:
    """Draw texts of any length to scale.

    Args:
        count: How many.
        length_tokens: A multiple of 4.
        generator: Decides everything.

    Returns:
        Texts whose first quarter votes; questions are more than half a text behind that.
    """
    return make_texts(
        count,
        length_tokens,
        generator,
        trained_length=length_tokens // 2,  # Half of it is the header.
        reach=length_tokens // 2,
        kind="behind",
    )


class StretchedTagger:
    """A tagger whose state space fits texts of one length at a time."""

    def __init__(self, options: Options, state_space: str) -> None:
        self.length_tokens = options.stages[0].length_tokens
        config = tagger_config(
            self.length_tokens,
            dt_min=1 / (2 * self.length_tokens),  # The slowest states remember four texts.
            state_space=state_space,
        )
        self.network = Tagger(config)
        self.mixers = self.network.mixers

    @torch.no_grad()
    def stretch(self, length_tokens: int) -> None:
        """Fit texts of another length: time steps become shorter by as much as texts longer."""
        for mixer in self.mixers:
            log_dt = mixer.get_parameter("log_dt")
            log_dt.add_(math.log(self.length_tokens / length_tokens))
            mixer.forget_kernels()
        self.length_tokens = length_tokens


def train(tagger: StretchedTagger, options: Options) -> list[dict[str, Any]]:
    """Train through all stages on this process alone.

    Returns:
        For each stage the mean ``loss`` of its last steps, in nats, and ``seconds``.
    """
    generator = torch.Generator().manual_seed(options.seed + 1)
    training = Training(steps=sum(stage.steps for stage in options.stages))
    optimizer = training.optimizer(tagger.network)
    schedule = training.schedule(optimizer)
    found = []
    for stage in options.stages:
        tagger.stretch(stage.length_tokens)
        started, losses = time.perf_counter(), []
        for _ in range(stage.steps):
            texts = draw_texts(stage.batch, stage.length_tokens, generator)
            losses.append(train_step(tagger.network, optimizer, texts))
            schedule.step()
        seconds = time.perf_counter() - started
        found.append({"loss": statistics.mean(losses[-_LAST_STEPS:]), "seconds": seconds})
    return found


@torch.no_grad()
def answers_of(network: Tagger, texts: Texts, part: ContextPart) -> Tensor:
    """Answer all questions, each on the rank that has its token.

    Args:
        network: The same on all ranks.
        texts: The same on all ranks, which encode their parts only.
        part: This rank's.

    Returns:
        The chosen values, int64 [B, Q], on all ranks.
    """
    own = part.tokens
    hidden = network.encoder.encode(texts.ids[:, own], part=part)
    here = (texts.places >= own.start) & (texts.places < own.stop)
    places = (texts.places - own.start).clamp(0, hidden.shape[1] - 1)
    asked = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
    answers: Tensor = network.answer(asked).argmax(dim=-1).masked_fill_(~here, 0)
    if part.group.size > 1:
        dist.all_reduce(answers, group=part.group.process_group)
    return answers


def _ask(
    tagger: StretchedTagger, group: ContextGroup, options: Options, tokens: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(options.seed + 1000)
    part, started = ContextPart.of(group, tokens), time.perf_counter()
    right: list[Tensor] = []
    nearest = tokens
    for _ in range(options.texts):
        texts = draw_texts(1, tokens, generator)
        nearest = min(nearest, int(texts.distances.min()))
        right.append(answers_of(tagger.network, texts, part) == texts.labels)
    share = float(torch.cat(right, dim=1).float().mean())
    return {"share": share, "nearest": nearest, "seconds": time.perf_counter() - started}


def retrieve(group: ContextGroup, options: Options) -> dict[str, Any]:
    """Train both networks, each on a process of its own if there are two, and ask both on all.

    Returns:
        ``training`` and ``asked``, by network; the latter by length as text, and once more
        ``unstretched``, with the time steps that training ended with.
    """
    training: dict[str, Any] = {}
    asked: dict[str, Any] = {"unstretched": {}}
    taggers = {}
    for number, (name, state_space) in enumerate(_NETWORKS.items()):
        torch.manual_seed(options.seed)
        taggers[name] = StretchedTagger(options, state_space)
        if number % group.size == group.rank:
            training[name] = train(taggers[name], options)
    for number, (name, tagger) in enumerate(taggers.items()):
        told: list[Any] = [training.get(name), tagger.network.state_dict()]
        dist.broadcast_object_list(told, number % group.size, group.process_group)
        training[name], weights = told
        tagger.network.load_state_dict(weights)
        tagger.length_tokens = options.stages[-1].length_tokens
        tagger.network.eval()
    for tokens in options.retrieval_tokens:
        asked["unstretched"][str(tokens)] = _ask(taggers["SPADE"], group, options, tokens)
    for name, tagger in taggers.items():
        asked[name] = {}
        for tokens in options.retrieval_tokens:
            tagger.stretch(tokens)
            asked[name][str(tokens)] = _ask(tagger, group, options, tokens)
    return {"training": training, "asked": asked}


def retrieval_tables(options: Options) -> list[Table]:
    """Train with and without a state space, and ask at every length."""
    found = run_on_ranks(retrieve, options.processes, options)[0]
    asked, training = found["asked"], found["training"]
    rows = [
        {
            "tokens": tokens,
            "nearest evidence, tokens": asked["SPADE"][str(tokens)]["nearest"],
            "SPADE": asked["SPADE"][str(tokens)]["share"],
            "window only": asked["window only"][str(tokens)]["share"],
            "chance": CHANCE,
            "SPADE, time steps as trained": asked["unstretched"][str(tokens)]["share"],
            "s/text": asked["SPADE"][str(tokens)]["seconds"] / options.texts,
        }
        for tokens in options.retrieval_tokens
    ]
    error = math.sqrt(CHANCE * (1 - CHANCE) / (options.texts * REGISTERS))
    longest = max(stage.length_tokens for stage in options.stages)
    notes = (
        f"{options.texts} texts of each length on {options.processes} processes",
        f"trained on up to {longest:,} tokens; standard error {error:.2f} or less at chance",
        "time steps of the state space are divided by the growth of the text, but for one column:",
        f"as trained: those for {options.stages[-1].length_tokens:,} tokens, whatever the text",
    )
    stages = [
        {"network": name, "tokens": stage.length_tokens, "batch": stage.batch}
        | {"steps": stage.steps, "loss at the end": told["loss"], "seconds": told["seconds"]}
        for name in _NETWORKS
        for stage, told in zip(options.stages, training[name], strict=True)
    ]
    title = "Share of right answers about the beginning of a text, asked at its end"
    return [
        Table("retrieval", title, rows, notes),
        Table(
            "retrieval_training",
            "Stages of the training",
            stages,
            (f"means of the last {_LAST_STEPS} losses; chance: {math.log(1 / CHANCE):.2f} nats",),
        ),
    ]
