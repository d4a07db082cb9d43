"""The README of an exported checkpoint: what is known about it, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.exporting.curve import CURVE_FILE
from pretrain.exporting.input_format import input_format, task_in_words
from pretrain.initial_weights import INITIAL_WEIGHTS
from spade_model.config import SpadeConfig

_LOSS_NAMES = {
    "eval/heldout/loss": "all target tokens",
    "eval/heldout/text_loss": "text alone (no sentinels, no end of sequence)",
}


def model_card(provenance: Mapping[str, Any]) -> str:
    """Renders the card.

    Args:
        provenance: What `pretrain.exporting.export` writes into `provenance.json`.

    Returns:
        Markdown with YAML front matter.
    """
    return (
        "\n\n".join(
            [
                _front_matter(provenance),
                f"# {provenance['run']}: a SPADE encoder-decoder",
                _introduction(provenance),
                _loading(),
                input_format(provenance),
                _pretraining(provenance),
                _losses(provenance),
                _curve(provenance),
                _fine_tuning(provenance),
            ]
        )
        + "\n"
    )


def _front_matter(provenance: Mapping[str, Any]) -> str:
    # Neither language nor license: nobody has told us the corpora's.
    kind = provenance["objective"]["kind"].replace("_", "-")
    tags = ("spade", "state-space-model", "long-document", "encoder-decoder", kind, "custom_code")
    lines = ["library_name: transformers", "pipeline_tag: text2text-generation", "tags:"]
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---"])


def _introduction(provenance: Mapping[str, Any]) -> str:
    config = SpadeConfig.from_dict(provenance["model"])
    count = len(config.state_space_layer_indices)
    near = {"window": "local attention", "chunk": "chunked attention", "full": "full attention"}
    mixing = f"{near[config.attention]} in the encoder"
    if count:
        name = config.state_space.split("_")[0].upper()
        mixing += f", beside it a state-space layer ({name}) in {count} of its layers"
    return (
        f"A long-document encoder-decoder with {provenance['parameters']:,} parameters: {mixing}, "
        "and full attention in the decoder. It was pretrained "
        f"{task_in_words(provenance['objective']['kind'])} and has seen no other task: fine-tune "
        "it before you ask it for anything else."
    )


def _loading() -> str:
    return """## Loading

```python
import spade_model.huggingface  # pip install "spade-pretrain[hf]"; registers the classes
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

folder = "path/to/this/folder"
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)

batch = tokenizer(["Once upon a <extra_id_0> there was"], return_tensors="pt", padding=True)
output = model.generate(**batch, max_new_tokens=20)
print(tokenizer.decode(output[0]))
```

Without that package, leave out its import and pass `trust_remote_code=True` to both calls: the
folder brings the code of its classes. It holds an encoder-decoder; `AutoModel`,
`AutoModelForTextEncoding`, `AutoModelForSequenceClassification`, `AutoModelForTokenClassification`
and `AutoModelForQuestionAnswering` take from it what they need. With neither, `AutoTokenizer` asks
whether to trust the folder; `PreTrainedTokenizerFast.from_pretrained(folder)` does not.

`tokenizer.json` needs neither SentencePiece nor protobuf; `spiece.model` is the same vocabulary as
a SentencePiece model. Pass the `attention_mask` with every padded batch, as above: padding on
either side then changes nothing."""


def _pretraining(provenance: Mapping[str, Any]) -> str:
    objective, training = provenance["objective"], provenance["training"]
    fingerprints = provenance["fingerprints"]
    rows = {
        "steps": f"{provenance['step']:,}",
        "samples": f"{provenance['sample_index']:,}",
        "tokens seen (before masking)": f"{provenance['tokens_seen']:,}",
        "objective": _objective_in_words(objective),
        "global batch": f"{training['global_batch_size']:,} samples",
        "precision": training["precision"],
        "seed": training["seed"],
        "weights stored as": (
            "float32"
            if provenance["dtype"] == "float32"
            else f"{provenance['dtype']}, state-space layers float32"
        ),
        "code": f"`{provenance['code_version']}`",
        **_named(fingerprints, "train", "training"),
        **_named(fingerprints, "heldout", "held-out"),
        "tokenizer": f"`{fingerprints['tokenizer']}`",
    }
    if INITIAL_WEIGHTS in fingerprints:
        rows["began from weights with SHA-256"] = f"`{fingerprints[INITIAL_WEIGHTS]}`"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        "## Pretraining\n\n| | |\n|---|---|\n"
        f"{table}\n\nData sets and tokenizer are named by the SHA-256 of their manifests. "
        "`provenance.json` has the whole configuration."
    )


def _named(fingerprints: Mapping[str, str], role: str, word: str) -> dict[str, str]:
    """Fingerprints of the data sets of one role, by name for people."""
    return {
        f"{name.replace(role, word, 1)} data": f"`{value}`"
        for name, value in fingerprints.items()
        if name.partition(".")[0] == role
    }


def _losses(provenance: Mapping[str, Any]) -> str:
    heldout = provenance["heldout"]
    if heldout is None:
        return "## Held-out loss\n\nNo evaluation was recorded with this checkpoint."
    lines = [
        "## Held-out loss",
        "",
        (
            f"After step {heldout['step']:,}, in nats a token, on documents that were never "
            "trained on, beside what the token frequencies of the training targets alone would "
            "give:"
        ),
        "",
        "| tokens | this model | unigram |",
        "|---|---|---|",
    ]
    for key, name in _LOSS_NAMES.items():
        if key in heldout:
            unigram = heldout.get(key.replace("heldout/", "heldout/unigram_"))
            other = "" if unigram is None else f"{unigram:.4f}"
            lines.append(f"| {name} | {heldout[key]:.4f} | {other} |")
    return "\n".join(lines)


def _curve(provenance: Mapping[str, Any]) -> str:
    rows = provenance["curve"]
    if not rows:
        return "## Training curve\n\nNo metrics were found beside this checkpoint."
    lines = [
        "## Training curve",
        "",
        f"![Training and held-out loss over the steps]({CURVE_FILE})",
        "",
        "Nats a token; training losses are means since the row before, held-out ones the newest.",
        "",
        "| step | tokens seen | training loss | held-out loss |",
        "|---|---|---|---|",
    ]
    for row in rows:
        tokens, heldout = row["tokens_seen"], row["heldout_loss"]
        cells = (
            f"{row['step']:,}",
            "" if tokens is None else f"{tokens:,}",
            f"{row['loss']:.4f}",
            "" if heldout is None else f"{heldout:.4f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _fine_tuning(provenance: Mapping[str, Any]) -> str:
    lines = ["## Fine-tuning", ""]
    lines.append(
        "`AutoModelForSeq2SeqLM` for text to text, `AutoModelForSequenceClassification` for "
        "classes, several answers or numbers (encoder alone, mean over tokens). LoRA by default "
        'adapts `target_modules=["query_key_value", "query", "key_value"]`; name "output" and the '
        "feed-forward layers as well for more, never the state-space layers."
    )
    if SpadeConfig.from_dict(provenance["model"]).state_space_layer_indices:
        lines.append(
            "State-space parameters stay float32 when the model is loaded with "
            "`dtype=torch.bfloat16`; give them no weight decay."
        )
    return "\n".join(lines)


def _objective_in_words(objective: Mapping[str, Any]) -> str:
    settings = {
        name.removesuffix("_tokens").replace("_", " "): f"{value:g}"
        for name, value in objective.items()
        if name not in ("kind", "input_length_tokens", "target_length_tokens") and value is not None
    }
    words = [f"{name} {value}" for name, value in settings.items()]
    return ", ".join([objective["kind"].replace("_", " "), *words])
