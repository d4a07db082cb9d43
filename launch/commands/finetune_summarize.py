"""``spade finetune summarize``: long documents into summaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from launch.commands.finetune_options import (
    Model,
    Out,
    Test,
    Train,
    TrainingOptions,
    Validation,
    with_training_options,
)
from launch.commands.finetune_options import train as train_recipe
from launch.failures import CommandError

if TYPE_CHECKING:
    from finetune.summarization.recipe import ChooseBy

DocumentColumn = Annotated[str, typer.Option(help="Of the long text.")]
SummaryColumn = Annotated[str, typer.Option(help="Of the short text.")]
IdColumn = Annotated[
    str, typer.Option(help="Names rows in the predictions (default: their numbers).")
]
Prefix = Annotated[str, typer.Option(help="Text before each document.")]
MaxInputTokens = Annotated[
    int | None, typer.Option(help="Where to cut documents (default: nowhere).")
]
Beams = Annotated[int, typer.Option(help="Of the search; 1: greedy.")]
LengthPenalty = Annotated[
    float, typer.Option(help="Above 0 favours longer summaries, below 0 shorter ones.")
]
NoRepeatNgram = Annotated[
    int, typer.Option(help="Tokens in a row that no summary has twice; 0: no limit.")
]
MinSummaryTokens = Annotated[int, typer.Option(help="Before a summary may end.")]
MaxSummaryTokens = Annotated[
    int | None, typer.Option(help="Of written summaries (default: what the decoder takes).")
]
EvaluationBatchTokens = Annotated[
    int, typer.Option(help="Tokens read and written at once when the model is examined.")
]


def register(group: typer.Typer) -> None:
    """Adds the command."""
    group.command(
        "summarize",
        epilog="Example: spade finetune summarize base-hf --train train.jsonl.gz "
        "--validation val.jsonl.gz --test test.jsonl.gz --max-input-tokens 16384 "
        "--activation-checkpointing --out summaries",
    )(summarize)


@with_training_options(batch_size=16, micro_batch_size=1)
def summarize(
    model: Model,
    train: Train,
    validation: Validation,
    out: Out,
    *,
    training: TrainingOptions,
    test: Test = None,
    document_column: DocumentColumn = "document",
    summary_column: SummaryColumn = "summary",
    id_column: IdColumn = "id",
    prefix: Prefix = "",
    max_input_tokens: MaxInputTokens = None,
    choose_by: Annotated[
        str,
        typer.Option(help="Best checkpoint: nll of validation summaries, or rouge, which writes."),
    ] = "nll",
    beams: Beams = 4,
    length_penalty: LengthPenalty = 1.0,
    no_repeat_ngram: NoRepeatNgram = 0,
    min_summary_tokens: MinSummaryTokens = 0,
    max_summary_tokens: MaxSummaryTokens = None,
    lead_words: Annotated[
        int | None,
        typer.Option(help="Of the baseline LEAD (default: the training summaries' median)."),
    ] = None,
    evaluation_batch_tokens: EvaluationBatchTokens = 16_384,
) -> None:
    """Learn to summarize long documents; compare with LEAD, the documents' first words.

    One process alone, or one for each GPU under torchrun. SIGTERM or Ctrl-C saves and ends with
    exit code 75; the same command goes on, as it does after a crash.
    """
    need_rouge()
    from finetune.summarization.documents import Columns
    from finetune.summarization.recipe import Summarization, SummarySettings
    from finetune.summarization.writing import WritingSettings

    training.settings()  # what is impossible shall be said before the files are read
    settings = SummarySettings(
        columns=Columns(document_column, summary_column, id_column),
        prefix=prefix,
        max_input_tokens=max_input_tokens,
        choose_by=cast("ChooseBy", choose_by),
        writing=WritingSettings(
            beams=beams,
            length_penalty=length_penalty,
            no_repeat_ngram=no_repeat_ngram,
            min_summary_tokens=min_summary_tokens,
            max_summary_tokens=max_summary_tokens,
        ),
        lead_words=lead_words,
        evaluation_batch_tokens=evaluation_batch_tokens,
    )
    recipe = Summarization(
        model, train, validation, test or [], settings=settings, say=training.say
    )
    train_recipe(recipe, training, out)


def need_rouge() -> None:
    """Makes sure that summaries can be scored."""
    from importlib.util import find_spec

    if find_spec("rouge_score") is None:
        raise CommandError(
            "rouge-score is not installed, which scores summaries; install it with "
            'pip install "spade-pretrain[finetune]"'
        )
