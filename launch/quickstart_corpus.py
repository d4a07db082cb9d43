"""What the quickstart holds out of a corpus, and which of it the model is shown at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.console import say
from launch.failures import CommandError

FILLED_DOCUMENTS = 3
_HELDOUT_FRACTIONS = (0.05, 0.1, 0.2, 0.35, 0.5)
_LONG_ENOUGH_CHARACTERS = 2000


def split_corpus(paths: Sequence[str], fingerprint: str) -> dict[str, Any]:
    """Finds the share of documents to hold out: 5 %, or more where the corpus is small.

    Args:
        paths: Files and folders of the corpus.
        fingerprint: Identifies their content.

    Returns:
        Facts for the stages that follow.

    Raises:
        CommandError: There are too few documents to train and to hold some out.
        DataError: The corpus cannot be read or holds no document.
    """
    from data_pipeline.corpora.corpus import Problem, is_heldout, iterate_documents

    held = dict.fromkeys(_HELDOUT_FRACTIONS, 0)
    problems: list[Problem] = []
    documents, characters = 0, 0
    for document in iterate_documents([Path(path) for path in paths], on_problem=problems.append):
        documents += 1
        characters += len(document.text)
        for fraction in held:
            held[fraction] += is_heldout(document.name, fraction)
    if problems:
        first = problems[0]
        say(f"{len(problems)} documents are left out, the first: {first.name}: {first.reason}")
    enough = [fraction for fraction, count in held.items() if count >= FILLED_DOCUMENTS]
    if not enough or held[enough[0]] == documents:
        raise CommandError(
            f"{documents} documents are too few to train on some and hold {FILLED_DOCUMENTS} out; "
            "add documents"
        )
    fraction = enough[0]
    say(
        f"{documents:,} documents, {characters / 1e6:.1f} million characters; {held[fraction]:,} "
        "documents are held out"
    )
    if fraction > _HELDOUT_FRACTIONS[0]:
        say(f"a small corpus: {fraction:.0%} are held out instead of {_HELDOUT_FRACTIONS[0]:.0%}")
    return {"paths": list(paths), "fingerprint": fingerprint, "heldout_fraction": fraction}


def write_heldout_documents(path: Path, corpus: Mapping[str, Any]) -> None:
    """Writes the first held-out documents that are long enough for gaps, else the longest.

    Args:
        path: JSON lines file to write.
        corpus: Facts of ``split_corpus``.
    """
    from data_pipeline.corpora.corpus import is_heldout, iterate_documents
    from pretrain.run_folder import write_atomically

    chosen: list[tuple[int, int, str, str]] = []
    documents = iterate_documents([Path(item) for item in corpus["paths"]], on_problem=_pass_over)
    for number, document in enumerate(documents):
        if not is_heldout(document.name, corpus["heldout_fraction"]):
            continue
        length = min(len(document.text), _LONG_ENOUGH_CHARACTERS)
        chosen = sorted([*chosen, (-length, number, document.name, document.text)])
        chosen = chosen[:FILLED_DOCUMENTS]
        if len(chosen) == FILLED_DOCUMENTS and -chosen[-1][0] == _LONG_ENOUGH_CHARACTERS:
            break
    lines = [json.dumps({"id": name, "text": text}) + "\n" for _, _, name, text in chosen]
    write_atomically(path, "".join(lines))


def _pass_over(_problem: object) -> None:
    """Bad documents have been told of when the corpus was split."""
