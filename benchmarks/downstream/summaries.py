"""SumPubMed: what pretraining, the state space and the length of the input are worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.report import Table
from benchmarks.downstream.accuracy import with_interval
from benchmarks.downstream.arms import Arm, SummaryArm, train_all
from benchmarks.downstream.options import Options
from benchmarks.downstream.pretraining import SPADE, WINDOW, pretrained
from benchmarks.downstream.task_files import sumpubmed_files
from finetune.intervals import bootstrap_interval, bootstrap_ratio_interval, paired_difference
from finetune.summarization.baselines import lead, median_words
from finetune.summarization.documents import Columns, read_pairs
from finetune.summarization.recipe import SummarySettings
from finetune.summarization.rouge import score_summaries
from finetune.summarization.writing import WritingSettings

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeLsum": "ROUGE-Lsum"}
REFERENCE = "SPADE"
Values = NDArray[np.float64]


def summaries_tables(options: Options) -> list[Table]:
    """Compare the networks with each other and with LEAD."""
    arms = summary_arms(options)
    train_all(list(arms.values()), options.workers)
    found = {title: arm.predictions(0) for title, arm in arms.items()}
    settings = options.summaries
    note = (
        f"Inputs of {options.summary_input_tokens:,} tokens unless cut; epochs: {settings.epochs}, "
        f"rate {settings.learning_rate:g}, one seed, best checkpoint by validation NLL; "
        f"beams: {options.beams}. Brackets: 95 % over drawn test documents."
    )
    likelihoods = [_nll_row(title, found, arms[title]) for title in arms]
    rouge = [_rouge_row(title, _rouge_of(found[title]), found) for title in arms]
    words, scores = _lead(options)
    rouge.append(_rouge_row(f"LEAD-{words}", scores, found))
    return [
        Table("summary NLL", "SumPubMed: nats a token of the test summaries", likelihoods, (note,)),
        Table("summary ROUGE", "SumPubMed: ROUGE of written summaries, percent", rouge, (note,)),
    ]


def summary_arms(options: Options) -> dict[str, Arm]:
    """The trainings that are compared."""
    spade, window = pretrained(options, SPADE), pretrained(options, WINDOW)
    long, short = options.summary_input_tokens, options.cut_input_tokens
    choices: dict[str, dict[str, Any]] = {
        REFERENCE: {"folder": spade, "settings": _settings(options, long)},
        "window attention only": {"folder": window, "settings": _settings(options, long)},
        f"SPADE, cut at {short}": {"folder": spade, "settings": _settings(options, short)},
        "SPADE from scratch": {
            "folder": spade,
            "settings": _settings(options, long),
            "from_scratch": True,
        },
    }
    training = dataclasses.replace(options.summaries, precision=options.precision, seeds=1)
    return {
        title: SummaryArm(
            name=f"summaries {title}",
            out=options.folder / "arms" / f"summaries-{number}",
            training=training,
            files=sumpubmed_files(options),
            **choice,
        )
        for number, (title, choice) in enumerate(choices.items())
    }


def _settings(options: Options, length_tokens: int) -> SummarySettings:
    return SummarySettings(
        max_input_tokens=length_tokens,
        evaluation_batch_tokens=8 * (options.summary_input_tokens + options.most_summary_tokens),
        writing=WritingSettings(
            beams=options.beams,
            no_repeat_ngram=3,
            max_summary_tokens=options.most_summary_tokens,
        ),
    )


def _sums(rows: list[dict[str, Any]], name: str) -> tuple[Values, Values]:
    """Summed likelihood and tokens of each summary."""
    tokens = np.array([row["reference_tokens"] for row in rows], dtype=np.float64)
    return np.array([row[name] for row in rows]) * tokens, tokens


def _nll_row(title: str, found: dict[str, list[dict[str, Any]]], arm: Arm) -> dict[str, Any]:
    own, tokens = _sums(found[title], "nll_per_token")
    other, _ = _sums(found[title], "nll_per_token_shuffled")
    reference, _ = _sums(found[REFERENCE], "nll_per_token")
    row: dict[str, Any] = {"model": title}
    for name, sums, sign in (
        ("given its document", own, ""),
        ("given another", other, ""),
        ("another minus own", other - own, "+"),
        (f"minus {REFERENCE}'s", own - reference, "+"),
    ):
        interval = bootstrap_ratio_interval(sums, tokens)
        row[name] = with_interval(sums.sum() / tokens.sum(), interval, sign)
    if title == REFERENCE:
        row[f"minus {REFERENCE}'s"] = None
    return row | {"best step": arm.results["seeds"][0]["best_step"], "CPU-minutes": arm.cpu_minutes}


def _rouge_of(rows: list[dict[str, Any]]) -> dict[str, Values]:
    return {name: 100 * np.array([row[name] for row in rows]) for name in ROUGE}


def _rouge_row(
    title: str, scores: dict[str, Values], found: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    reference = _rouge_of(found[REFERENCE])
    row: dict[str, Any] = {"model": title}
    for name, written in ROUGE.items():
        values = scores[name]
        row[written] = with_interval(values.mean(), bootstrap_interval(values), digits=1)
    mean, *interval = paired_difference(scores["rouge2"], reference["rouge2"])
    difference = with_interval(mean, (interval[0], interval[1]), "+", 1)
    row[f"ROUGE-2 minus {REFERENCE}'s"] = None if title == REFERENCE else difference
    words = None
    if title in found:
        words = round(float(np.mean([len(row["prediction"].split()) for row in found[title]])))
    return row | {"words": words}


def _lead(options: Options) -> tuple[int, dict[str, Values]]:
    files = sumpubmed_files(options)
    learn, test = (read_pairs(path, Columns(), with_summaries=True) for path in files[::2])
    assert learn.summaries is not None
    assert test.summaries is not None
    words = median_words(learn.summaries)
    beginnings = [lead(document, words) for document in test.documents]
    scores = score_summaries(beginnings, test.summaries)
    return words, {name: 100 * scores[name] for name in ROUGE}
