"""The weights that a new run starts from instead of drawn ones: a Hugging Face folder of ours."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from data_pipeline.tokenization.tokenizer import MODEL_FILE, DocumentTokenizer
from pretrain.errors import ConfigError
from spade_model.config import SpadeConfig

if TYPE_CHECKING:
    from spade_model import SpadeForSeq2Seq

INITIAL_WEIGHTS = "initial_weights"
"""The field of the configuration, and the name of their fingerprint in a run's manifests."""

_HEAD = "lm_head.weight"
_INDEX = "model.safetensors.index.json"
_FLOATING = ("F32", "BF16", "F16")
# They decide how a model is trained or drawn, and not what its weights mean.
_FREE = (
    *("dropout", "initialization", "trained_length_tokens"),
    *("dt_min", "dt_max", "trainable_state_space"),
)


def check_initial_weights(folder: Path, model: SpadeConfig, tokenizer: Path) -> None:
    """Check that a run can start from a folder; names and shapes are read, numbers are not.

    Args:
        folder: What `spade export` or `spade import` wrote, or what fine-tuning made of it.
        model: The network of the run.
        tokenizer: Folder of the tokenizer of its data.

    Raises:
        ConfigError: On the first difference: field, values, remedy.
        DataError: If the tokenizer cannot be read.
    """
    _check_model(folder, read_model_config(folder), model)
    _check_tokenizer(folder, tokenizer)
    # Where a cluster is only spoken to there may be no torch; the run itself looks again.
    if find_spec("torch") is not None:
        _check_tensors(folder, model)


def read_model_config(folder: Path) -> SpadeConfig:
    """Return the architecture of a folder.

    Raises:
        ConfigError: It is none of ours, or has a head that pretraining does not know.
    """
    content = _read_json(folder / "config.json")
    kind = content.get("model_type")
    if kind != "spade":
        raise ConfigError(
            f"{INITIAL_WEIGHTS} {folder}: model_type is {kind!r} and not 'spade'; make a folder of "
            "ours with spade export or spade import"
        )
    if content.get("tie_word_embeddings") is False:
        raise ConfigError(
            f"{INITIAL_WEIGHTS} {folder}: its output head has weights of its own, and pretraining "
            "has one matrix for head and embedding; import it with --tie-head"
        )
    known = SpadeConfig.__dataclass_fields__
    try:
        return SpadeConfig.from_dict({name: content[name] for name in known if name in content})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{INITIAL_WEIGHTS} {folder}/config.json: {error}") from None


def load_initial_weights(folder: Path, model: SpadeForSeq2Seq) -> str:
    """Replace the weights of a model, in float32.

    Args:
        folder: A checked one.
        model: On the host, changed in place.

    Returns:
        The fingerprint of the files: SHA-256 of their bytes, one file behind the other by name.

    Raises:
        ConfigError: A file cannot be read, or holds numbers that are not finite.
    """
    import torch

    digest = hashlib.sha256()
    state = model.state_dict()
    for path in weight_files(folder):
        try:
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
            with safe_open(path, framework="pt") as file, torch.no_grad():
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    if not bool(tensor.isfinite().all()):
                        raise ConfigError(
                            f"{INITIAL_WEIGHTS} {path}: {name} holds numbers that are not finite; "
                            "export it again"
                        )
                    state[name].copy_(tensor)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from None
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder, by name.

    Raises:
        ConfigError: There are none, or one is missing.
    """
    names = {"model.safetensors"}
    if (folder / _INDEX).is_file():
        places = _read_json(folder / _INDEX).get("weight_map")
        names = set(places.values()) if isinstance(places, dict) else set()
    paths = sorted(folder / str(name) for name in names)
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise ConfigError(
                f"{INITIAL_WEIGHTS} {path}: no such file; export again (only safetensors are read)"
            )
    if not paths:
        raise ConfigError(f"{INITIAL_WEIGHTS} {folder}/{_INDEX}: names no file; export again")
    return paths


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{INITIAL_WEIGHTS} {path}: cannot be read: {error.strerror}; name a folder that spade "
            "export or spade import wrote"
        ) from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{INITIAL_WEIGHTS} {path}: is no JSON; export again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{INITIAL_WEIGHTS} {path}: holds no JSON object; export again")
    return content


def _check_model(folder: Path, theirs: SpadeConfig, ours: SpadeConfig) -> None:
    """Compare all that decides what the weights compute."""
    free = set(_FREE)
    if ours.decoder_position != "learned":
        free.add("max_target_length_tokens")  # a bound of generation, no table
    before, now = _meaning(theirs), _meaning(ours)
    for name, value in before.items():
        if name not in free and now[name] != value:
            written = getattr(theirs, name)
            shown = list(written) if isinstance(written, tuple) else written
            raise ConfigError(
                f"model.{name} is {getattr(ours, name)!r}, but {INITIAL_WEIGHTS} {folder} has "
                f"{shown!r}; write model.{name}: {json.dumps(shown)}, or begin without "
                f"{INITIAL_WEIGHTS}"
            )


def _meaning(config: SpadeConfig) -> dict[str, Any]:
    """The fields, those that can be written in several ways in one of them."""
    return {
        **config.to_dict(),
        "state_space_layers": config.state_space_layer_indices,
        "state_space_copies": config.num_state_space_copies,
    }


def _check_tokenizer(folder: Path, tokenizer: Path) -> None:
    """Ids must mean the same: the model of SentencePiece, and what else decides about ids."""
    known = DocumentTokenizer.load(tokenizer)
    try:
        same = (folder / MODEL_FILE).read_bytes() == (tokenizer / MODEL_FILE).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{INITIAL_WEIGHTS} {folder}: its {MODEL_FILE} cannot be read: {error.strerror}; "
            "without it nobody knows what its ids mean: put the one it was trained with there"
        ) from None
    expected = None
    if (folder / "provenance.json").is_file():
        prints = _read_json(folder / "provenance.json").get("fingerprints")
        expected = prints.get("tokenizer") if isinstance(prints, dict) else None
    if not same or expected not in (None, known.fingerprint):
        raise ConfigError(
            f"data.tokenizer {tokenizer} is another one than that of {INITIAL_WEIGHTS} {folder}; "
            "build the data with the tokenizer that the weights were trained with"
        )


def _check_tensors(folder: Path, model: SpadeConfig) -> None:
    """Compare names, shapes and types with those of the network."""
    import torch

    from spade_model import SpadeForSeq2Seq

    with torch.device("meta"):
        state = SpadeForSeq2Seq(model).state_dict()
    expected = {name: list(x.shape) for name, x in state.items() if name != _HEAD}
    found: dict[str, list[int]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    found[name] = list(part.get_shape())
                    if part.get_dtype() not in _FLOATING:
                        raise ConfigError(
                            f"{INITIAL_WEIGHTS} {path}: {name} is {part.get_dtype()}; export again "
                            "as float32 or bfloat16"
                        )
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from None
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            has, wants = found.get(name, "missing"), expected.get(name, "no such tensor")
            raise ConfigError(
                f"{INITIAL_WEIGHTS} {folder}: {name} is {has}, but the model of the run has "
                f"{wants}; its files do not fit its config.json: export again"
            )


def _unreadable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return ConfigError(f"{INITIAL_WEIGHTS} {path}: cannot be read: {reason}; export again")
