"""Classification before it is trained: files, labels, words, scores, predictions."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from finetune_models import write_sst2
from transformers import AutoTokenizer

from finetune.classification.examples import encode, find_labels, read_examples, targets_of
from finetune.classification.label_words import encode_words, word_scores
from finetune.classification.recipe import Classification
from finetune.classification.tasks import GLUE, Task, find_task
from finetune.errors import FinetuneError
from finetune.exported import load_tokenizer
from spade_model.huggingface import SpadeForConditionalGeneration

# The first lines of GLUE's own files, with made-up rows.
LAYOUTS = {
    "cola": "gj04\t0\t*\tThey drank the pub.\ngj04\t1\t\tBill left.\n",
    "sst2": "sentence\tlabel\nhide \"new\" secretions \t0\na '' joy\t1\n",
    "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said.\tSo he said.\n"
    '0\t9\t10\t"One\tTwo"\n',
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    "\n0\tmain\tMSR\t2012\t1\tnone\tnone\tA plane.\tA jet.\t5.000\n"
    "1\tmain\tMSR\t2012\t4\tnone\tnone\tA man.\tA dog.\t0.250\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tHow so?\t1\n"
    "4\t5\t6\ta row cut short\n7\t8\t9\tWhy?\tWhen?\t0\n",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\t1n\tfiction\t(\t(\t(\t(\tIt rains.\tIt is wet.\tentailment\tentailment\n"
    "1\t1\t1c\tfiction\t(\t(\t(\t(\tIt rains.\tIt is dry.\tneutral\tcontradiction\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\tWho?\tNobody.\tnot_entailment\n"
    "1\tWhen?\tIn May.\tentailment\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is dry.\tnot_entailment\n"
    "1\tIt rains.\tIt is wet.\tentailment\n",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\tI stuck a pin.\tIt stuck.\t1\n"
    "1\tHe ran.\tShe ran.\t0\n",
}
TARGETS = {
    **{"cola": [0, 1], "sst2": [0, 1], "mrpc": [1, 0], "stsb": [5.0, 0.25], "qqp": [1, 0]},
    **{"mnli": [1, 0], "qnli": [1, 0], "rte": [1, 0], "wnli": [1, 0]},
}
WITHOUT_LABELS = {
    "cola": "index\tsentence\n0\tBill drank.\n",
    "sst2": "index\tsentence\n0\tuneasy mishmash\n",
    "mrpc": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tHe said.\tShe said.\n",
    "qqp": "id\tquestion1\tquestion2\n0\tHow?\tWhy?\n",
    "rte": "index\tsentence1\tsentence2\n0\tIt rains.\tIt pours.\n",
}


def test_all_tasks_of_glue_are_described() -> None:
    assert set(LAYOUTS) == set(GLUE) == set(TARGETS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_glues_own_files_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(LAYOUTS[name], encoding="utf-8")
    task = find_task(name)
    examples = read_examples(path, task, labelled=True)
    targets = targets_of(find_labels(task, examples), examples)
    assert targets is not None
    assert targets.tolist() == TARGETS[name]
    assert {len(text) for text in examples.texts} == {len(task.text_columns)}
    assert examples.short_rows == (1 if name == "qqp" else 0)


@pytest.mark.parametrize("name", WITHOUT_LABELS)
def test_glues_test_files_have_no_labels(name: str, tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    path.write_text(WITHOUT_LABELS[name], encoding="utf-8")
    examples = read_examples(path, find_task(name), labelled=False)
    assert examples.labels is None
    assert len(examples.texts) == 1
    assert "\t" not in examples.texts[0][0]
    with pytest.raises(FinetuneError, match=find_task(name).label_column):
        read_examples(path, find_task(name), labelled=True)


def test_tasks_that_make_no_sense_are_refused() -> None:
    assert find_task("SST-2") is GLUE["sst2"]
    for make, complaint in (
        (lambda: find_task("squad"), "task 'squad' is unknown: use cola"),
        (lambda: Task(("a", "a"), "b"), "both text columns are 'a'"),
        (lambda: Task(("a",), "a"), "label column 'a' is a text column"),
        (lambda: Task(("a",), "b", ("pearson",)), "metric 'pearson' is none for classes"),
        (lambda: Task(("a",), "b", numbers=True), "metric 'accuracy' is none for numbers"),
    ):
        with pytest.raises(FinetuneError, match=complaint):
            make()


@pytest.mark.parametrize(
    ("labels", "task", "complaint"),
    [
        (["x", "x"], Task(("t",), "l"), "all labels are 'x'"),
        (["x", "y", "z"], Task(("t",), "l", ("f1",)), "'f1' is for two classes"),
        (["0", "2"], Task(("t",), "l", labels=("0", "1")), "line 3: label '2' is unknown; known"),
        (["0", "x"], Task(("t",), "l", ("pearson",), numbers=True), "line 3: label 'x' is no num"),
        (["0", "nan"], Task(("t",), "l", ("pearson",), numbers=True), "line 3: .* is no number"),
    ],
)
def test_labels_that_make_no_sense_are_refused(
    tmp_path: Path, labels: list[str], task: Task, complaint: str
) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("t\tl\n" + "".join(f"text\t{label}\n" for label in labels))
    examples = read_examples(path, task, labelled=True)
    with pytest.raises(FinetuneError, match=complaint):
        targets_of(find_labels(task, examples), examples)


def test_texts_become_ids_whole_or_cut(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    long = "ban der lin " * 300
    rows = [("bright </s> <pad> cold", "x"), ("", "y"), (long, "warm")]
    path.write_text("".join(json.dumps({"a": a, "b": b, "l": a}) + "\n" for a, b in rows))
    plain = AutoTokenizer.from_pretrained(exported)
    used = load_tokenizer(exported)
    examples = read_examples(path, Task(("a", "b"), "l"), labelled=True)
    whole = encode(examples, None, used, None)
    ids = [whole[index]["input_ids"].tolist() for index in range(3)]
    assert whole.cut_rows == 0
    # What looks like a special token is text: only the two ends are ends.
    assert [row.count(plain.eos_token_id) for row in ids] == [2, 2, 2]
    assert plain.pad_token_id not in ids[0]
    assert plain.decode(ids[1], skip_special_tokens=True) == "y"
    assert ids[2] == plain(long, "warm").input_ids
    cut = encode(examples, None, used, 40)
    assert cut.cut_rows == 1
    assert [len(cut[index]["input_ids"]) for index in range(3)] == [len(ids[0]), len(ids[1]), 40]
    short = len(plain("warm").input_ids)
    assert cut[2]["input_ids"].tolist()[-short:] == ids[2][-short:], "the longer text is cut"


def test_words_are_scored_by_their_likelihood(exported: Path) -> None:
    """The same as the loss of writing each word, whatever else is in the batch."""
    model = SpadeForConditionalGeneration.from_pretrained(exported).eval()
    tokenizer = load_tokenizer(exported)
    names = ["negative", "positive", "lovely warm"]
    words = encode_words(names, tokenizer)
    texts = ["ban der", "a bright and cold lin", "s"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        scores = word_scores(model, batch.input_ids, batch.attention_mask, words)
        for row, text in enumerate(texts):
            for column, name in enumerate(names):
                target = tokenizer(name, return_tensors="pt").input_ids
                source = tokenizer(text, return_tensors="pt").input_ids
                loss = model(input_ids=source, labels=target).loss * target.shape[1]
                assert scores[row, column].item() == pytest.approx(-loss.item(), abs=1e-4)
    assert words[0, -1] == tokenizer.eos_token_id or words[0, -1] == -100
    for wrong in (["same", "same"], ["", "x"]):
        with pytest.raises(FinetuneError, match="no text of its own"):
            encode_words(wrong, tokenizer)


def make(exported: Path, folder: Path, task: Task, **options: Any) -> Classification:
    paths = [write_sst2(folder / f"{n}.tsv", 8, seed) for seed, n in enumerate(("train", "dev"))]
    return Classification(exported, task, *paths, **options)


@pytest.mark.parametrize("mode", ["head", "text"])
def test_predictions_are_written_as_glue_takes_them(
    exported: Path, tmp_path: Path, mode: Any
) -> None:
    recipe = make(exported, tmp_path, GLUE["sst2"], mode=mode)
    scores = np.log(np.array([[0.9, 0.1], [0.2, 0.8]] * 4))
    assert recipe.measure(recipe.validation, scores) == {"accuracy": 1.0}
    recipe.write_predictions(tmp_path, "dev", recipe.validation, scores)
    with (tmp_path / "predictions-dev.tsv").open(newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    assert rows == [["index", "prediction"], *([str(n), str(n % 2)] for n in range(8))]
    records = [json.loads(s) for s in (tmp_path / "predictions-dev.jsonl").open()]
    assert records[1] == {
        "index": 1,
        "prediction": "1",
        "probabilities": {"0": 0.2, "1": 0.8},
        "label": "1",
    }


def test_numbers_are_estimated_in_both_modes(exported: Path, tmp_path: Path) -> None:
    numbers = Task(("sentence",), "label", ("pearson", "spearman"), numbers=True)
    head = make(exported, tmp_path, numbers)
    outputs = np.array([[0.1], [0.9]] * 4, dtype=np.float32)
    expected = {"pearson": 1.0, "spearman": 1.0, "score": 1.0}
    assert head.measure(head.validation, outputs) == pytest.approx(expected)
    assert head.score == "score"
    assert head.make_model(None).config.problem_type == "regression"
    text = make(exported, tmp_path, numbers, mode="text")
    batch = text.collate([text.training[0], text.training[1]])
    assert batch["labels"].tolist() == [0, 1]
    halves = np.log(np.array([[0.75, 0.25], [0.5, 0.5]] * 4))
    text.write_predictions(tmp_path, "n", text.validation, halves)
    records = [json.loads(s) for s in (tmp_path / "predictions-n.jsonl").open()]
    assert [record["prediction"] for record in records[:2]] == [0.25, 0.5]


def test_a_folder_that_is_no_model_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()

    def complaint(**options: Any) -> str:
        with pytest.raises(FinetuneError) as caught:
            make(folder, tmp_path, GLUE["sst2"], **options)
        return str(caught.value)

    assert "no config.json" in complaint()
    (folder / "config.json").write_text("{")
    assert "not JSON" in complaint()
    (folder / "config.json").write_text('{"model_type": "t5"}')
    assert "model_type is 't5'" in complaint()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "spade", "num_encoder_layers": 2, "num_decoder_layers": 0})
    )
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    assert "no *.safetensors" in complaint()
    (folder / "model.safetensors").write_bytes(b"")
    assert "is no encoder-decoder" in complaint(mode="text")
    assert "no tokenizer.json" in complaint()
    with pytest.raises(FinetuneError, match="mode is 'tail'"):
        make(exported, tmp_path, GLUE["sst2"], mode="tail")
    dev = write_sst2(tmp_path / "validation.tsv", 4, 0)
    with pytest.raises(FinetuneError, match="called 'validation' already"):
        make(exported, tmp_path, GLUE["sst2"], tests=[dev])


REAL_DATA = os.environ.get("SPADE_GLUE_DATA")


@pytest.mark.skipif(REAL_DATA is None, reason="SPADE_GLUE_DATA names no folder with GLUE's data")
@pytest.mark.parametrize(
    ("name", "train", "rows"),
    [("sst2", "sst2/train.tsv", 6920), ("mrpc", "mrpc/msr_paraphrase_train.txt", 4076)],
)
def test_real_files_are_read(name: str, train: str, rows: int) -> None:
    task = find_task(name)
    if name == "sst2":
        task = dataclasses.replace(task, columns=("sentence", "label"))
    examples = read_examples(Path(str(REAL_DATA)) / train, task, labelled=True)
    targets = targets_of(task, examples)
    assert targets is not None
    assert (len(targets), set(targets.tolist())) == (rows, {0, 1})
    assert all(text.strip() for texts in examples.texts for text in texts)
