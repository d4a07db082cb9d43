"""The published language model: a checkpoint of fairseq with the layers of the paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from spade_model.causal_lm import SpadeForCausalLM
from spade_model.huggingface.importing.folder import WrittenFolder, check_absent, write_folder
from spade_model.huggingface.importing.published_files import (
    PublishedFileError,
    check_converted,
    read_json_object,
    read_published_weights,
    read_shapes,
    sha256_of,
)
from spade_model.published_lm import (
    EMBEDDING,
    HEAD,
    UNUSED,
    causal_lm_state,
    published_lm_config,
    published_lm_shapes,
)

# A checkpoint of fairseq holds an argparse.Namespace beside its tensors, so that torch's loader of
# weights alone refuses it until it is told of that class, which has nothing but attributes.
CONVERSION = (
    'python -c "import argparse, json, torch; from safetensors.torch import save_file; '
    "torch.serialization.add_safe_globals([argparse.Namespace]); "
    "c = torch.load('PATH', map_location='cpu', weights_only=True); "
    "save_file({k: v.clone() for k, v in c['model'].items()}, 'weights.safetensors'); "
    "m = (c.get('cfg') or {}).get('model') or c['args']; "
    "json.dump(dict(getattr(m, '__dict__', m)), open('config.json', 'w'), default=str)\""
)
"""What makes the two files that are read here of a checkpoint; opens nothing but numbers."""


@dataclass(frozen=True)
class FairseqLMReport(WrittenFolder):
    """What was written of a published language model."""

    ignored: tuple[str, ...]
    """Tensors of the file that repeat others or that mean nothing."""
    kernel_lengths: tuple[int, ...]
    """For each state-space layer, the length L whose ``C~ = C (I - A^L)`` was undone; 0: none."""
    embedding_scale: float
    """What fairseq multiplied embeddings by, now a part of them."""
    tied: bool
    """Whether embedding and head are one matrix."""


def import_fairseq_lm(weights: Path, config: Path, out: Path) -> FairseqLMReport:
    """Translate a published language model into a folder that `AutoModelForCausalLM` loads.

    There is no tokenizer in it: fairseq keeps its dictionary elsewhere.

    Args:
        weights: A safetensors file with the names of the published state dict, see `CONVERSION`.
        config: The arguments of the model as JSON.
        out: Where to write: absent or an empty folder.

    Raises:
        PublishedFileError: A file cannot be read or does not fit the other, `out` is taken, the
            disk refuses, or the written folder differs from what was read.
    """
    check_absent(out)
    args = read_json_object(config)
    found = read_shapes(weights, CONVERSION.replace("PATH", str(weights)))
    try:
        ours = published_lm_config(args, _vocabulary(weights, found))
        scale = 1.0 if args.get("no_scale_embedding", False) else ours.d_model**0.5
    except (TypeError, ValueError) as error:
        if isinstance(error, PublishedFileError):
            raise
        raise PublishedFileError(f"{config}: {' '.join(str(error).split())}") from error
    shapes = published_lm_shapes(ours)
    same = {HEAD: EMBEDDING}
    if not args.get("share_decoder_input_output_embed", False):
        shapes[HEAD], same = shapes[EMBEDDING], {}
    published, ignored = read_published_weights(weights, shapes, same=same, unused=UNUSED)
    state, tied = causal_lm_state(published, ours, embedding_scale=scale)
    check_converted(weights, state)
    plain = SpadeForCausalLM(ours)
    if not tied:
        plain.lm_head.weight = nn.Parameter(state["lm_head.weight"])
    plain.load_state_dict(state)
    lengths = tuple(int(x) for name, x in published.items() if name.endswith(".kernel.L"))
    facts: dict[str, Any] = {
        "ignored": tuple(ignored),
        "kernel_lengths": lengths,
        "embedding_scale": scale,
        "tied": tied,
    }
    provenance = {
        "source": "fairseq-lm",
        "weights_sha256": sha256_of(weights),
        "config_sha256": sha256_of(config),
        "published_config": args,
        **facts,
    }
    return FairseqLMReport(**vars(write_folder(plain, out, provenance)), **facts)


def _vocabulary(weights: Path, found: dict[str, tuple[int, ...]]) -> int:
    shape = found.get(EMBEDDING, ())
    if len(shape) == 2:
        return shape[0]
    names = sorted(found)
    raise PublishedFileError(
        f"{weights}: holds no matrix {EMBEDDING} but {', '.join(names[:3]) or 'nothing'}; give the "
        "state dict of the published language model with an embedding of full width"
    )
