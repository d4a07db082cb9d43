"""What a pretrained model was given and asked for, in words for whoever fine-tunes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SPANS = (
    "- Input: text in which each masked span is one sentinel, `<extra_id_0>` for the first, "
    "`<extra_id_1>`\n  for the second and so on, and `</s>` at the end, which the tokenizer "
    "appends.\n"
    "- Target: `<extra_id_0>`, the tokens of the first span, `<extra_id_1>`, those of the second, "
    "…, and\n  `</s>`. The decoder starts from `<pad>`."
)
_PREFIX = (
    "- Input: the beginning of a text and `</s>`, which the tokenizer appends; no sentinels.\n"
    "- Target: how the text goes on, and `</s>`. The decoder starts from `<pad>`."
)
_GAPS = (
    "- Input: text in which each sentence that is asked for is one `<extra_id_0>`, the same for "
    "all of\n  them, and `</s>` at the end, which the tokenizer appends.\n"
    "- Target: those sentences in their order, without sentinels, and `</s>`. The decoder starts "
    "from\n  `<pad>`."
)
_MADE = {"span_corruption": _SPANS, "ul2": _SPANS, "prefix_lm": _PREFIX, "gap_sentences": _GAPS}
_TASK = {
    "span_corruption": "to fill in masked spans of text",
    "ul2": "to fill in masked spans of text and to continue it, told which by a mode token",
    "prefix_lm": "to continue text",
    "gap_sentences": "to write the sentences that were taken out of a text",
}
_MODES = {
    "R": "few short spans are masked",
    "S": "one span is, the last quarter of the text",
    "X": "long spans or many are",
}


def task_in_words(kind: str) -> str:
    """What a model was pretrained to do, behind "It was pretrained"."""
    return _TASK[kind]


def input_format(provenance: Mapping[str, Any]) -> str:
    """The section of the card: inputs, targets, special ids, lengths.

    Args:
        provenance: See `pretrain.exporting.provenance`.
    """
    tokenizer, objective = provenance["tokenizer"], provenance["objective"]
    first = tokenizer["vocab_size"] - 1
    parts = ["## Input and output", "", _MADE[objective["kind"]]]
    if objective["kind"] == "ul2":
        parts.append(_modes(tokenizer))
    parts.append(
        f"""- Ids: `<pad>` {tokenizer["pad_token_id"]}, `</s>` {tokenizer["eos_token_id"]}, \
`<unk>` {tokenizer["unk_token_id"]}; sentinel k has id {first} - k, down to \
{tokenizer["piece_count"]} (there are {tokenizer["sentinel_count"]}).
- Spaces, tabs and line ends are kept as they are, and every character can be represented. Text is
  tokenized line by line.
- Lengths in pretraining: {objective["input_length_tokens"]:,} input tokens and \
{objective["target_length_tokens"]:,} target tokens.
  Longer inputs are possible; targets are limited to \
{provenance["model"]["max_target_length_tokens"]:,} tokens by the decoder's positions."""
    )
    return "\n".join(parts)


def _modes(tokenizer: Mapping[str, Any]) -> str:
    """Mode tokens are the lowest sentinels, from below."""
    last = tokenizer["sentinel_count"] - 1
    words = [
        f"`<extra_id_{last - place}>` ({mode}: {what})"
        for place, (mode, what) in enumerate(_MODES.items())
    ]
    return (
        f"- Mode: before each input stands one of {', '.join(words)}.\n  A fine-tuned task may "
        "keep the mode token that is most like it in front of its inputs, or none."
    )
