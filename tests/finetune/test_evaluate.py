"""Models measured on files without training: classifiers and exported encoder-decoders."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from finetune_models import sentences, write_sst2

from data_pipeline.building.build import build_dataset
from data_pipeline.tokenization.segments import SEGMENT_PATTERN
from data_pipeline.tokenization.tokenizer import DocumentTokenizer
from finetune.exported import copy_tokenizer, load_tokenizer
from launch.cli import run as run_command
from pretrain.data_settings import DataSettings
from pretrain.evaluation.evaluation import build_evaluation
from pretrain.evaluation.exported import evaluate_export
from pretrain.evaluation.settings import EvaluationSettings
from pretrain.ranks import Ranks
from pretrain.sample_groups import make_sample_group
from spade_model import SpadeForSeq2Seq
from spade_model.huggingface import (
    SpadeForConditionalGeneration,
    SpadeForSequenceClassification,
    SpadePretrainedConfig,
    SpadeTokenizer,
)

INPUT_TOKENS = 64
OBJECTIVE = {"kind": "span_corruption", "noise_density": 0.2, "mean_span_tokens": 4.0}


def measure(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert run_command(["evaluate", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run_command(["evaluate", *map(str, arguments)]) == 1
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def classifier(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `spade finetune classify` leaves it; its labels are not in the task's order."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    SpadeForSequenceClassification.from_pretrained(
        exported,
        problem_type="single_label_classification",
        id2label={0: "1", 1: "0"},
        label2id={"1": 0, "0": 1},
    ).save_pretrained(folder)
    copy_tokenizer(exported, folder)
    return folder


def test_a_classifier_is_measured_without_training(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row's prediction is the model's own, whatever the batch; labels go by name."""
    known = write_sst2(tmp_path / "dev.tsv", 37, seed=2)
    unknown = write_sst2(tmp_path / "test.tsv", 5, seed=3, labelled=False)
    out = tmp_path / "predictions"
    files = ("--test", known, "--test", unknown)
    found = measure(capsys, "classify", classifier, "--task", "sst2", *files, "--out", out)
    model = SpadeForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = load_tokenizer(classifier)
    rows = [line.split("\t") for line in known.read_text().splitlines()[1:]]
    expected = []
    for text, _ in rows:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        expected.append(model.config.id2label[int(logits.argmax())])
    records = [json.loads(line) for line in (out / "predictions-dev.jsonl").open()]
    assert [record["prediction"] for record in records] == expected
    accuracy = sum(p == label for p, (_, label) in zip(expected, rows, strict=True)) / len(rows)
    assert found["dev"]["metrics"] == {"accuracy": pytest.approx(accuracy)}
    assert records[0]["prediction"] == max(
        records[0]["probabilities"], key=records[0]["probabilities"].__getitem__
    )
    assert list(records[0]["probabilities"]) == ["0", "1"], "in the order of the task"
    low, high = found["dev"]["accuracy_interval"]
    assert low <= accuracy <= high
    assert (found["test"]["rows"], found["test"]["metrics"]) == (5, {})
    assert len((out / "predictions-test.tsv").read_text().splitlines()) == 6
    own = ("--text-column", "sentence", "--label-column", "label", "--metric", "f1")
    other = measure(capsys, "classify", classifier, *own, "--test", known, "--batch-size", "2")
    assert list(other["dev"]["metrics"]) == ["f1"]


def test_what_is_no_classifier_of_the_task_is_refused(
    exported: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_sst2(tmp_path / "dev.tsv", 4, seed=2)
    said = refusal(capsys, "classify", exported, "--task", "sst2", "--test", rows)
    assert "architectures is SpadeForConditionalGeneration" in said
    said = refusal(capsys, "classify", classifier, "--task", "rte", "--test", rows)
    assert "its labels are '1', '0' and those of the task 'entailment'" in said
    said = refusal(capsys, "classify", classifier, "--task", "stsb", "--test", rows)
    assert "predicts classes and the task has numbers" in said
    options = ("--test", rows, "--precision", "int8")
    assert "use float32 or bfloat16" in refusal(
        capsys, "classify", classifier, "--task", "sst2", *options
    )


@pytest.fixture(scope="module")
def denoiser(prose_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, as far as it is read here, of a model that has learned nothing."""
    folder = tmp_path_factory.mktemp("denoiser")
    tokenizer = DocumentTokenizer.load(prose_data / "tokenizer")
    SpadeTokenizer.from_sentencepiece(
        prose_data / "tokenizer" / "spiece.model",
        sentinels=tokenizer.sentinel_count,
        segment_pattern=SEGMENT_PATTERN,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = SpadeForConditionalGeneration(
        SpadePretrainedConfig(
            vocab_size=tokenizer.vocab_size,
            d_model=32,
            num_heads=2,
            head_dim=16,
            d_ff=64,
            num_encoder_layers=2,
            num_decoder_layers=1,
            state_dim=8,
            local_radius_tokens=7,
            max_target_length_tokens=64,
        )
    )
    with torch.no_grad():
        model.model.shared.weight.mul_(20)
    model.save_pretrained(folder)
    facts = ("vocab_size", "piece_count", "sentinel_count")
    ids = ("pad_token_id", "eos_token_id", "unk_token_id")
    provenance = {
        "format": "spade-export",
        "fingerprints": {"tokenizer": tokenizer.fingerprint},
        "heldout": {"eval/heldout/loss": 1.25},
        "tokenizer": {name: getattr(tokenizer, name) for name in (*facts, *ids)}
        | {"segment_pattern": SEGMENT_PATTERN},
        "objective": {
            "input_length_tokens": INPUT_TOKENS,
            "target_length_tokens": 0,
            **OBJECTIVE,
        },
        "windows": {"windows": "concat", "document_boundaries": True, "bucket_samples": 64},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_an_exports_loss_is_that_of_pretraining(
    denoiser: Path, prose_corpus: Path, prose_data: Path, tmp_path: Path
) -> None:
    """The same windows, masks and sums as `Evaluation` makes of a run's held-out data."""
    found = evaluate_export(denoiser, [prose_corpus], samples=10, batch_size=3, seed=5)
    tokenizer = DocumentTokenizer.load(prose_data / "tokenizer")
    built = tmp_path / "built"
    build_dataset([prose_corpus], tokenizer, built, heldout_fraction=0.0, keep_duplicates=True)
    data = DataSettings.model_validate_json(
        json.dumps(
            {
                "train": str(built / "train"),
                "heldout": str(built / "train"),
                "tokenizer": str(prose_data / "tokenizer"),
                "input_length_tokens": INPUT_TOKENS,
                "objective": OBJECTIVE,
                "document_boundaries": True,
            }
        )
    )
    ranks = Ranks(0, 1, 0, "test")
    evaluation = build_evaluation(
        data,
        EvaluationSettings(samples=10),
        data.stream_settings(5),
        micro_batch_size=3,
        baselines_file=tmp_path / "unigram.json",
        ranks=ranks,
        group=make_sample_group(ranks, 1),
        device=torch.device("cpu"),
    )
    wrapped = SpadeForConditionalGeneration.from_pretrained(denoiser)
    model = SpadeForSeq2Seq(wrapped.config.to_spade_config())
    model.load_state_dict(wrapped.state_dict())
    expected = evaluation.run(model, lambda: False)
    evaluation.close()
    assert expected is not None
    for name in ("loss", "text_loss", "bits_per_byte"):
        assert found.metrics[name] == expected[f"eval/heldout/{name}"]
    assert math.fsum(found.sample_nats) / found.sample_targets.sum() == found.metrics["loss"]


def test_the_command_measures_an_export(
    denoiser: Path, exported: Path, prose_corpus: Path, tmp_path: Path, capsys: Any
) -> None:
    options = (prose_corpus, "--samples", "12")
    found = measure(capsys, "denoise", denoiser, *options)
    low, high = found["loss_interval"]
    assert low < found["loss"] < high
    assert (found["samples"], found["objective"]) == (12, "span_corruption")
    assert found["heldout_loss_of_the_run"] == 1.25
    again = measure(capsys, "denoise", denoiser, *options, "--batch-size", "5")
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-6)
    other = measure(capsys, "denoise", denoiser, *options, "--seed", "1")
    assert other["loss"] != pytest.approx(found["loss"], rel=1e-6)
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert "a window of the model" in refusal(capsys, "denoise", denoiser, short)
    assert "no provenance.json" in refusal(capsys, "denoise", exported, prose_corpus)


@pytest.mark.slow
def test_processes_that_share_windows_find_the_same(
    denoiser: Path, prose_corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The command starts them; windows are packed with documents that do not see each other."""
    words = ["evaluate", "denoise", str(denoiser), str(prose_corpus), "--samples", "6", "--json"]
    found = []
    for more in ((), ("--context", "3")):
        assert run_command([*words, *more]) == 0
        found.append(json.loads(capfd.readouterr().out))
    alone, shared = found
    assert shared.keys() == alone.keys()
    for name, value in alone.items():
        expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-5)
        assert shared[name] == expected, name


@pytest.mark.slow
def test_processes_that_share_documents_write_the_same(
    exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where a document has fewer tokens than there are processes."""
    pytest.importorskip("rouge_score")
    test = tmp_path / "test.jsonl"
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"document": "b"}) + "\n")
    rows = [(f"{text} {text}", text[:20]) for text, _ in sentences(5, seed=4)]
    test.write_text("".join(json.dumps({"document": d, "summary": s}) + "\n" for d, s in rows))
    words = ["evaluate", "summarize", str(exported), f"--test={test}", f"--test={short}"]
    words += ["--beams=2", "--json"]
    found, written = [], []
    for more in ((), ("--context=3",)):
        out = tmp_path / f"written-{len(found)}"
        assert run_command([*words, f"--out={out}", *more]) == 0
        found.append(json.loads(capfd.readouterr().out)["test"]["metrics"])
        lines = [line for path in sorted(out.glob("*.jsonl")) for line in path.open()]
        written.append([json.loads(line)["prediction"] for line in lines])
    assert written[0] == written[1]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_windows_that_cannot_be_shared_are_refused_before_anything_starts(
    denoiser: Path, prose_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, "denoise", denoiser, prose_corpus, "--context", "65")
    assert "64 tokens cannot be cut into context=65 parts" in said
    full = tmp_path / "full"
    shutil.copytree(denoiser, full)
    fields = json.loads((full / "config.json").read_text())
    (full / "config.json").write_text(json.dumps(fields | {"attention": "full"}))
    said = refusal(capsys, "denoise", full, prose_corpus, "--context", "2")
    assert "attention='full' sees every token" in said
    said = refusal(capsys, "summarize", full, "--test", prose_corpus, "--context", "2")
    assert "attention='full' sees every token" in said


def test_a_summarizer_is_measured_without_training(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reference costs what the model's own loss says; documents alone are summarized only."""
    pytest.importorskip("rouge_score")
    rows = [(f"{text} {text}", text[:20]) for text, _ in sentences(6, seed=4)]
    known, unknown = tmp_path / "known.jsonl", tmp_path / "unknown.jsonl"
    known.write_text("".join(json.dumps({"document": d, "summary": s}) + "\n" for d, s in rows))
    unknown.write_text(json.dumps({"document": rows[0][0]}) + "\n")
    out = tmp_path / "written"
    files = ("--test", known, "--test", unknown, "--beams", "1", "--out", out)
    found = measure(capsys, "summarize", exported, *files)
    model = SpadeForConditionalGeneration.from_pretrained(exported).eval()
    tokenizer = load_tokenizer(exported)
    total = tokens = 0.0
    for document, summary in rows:
        ids, labels = (tokenizer(t, return_tensors="pt").input_ids for t in (document, summary))
        labels = labels[:, : model.config.max_target_length_tokens]
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * labels.shape[1]
        tokens += labels.shape[1]
    assert found["known"]["metrics"]["nll_per_token"] == pytest.approx(total / tokens, rel=1e-4)
    assert set(found["known"]["details"]["rouge"]) >= {"lead", "model", "difference"}
    assert found["unknown"]["metrics"] == {}
    assert len((out / "predictions-known.jsonl").read_text().splitlines()) == 6
    assert run_command(["evaluate", "summarize", str(exported), "--test", str(known)]) == 0
    assert "LEAD" in capsys.readouterr().out
