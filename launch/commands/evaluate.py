"""``spade evaluate …``: models measured on files, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from launch.commands.finetune_classify import (
    Columns,
    LabelColumn,
    MaxLengthTokens,
    Metrics,
    SecondTextColumn,
    TaskName,
    TextColumn,
    make_task,
)
from launch.commands.finetune_options import prepare_libraries
from launch.commands.finetune_summarize import (
    Beams,
    DocumentColumn,
    EvaluationBatchTokens,
    IdColumn,
    LengthPenalty,
    MaxInputTokens,
    MaxSummaryTokens,
    MinSummaryTokens,
    NoRepeatNgram,
    Prefix,
    SummaryColumn,
    need_rouge,
)
from launch.console import print_json, say, table

if TYPE_CHECKING:
    from finetune.measuring import MeasuringSettings

_Folder = Annotated[Path, typer.Argument(help="Folder of the model.", metavar="DIR")]
_Files = Annotated[list[Path], typer.Argument(help="Files to measure on.", metavar="FILES...")]
_BatchSize = Annotated[int, typer.Option(min=1, help="Rows that a process takes at once.")]
_Precision = Annotated[
    str | None,
    typer.Option(help="float32 or bfloat16 (default: bfloat16 on GPUs that have it)."),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Context = Annotated[
    int, typer.Option(min=1, help="Processes that share each input, for inputs too long for one.")
]
_Out = Annotated[
    Path | None, typer.Option(help="Folder for the predictions (default: none written).")
]
_TextColumn = Annotated[str, typer.Option(help="Of jsonl files.")]


def register(application: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(
        help="Measure a model on files, without training it.",
        epilog="Example: spade evaluate lm wiki/seed-0/model wiki.test.tokens",
        no_args_is_help=True,
    )
    group.command(
        "lm", epilog="Example: spade evaluate lm wiki/seed-0/model test.txt --stride-tokens 64"
    )(language_model)
    group.command(
        "denoise", epilog="Example: spade evaluate denoise base-hf heldout.jsonl.gz --samples 256"
    )(denoise)
    group.command(
        "classify",
        epilog="Example: spade evaluate classify sst2/seed-0/model --task sst2 --test dev.tsv",
    )(classify)
    group.command(
        "summarize",
        epilog="Example: spade evaluate summarize summaries/seed-0/model --test test.jsonl.gz",
    )(summarize)
    application.add_typer(group, name="evaluate")


def language_model(
    model: _Folder,
    files: _Files,
    length_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a window (default: as long as in training).")
    ] = None,
    stride_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="From window to window (default: half of the length)."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer, if DIR has none.")
    ] = None,
    text_column: _TextColumn = "text",
    batch_size: _BatchSize = 8,
    precision: _Precision = None,
    as_json: _Json = False,
) -> None:
    """Perplexity of texts under a language model, by sliding windows; bits per byte.

    Plain text or jsonl, also gzipped. One process alone, or one for each GPU under torchrun.
    """
    prepare_libraries()
    from finetune.language_modelling.evaluation import evaluate_language_model
    from finetune.language_modelling.losses import REPORT_COLUMNS, report_rows

    found = evaluate_language_model(
        model,
        files,
        _settings(batch_size, precision),
        tokenizer=tokenizer,
        text_column=text_column,
        length_tokens=length_tokens,
        stride_tokens=stride_tokens,
        say=_progress(as_json),
    )
    title = f"windows of {found['length_tokens']:,} tokens, stride {found['stride_tokens']:,}"
    _show(found, as_json, title, REPORT_COLUMNS, report_rows(found["files"]))


def denoise(
    model: _Folder,
    files: _Files,
    samples: Annotated[int, typer.Option(min=1, help="Windows to measure, at most.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Chooses windows and masks.")] = 0,
    text_column: _TextColumn = "text",
    batch_size: _BatchSize = 4,
    context: _Context = 1,
    as_json: _Json = False,
) -> None:
    """Held-out loss of an exported encoder-decoder on documents, under its own objective.

    DIR is what spade export wrote; files are those that spade data build reads. One process, or
    with --context several, which are started on this machine unless torchrun has started them.
    """
    prepare_libraries()
    from finetune.intervals import bootstrap_ratio_interval
    from finetune.processes import world_size
    from pretrain.evaluation.exported import check_export, evaluate_export

    if context > 1 and world_size() == 1:
        check_export(model, context)
        names = {"samples": samples, "seed": seed, "text-column": text_column}
        names |= {"batch-size": batch_size, "context": context}
        _start_processes(context, ["denoise", model, *files], names, as_json)
        return
    report = evaluate_export(
        model,
        files,
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        text_field=text_column,
        context=context,
        say=_progress(as_json),
    )
    interval = bootstrap_ratio_interval(report.sample_nats, report.sample_targets.astype(float))
    found = {
        "objective": report.objective,
        "documents": report.documents,
        "tokens": report.tokens,
        "samples": len(report.sample_nats),
        **report.metrics,
        "loss_interval": list(interval),
        "heldout_loss_of_the_run": report.heldout_loss_of_the_run,
    }
    rows = [(name, f"{value:.4f}") for name, value in report.metrics.items()]
    rows.insert(1, ("95 % interval of loss", f"{interval[0]:.4f} to {interval[1]:.4f}"))
    if report.heldout_loss_of_the_run is not None:
        rows.append(("loss of the run's held-out data", f"{report.heldout_loss_of_the_run:.4f}"))
    title = f"{report.objective}, {len(report.sample_nats):,} samples"
    _show(found, as_json, title, ("metric", "value"), rows)


def classify(
    model: _Folder,
    test: Annotated[list[Path], typer.Option(help="Rows to predict: tsv or jsonl; repeatable.")],
    task: TaskName = None,
    text_column: TextColumn = None,
    second_text_column: SecondTextColumn = None,
    label_column: LabelColumn = None,
    metric: Metrics = None,
    columns: Columns = None,
    max_length_tokens: MaxLengthTokens = None,
    out: _Out = None,
    batch_size: _BatchSize = 16,
    precision: _Precision = None,
    as_json: _Json = False,
) -> None:
    """Predict rows with a fine-tuned classifier, and measure where they have labels.

    DIR is seed-N/model of a run of spade finetune classify, and knows the labels. One process
    alone, or one for each GPU under torchrun.
    """
    prepare_libraries()
    from finetune.classification.evaluation import estimates_numbers, evaluate_classifier

    numbers = estimates_numbers(model) and task is None
    found = evaluate_classifier(
        model,
        make_task(
            task, text_column, second_text_column, label_column, numbers, metric or [], columns
        ),
        test,
        _settings(batch_size, precision),
        max_length_tokens=max_length_tokens,
        out=out,
        say=_progress(as_json),
    )
    rows = []
    for name, result in found.items():
        for measured, value in (result["metrics"] or {"no labels": None}).items():
            interval = result.get(f"{measured}_interval")
            rows.append(
                (
                    name,
                    f"{result['rows']:,}",
                    measured,
                    "" if value is None else f"{value:.4f}",
                    "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
                )
            )
    _show(found, as_json, "", ("data", "rows", "metric", "value", "95 % interval"), rows)


def summarize(
    model: _Folder,
    test: Annotated[
        list[Path], typer.Option(help="Documents, with summaries or without: jsonl; repeatable.")
    ],
    document_column: DocumentColumn = "document",
    summary_column: SummaryColumn = "summary",
    id_column: IdColumn = "id",
    prefix: Prefix = "",
    max_input_tokens: MaxInputTokens = None,
    beams: Beams = 4,
    length_penalty: LengthPenalty = 1.0,
    no_repeat_ngram: NoRepeatNgram = 0,
    min_summary_tokens: MinSummaryTokens = 0,
    max_summary_tokens: MaxSummaryTokens = None,
    lead_words: Annotated[
        int | None,
        typer.Option(help="Of the baseline LEAD (default: the median of a file's summaries)."),
    ] = None,
    evaluation_batch_tokens: EvaluationBatchTokens = 16_384,
    context: _Context = 1,
    out: _Out = None,
    precision: _Precision = None,
    as_json: _Json = False,
) -> None:
    """Summarize documents with a fine-tuned model, and measure where they have summaries.

    DIR is seed-N/model of a run of spade finetune summarize. One process alone, or one for each
    GPU under torchrun, each with documents of its own; or with --context several that share each
    document, which are started on this machine unless torchrun has started them.
    """
    prepare_libraries()
    need_rouge()
    from finetune.processes import is_first, world_size
    from finetune.summarization.documents import Columns as SummaryColumns
    from finetune.summarization.measuring import evaluate_summarizer
    from finetune.summarization.recipe import SummarySettings
    from finetune.summarization.scores import tables_of_models
    from finetune.summarization.writing import WritingSettings

    if context > 1 and world_size() == 1:
        _check_shared(model, context)
        names = {
            "document-column": document_column,
            "summary-column": summary_column,
            "id-column": id_column,
            "prefix": prefix,
            "max-input-tokens": max_input_tokens,
            "beams": beams,
            "length-penalty": length_penalty,
            "no-repeat-ngram": no_repeat_ngram,
            "min-summary-tokens": min_summary_tokens,
            "max-summary-tokens": max_summary_tokens,
            "lead-words": lead_words,
            "evaluation-batch-tokens": evaluation_batch_tokens,
            "context": context,
            "out": out,
            "precision": precision,
        }
        files = [f"--test={path}" for path in test]
        _start_processes(context, ["summarize", model, *files], names, as_json)
        return
    found = evaluate_summarizer(
        model,
        test,
        SummarySettings(
            columns=SummaryColumns(document_column, summary_column, id_column),
            prefix=prefix,
            max_input_tokens=max_input_tokens,
            writing=WritingSettings(
                beams=beams,
                length_penalty=length_penalty,
                no_repeat_ngram=no_repeat_ngram,
                min_summary_tokens=min_summary_tokens,
                max_summary_tokens=max_summary_tokens,
            ),
            lead_words=lead_words,
            evaluation_batch_tokens=evaluation_batch_tokens,
        ),
        _settings(1, precision),
        context=context,
        out=out,
        say=_progress(as_json),
    )
    if as_json or not is_first():
        _show(found, as_json, "", (), [])
        return
    details = {name: one["details"] for name, one in found.items()}
    for own in tables_of_models([(model.name, details)]):
        table(own.title, own.columns, own.rows)


def _check_shared(model: Path, context: int) -> None:
    """Refuses what cannot be cut, before anything is started."""
    from finetune.exported import check_folder
    from spade_model.context_parallel.checks import check_context
    from spade_model.huggingface import SpadePretrainedConfig

    check_folder(model)
    check_context(SpadePretrainedConfig.from_pretrained(model).to_spade_config(), context)


def _start_processes(
    number: int, words: Sequence[str | Path], options: dict[str, Any], as_json: bool
) -> None:
    """Runs `spade evaluate` with these words and options in so many processes of this machine."""
    from launch.local import local_command, worker_environment
    from launch.processes import run_supervised

    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    worker = ["-m", "launch.cli", "evaluate", *map(str, words), *given]
    command = local_command([*worker, *(["--json"] if as_json else [])], number)
    ended = run_supervised(command, environment=worker_environment(number))
    if ended.exit_code:
        raise typer.Exit(ended.exit_code if ended.exit_code > 0 else 128 - ended.exit_code)


def _settings(batch_size: int, precision: str | None) -> MeasuringSettings:
    from finetune.measuring import MeasuringSettings

    return MeasuringSettings(batch_size=batch_size, precision=cast(Any, precision))


def _progress(as_json: bool) -> Callable[[str], None]:
    """Takes lines of progress; silent where JSON is wanted, and in all processes but one."""
    from finetune.processes import is_first

    return (lambda line: None) if as_json or not is_first() else say


def _show(
    found: dict[str, Any],
    as_json: bool,
    title: str,
    columns: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
) -> None:
    """Prints the answer, in one process alone."""
    from finetune.processes import is_first

    if not is_first():
        return
    if as_json:
        print_json(found)
    else:
        table(title, columns, rows)
