"""What records say together: metrics, their intervals, and the comparison with LEAD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.intervals import bootstrap_interval, bootstrap_ratio_interval, paired_difference
from finetune.recipe import ResultTable
from finetune.summarization.baselines import lead
from finetune.summarization.documents import SummaryRows
from finetune.summarization.rouge import ROUGE, score_summaries

MEAN_ROUGE = "rouge_mean"
"""Mean of ROUGE-1, ROUGE-2 and ROUGE-Lsum."""
NLL = "nll_per_token"
SHUFFLED_NLL = "nll_per_token_shuffled"
_TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeLsum": "ROUGE-Lsum"}

Values = NDArray[np.float64]


def nll_per_token(rows: SummaryRows, records: Sequence[Mapping[str, Any]]) -> float:
    """Return the negative log-likelihood of all summaries over their number of tokens, in nats."""
    return float(_column(records, "nll").sum() / _target_tokens(rows).sum())


def metrics_of(rows: SummaryRows, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the metrics of what was asked; empty for rows without summaries.

    Args:
        rows: Examined.
        records: In their order; see `evaluation.Record`.
    """
    if rows.targets is None:
        return {}
    found = {NLL: nll_per_token(rows, records)}
    if "shuffled_nll" in records[0]:
        shuffled = _column(records, "shuffled_nll").sum() / _target_tokens(rows).sum()
        found[SHUFFLED_NLL] = float(shuffled)
    if "rouge" in records[0]:
        means = {name: float(values.mean()) for name, values in _rouge(records).items()}
        found |= {**means, MEAN_ROUGE: sum(means.values()) / len(means)}
    return found


def details_of(
    rows: SummaryRows, records: Sequence[Mapping[str, Any]], lead_words: int
) -> dict[str, Any]:
    """Return means with 95 % intervals over documents, for the model and for LEAD.

    Args:
        rows: Examined.
        records: In their order.
        lead_words: Words of the baseline.

    Returns:
        ``documents``, ``cut_inputs``, ``cut_targets``; ``rouge``: for ``lead``, ``model`` and
        ``difference`` (the model's minus LEAD's, paired) each score's ``mean`` and ``interval``,
        and each one's mean of ``words``; ``nll_per_token``: of ``own_document``,
        ``other_document`` and ``difference`` (paired). What was not asked is left out.
    """
    found: dict[str, Any] = {
        "documents": len(rows),
        "cut_inputs": rows.cut_inputs,
        "cut_targets": rows.cut_targets,
    }
    if rows.targets is None:
        return found
    if "rouge" in records[0]:
        found["rouge"] = _compare_with_lead(rows, records, lead_words)
    own, tokens = _column(records, "nll"), _target_tokens(rows)
    found[NLL] = {"own_document": _ratio(own, tokens)}
    if "shuffled_nll" in records[0]:
        other = _column(records, "shuffled_nll")
        found[NLL]["other_document"] = _ratio(other, tokens)
        found[NLL]["difference"] = _ratio(other - own, tokens)
    return found


def _compare_with_lead(
    rows: SummaryRows, records: Sequence[Mapping[str, Any]], lead_words: int
) -> dict[str, Any]:
    assert rows.pairs.summaries is not None, "there is something to compare with"
    beginnings = [lead(document, lead_words) for document in rows.pairs.documents]
    baseline = score_summaries(beginnings, rows.pairs.summaries)
    model = _rouge(records)
    differences = {}
    for name in ROUGE:
        mean, lower, upper = paired_difference(model[name], baseline[name])
        differences[name] = {"mean": mean, "interval": [lower, upper]}
    return {
        "lead_words": lead_words,
        "lead": {name: _mean(baseline[name]) for name in ROUGE} | _words(beginnings),
        "model": {name: _mean(model[name]) for name in ROUGE}
        | _words([record["prediction"] for record in records]),
        "difference": differences,
    }


def _column(records: Sequence[Mapping[str, Any]], name: str) -> Values:
    return np.array([record[name] for record in records], dtype=np.float64)


def _rouge(records: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    return {name: _column([record["rouge"] for record in records], name) for name in ROUGE}


def _target_tokens(rows: SummaryRows) -> Values:
    assert rows.targets is not None, "asked of rows with summaries"
    return np.array([len(target) for target in rows.targets], dtype=np.float64)


def _mean(values: Values) -> dict[str, Any]:
    return {"mean": float(values.mean()), "interval": list(bootstrap_interval(values))}


def _ratio(sums: Values, tokens: Values) -> dict[str, Any]:
    interval = bootstrap_ratio_interval(sums, tokens)
    return {"mean": float(sums.sum() / tokens.sum()), "interval": list(interval)}


def _words(texts: Sequence[str]) -> dict[str, float]:
    return {"words": float(np.mean([len(text.split()) for text in texts]))}


def tables_of(results: Mapping[str, Any]) -> list[ResultTable]:
    """Return the table of ROUGE, with LEAD, and that of likelihoods.

    Args:
        results: Of a run; each seed has `details_of` for each set of rows.
    """
    return tables_of_models(
        [(f"seed {seed['seed']}", seed["details"]) for seed in results["seeds"]]
    )


def tables_of_models(
    models: Sequence[tuple[str, Mapping[str, dict[str, Any]]]],
) -> list[ResultTable]:
    """Return the same tables of some models.

    Args:
        models: Title, and `details_of` by the name of the rows; all of the same rows.
    """
    rouge: list[tuple[str, ...]] = []
    likelihood: list[tuple[str, ...]] = []
    for name in dict.fromkeys(name for _, sets in models for name in sets):
        found = [(title, sets[name]) for title, sets in models]
        rouge += _rouge_rows(name, [(title, d["rouge"]) for title, d in found if "rouge" in d])
        likelihood += [
            (name, title, *_nll_cells(detail[NLL])) for title, detail in found if NLL in detail
        ]
    tables = []
    if rouge:
        columns = ("data", "summary", *(_TITLES[name] for name in ROUGE), "words")
        tables.append(
            ResultTable("ROUGE: F-measure in percent [95 % over documents]", columns, rouge)
        )
    if likelihood:
        columns = ("data", "model", "given its document", "given another", "another − its own")
        tables.append(
            ResultTable("NLL of the reference, nats per token [95 %]", columns, likelihood)
        )
    return tables


def _rouge_rows(name: str, found: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, ...]]:
    """Rows of one set: LEAD once, then each seed, alone and against LEAD."""
    rows: list[tuple[str, ...]] = []
    for title, detail in found:
        if not rows:
            rows.append(_rouge_row(name, f"LEAD-{detail['lead_words']}", detail["lead"]))
        rows.append(_rouge_row(name, title, detail["model"]))
        rows.append(_rouge_row(name, f"{title} − LEAD", detail["difference"], sign="+"))
    return rows


def _rouge_row(name: str, title: str, scores: dict[str, Any], sign: str = "") -> tuple[str, ...]:
    cells = (_cell(scores[score], f"{sign}.1f", 100) for score in ROUGE)
    return (name, title, *cells, f"{scores['words']:.0f}" if "words" in scores else "")


def _nll_cells(found: dict[str, Any]) -> tuple[str, str, str]:
    own, other, difference = (
        _cell(found[name], form) if name in found else ""
        for name, form in (
            ("own_document", ".3f"),
            ("other_document", ".3f"),
            ("difference", "+.4f"),
        )
    )
    return own, other, difference


def _cell(found: dict[str, Any], form: str, scale: float = 1) -> str:
    mean, lower, upper = (scale * value for value in (found["mean"], *found["interval"]))
    return f"{mean:{form}} [{lower:{form}}, {upper:{form}}]"
