"""Summarization before it is trained: files, cuts, sentences, ROUGE, LEAD, likelihoods, search."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("rouge_score")

from finetune_models import write_summaries
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.exported import load_tokenizer
from finetune.summarization.baselines import lead, median_words
from finetune.summarization.documents import Columns, SummaryRows, encode, read_pairs
from finetune.summarization.evaluation import Examiner, Questions, derangement, length_batches
from finetune.summarization.recipe import Summarization, SummarySettings
from finetune.summarization.rouge import score_summaries, split_sentences
from finetune.summarization.scores import details_of, metrics_of, tables_of
from finetune.summarization.writing import WritingSettings
from spade_model.huggingface import SpadeForConditionalGeneration

TEXTS = st.text(st.sampled_from("ab .!?\n\t\"')”é"), max_size=60)


@given(TEXTS)
def test_sentences_are_the_text_without_its_ends(text: str) -> None:
    sentences = split_sentences(text)
    assert " ".join(sentences).split() == text.split()
    for sentence in sentences:
        assert sentence == sentence.strip() != ""
        assert "\n" not in sentence
        assert split_sentences(sentence) == [sentence]


def test_sentences_end_where_the_rule_says() -> None:
    text = 'One is 2.5 high. Two ("so!") is\nhigher… "Three?" asked e.g. he.Four'
    assert split_sentences(text) == [
        *("One is 2.5 high.", 'Two ("so!") is', 'higher… "Three?"', "asked e.g.", "he.Four"),
    ]


def test_rouge_is_what_it_is_defined_as() -> None:
    scores = score_summaries(
        ["the cat sat.", "cat the sat", "", "running cats"],
        ["the cat sat.", "the cat sat down", "the cat", "a cat runs"],
    )
    # By hand: shared words or pairs, 2 * shared / (words of both).
    assert scores["rouge1"] == pytest.approx([1, 6 / 7, 0, 4 / 5])
    assert scores["rouge2"] == pytest.approx([1, 0, 0, 0])
    assert scores["rougeLsum"] == pytest.approx([1, 4 / 7, 0, 2 / 5])
    assert all(values.dtype == np.float64 for values in scores.values())
    # Sentences in another order are as good for ROUGE-Lsum; within a sentence order counts.
    one, other = "alpha beta gamma. delta epsilon zeta.", "delta epsilon zeta. alpha beta gamma."
    assert score_summaries([one], [other])["rougeLsum"] == pytest.approx([1])
    within = [text.replace(". ", " ") for text in (one, other)]
    assert score_summaries(within[:1], within[1:])["rougeLsum"] == pytest.approx([0.5])
    with pytest.raises(ValueError, match="shorter"):
        score_summaries(["one"], [])


@given(TEXTS, st.integers(0, 12))
def test_lead_is_the_beginning_as_it_is(text: str, words: int) -> None:
    beginning = lead(text, words)
    assert text.startswith(beginning)
    assert beginning.split() == text.split()[:words]
    assert beginning == beginning.rstrip()


def test_lead_has_the_median_length() -> None:
    assert median_words(["a", "a b c", "a b c d e f"]) == 3
    assert median_words([" "]) == 1


@given(st.integers(2, 60))
def test_each_document_is_the_wrong_one_of_one_other_summary(rows: int) -> None:
    others = derangement(rows)
    assert sorted(others) == list(range(rows))
    assert all(others != np.arange(rows))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=80), st.integers(1, 200))
def test_batches_hold_each_row_once_and_no_more_than_they_may(
    lengths: list[int], most: int
) -> None:
    batches = length_batches(lengths, most)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= most
        assert all(lengths[row] <= min(lengths[other] for other in batch) for row in following)


def write(path: Path, *records: Any) -> Path:
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)
    return path


def test_files_are_read_and_cut_as_it_is_said(exported: Path, tmp_path: Path) -> None:
    long, short = "ban der lin " * 30, "bright </s> <pad> gol"
    path = write(
        tmp_path / "t.jsonl.gz",
        {"text": long, "abstract": "lovely " * 40, "key": 7, "other": None},
        {"text": short, "abstract": "vile", "key": 8, "other": None},
    )
    pairs = read_pairs(path, Columns("text", "abstract", "key"), with_summaries=True)
    assert pairs.identifiers == ["7", "8"]
    assert pairs.documents == [long, short]
    tokenizer = load_tokenizer(exported)
    end = tokenizer.eos_token_id
    options: dict[str, Any] = {"prefix": "warm: ", "max_target_tokens": 16}
    whole = encode(pairs, tokenizer, max_input_tokens=None, **options)
    assert whole.cut_inputs == 0
    assert tokenizer.decode(whole.inputs[0], skip_special_tokens=True).strip() == (
        f"warm: {long}".strip()
    )
    assert [row.tolist().count(end) for row in whole.inputs] == [1, 1], "the text's own is text"
    cut = encode(pairs, tokenizer, max_input_tokens=32, **options)
    assert (cut.cut_inputs, cut.cut_targets) == (1, 1)
    assert cut.inputs[0].tolist() == [*whole.inputs[0][:31].tolist(), end]
    assert cut.inputs[1].tolist() == whole.inputs[1].tolist()
    assert cut.targets is not None
    assert len(cut.targets[0]) == 16
    assert end not in cut.targets[0], "nobody shall learn to end there"
    assert cut.targets[1][-1] == end
    said: list[str] = []
    settings = SummarySettings(columns=Columns("text", "abstract", "key"), max_input_tokens=32)
    recipe = Summarization(exported, path, path, settings=settings, say=said.append)
    longest = len(tokenizer(long).input_ids)
    assert said[0] == (
        f"training: 2 documents of {path}, the longest of {longest} tokens, 1 cut to 32; "
        "1 summaries cut to the decoder's 16"
    )
    assert recipe.describe()["cut"]["training"] == {"documents": 1, "summaries": 1}
    assert recipe.describe()["lead_words"] == 20


def test_damaged_files_are_refused_with_the_line(exported: Path, tmp_path: Path) -> None:
    good = {"document": "bright", "summary": "warm"}
    train = write(tmp_path / "train.jsonl", good)

    def complaint(*records: Any, **options: Any) -> str:
        path = write(tmp_path / "bad.jsonl", *records)
        with pytest.raises(FinetuneError) as caught:
            Summarization(exported, path, train, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "line 2: column 'summary' is empty" in complaint(good, {**good, "summary": " \n"})
    assert "line 2: no column 'document'" in complaint(good, {"summary": "x"})
    assert "line 1: column 'summary' is null" in complaint({**good, "summary": None})
    assert "line 2: column 'id' is in some rows" in complaint(good, {**good, "id": "a"})
    assert "line 1: JSON, but no object" in complaint("text")
    named = {"settings": SummarySettings(columns=Columns("text"))}
    assert "no column 'text' (found: document, summary)" in complaint(good, **named)
    assert "called 'validation' already" in complaint(good, tests=[tmp_path / "validation.jsonl"])
    too_long = {"settings": SummarySettings(writing=WritingSettings(max_summary_tokens=17))}
    assert "the model's decoder takes 16 at most" in complaint(good, **too_long)


def test_settings_that_make_no_sense_are_refused() -> None:
    makes: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: Columns("a", "a"), "three different ones"),
        (lambda: WritingSettings(beams=0), "beams is 0"),
        (lambda: WritingSettings(length_penalty=float("nan")), "length_penalty is nan"),
        (lambda: WritingSettings(max_summary_tokens=0), "max_summary_tokens is 0"),
        (lambda: SummarySettings(choose_by="bleu"), "choose_by is 'bleu'"),  # type: ignore[arg-type]
        (lambda: SummarySettings(max_input_tokens=2), "max_input_tokens is 2: use 16 or more"),
        (lambda: SummarySettings(lead_words=0), "lead_words is 0"),
    )
    for make, complaint in makes:
        with pytest.raises(FinetuneError, match=complaint):
            make()


@pytest.fixture(scope="module")
def model(exported: Path) -> SpadeForConditionalGeneration:
    return SpadeForConditionalGeneration.from_pretrained(exported).eval()


@pytest.fixture(scope="module")
def rows(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> SummaryRows:
    path = write_summaries(tmp_path_factory.mktemp("summaries") / "rows.jsonl", 7, seed=0)
    pairs = read_pairs(path, Columns(), with_summaries=True)
    return encode(
        pairs, load_tokenizer(exported), prefix="", max_input_tokens=None, max_target_tokens=16
    )


def test_a_model_is_asked_the_same_in_any_batch(
    exported: Path, model: SpadeForConditionalGeneration, rows: SummaryRows
) -> None:
    """Likelihoods are the model's own losses, texts those it writes of one document alone."""
    tokenizer = load_tokenizer(exported)
    settings = WritingSettings(beams=3, min_summary_tokens=4, max_summary_tokens=9)
    writing = settings.for_model(model.config)
    examiner = Examiner(model, tokenizer, 200, lambda line: None)
    assert len(length_batches([len(row) + 16 for row in rows.inputs], 200)) not in (1, 7)
    records = examiner.examine(rows, Questions(shuffled=True, writing=writing))
    others = derangement(len(rows))
    assert rows.targets is not None
    for index, record in enumerate(records):
        labels = torch.from_numpy(rows.targets[index]).long()[None]
        for name, document in (("nll", index), ("shuffled_nll", int(others[index]))):
            ids = torch.from_numpy(rows.inputs[document]).long()[None]
            with torch.no_grad():
                loss = model(input_ids=ids, labels=labels).loss.item() * labels.shape[1]
            assert record[name] == pytest.approx(loss, abs=1e-3)
        ids = torch.from_numpy(rows.inputs[index]).long()[None]
        tokens = model.generate(ids, num_beams=3, min_new_tokens=4, max_new_tokens=9)
        assert record["prediction"] == tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
    only_scored = examiner.examine(rows, Questions(shuffled=False, writing=None))
    assert only_scored == [{"nll": pytest.approx(record["nll"])} for record in records]


def test_the_search_obeys(
    exported: Path, model: SpadeForConditionalGeneration, rows: SummaryRows
) -> None:
    tokenizer = load_tokenizer(exported)

    def lengths(**options: Any) -> list[list[int]]:
        examiner = Examiner(model, tokenizer, 10_000, lambda line: None)
        writing = WritingSettings(**options).for_model(model.config)
        seen: list[list[int]] = []
        plain = model.generate

        def remember(**arguments: Any) -> Any:
            assert arguments["generation_config"].use_cache
            tokens = plain(**arguments)
            seen.extend(tokens.tolist())
            return tokens

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "generate", remember)
            examiner.examine(rows, Questions(shuffled=False, writing=writing))
        return seen

    free = lengths(beams=2)
    assert {len(row) for row in free} == {17}, "an unlearned model does not end"
    assert any(len(set(row[1:])) < 10 for row in free), "and says the same again"
    strict = lengths(beams=2, no_repeat_ngram=1, max_summary_tokens=10)
    assert all(len(row) == 11 and len(set(row[1:])) == 10 for row in strict)


def test_details_hold_the_means_and_their_differences(rows: SummaryRows) -> None:
    generator = np.random.default_rng(0)
    assert rows.pairs.summaries is not None
    assert rows.targets is not None
    texts = rows.pairs.summaries[:3] + ["it is no word"] * 4
    scores = score_summaries(texts, rows.pairs.summaries)
    records = [
        {
            "nll": float(generator.uniform(5, 9)),
            "shuffled_nll": float(generator.uniform(9, 12)),
            "prediction": text,
            "rouge": {name: float(values[index]) for name, values in scores.items()},
        }
        for index, text in enumerate(texts)
    ]
    found = metrics_of(rows, records)
    details = details_of(rows, records, lead_words=3)
    assert details["documents"] == 7
    for name in scores:
        parts = {side: details["rouge"][side][name] for side in ("lead", "model", "difference")}
        assert parts["model"]["mean"] == pytest.approx(found[name])
        assert parts["difference"]["mean"] == pytest.approx(
            parts["model"]["mean"] - parts["lead"]["mean"]
        )
        for part in parts.values():
            assert part["interval"][0] <= part["mean"] <= part["interval"][1]
    tokens = sum(map(len, rows.targets))
    nll = details["nll_per_token"]
    assert nll["own_document"]["mean"] == pytest.approx(sum(r["nll"] for r in records) / tokens)
    assert nll["other_document"]["mean"] == pytest.approx(found["nll_per_token_shuffled"])
    assert nll["difference"]["interval"][0] > 0, "each one is less likely given another document"
    results = {"seeds": [{"seed": 0, "details": {"dev": details}}] * 2}
    rouge, likelihood = tables_of(results)
    assert [row[1] for row in rouge.rows] == ["LEAD-3", *["seed 0", "seed 0 − LEAD"] * 2]
    assert len(likelihood.rows) == 2
    for table in (rouge, likelihood):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    assert tables_of({"seeds": [{"seed": 0, "details": {}}]}) == []


REAL_DATA = os.environ.get("SPADE_SUMPUBMED_DATA")


@pytest.mark.skipif(REAL_DATA is None, reason="SPADE_SUMPUBMED_DATA names no folder with SumPubMed")
def test_lead_of_real_articles_scores_what_is_known() -> None:
    pairs = read_pairs(Path(str(REAL_DATA)) / "test.jsonl.gz", Columns(), with_summaries=True)
    assert pairs.summaries is not None
    scores = score_summaries([lead(text, 270) for text in pairs.documents], pairs.summaries)
    means = {name: round(100 * float(values.mean()), 1) for name, values in scores.items()}
    assert means == {"rouge1": 42.8, "rouge2": 11.6, "rougeLsum": 39.7}
