"""Our own sources as a few flat files, for folders that load where this package is not installed.

`transformers` copies the Python files beside a model's configuration and imports them; they may
import each other by ``from .file import name`` and nothing else of ours. The files are made from
the modules themselves whenever a model is saved: modules that belong together are put one behind
the other, and imports between them go.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spade_model.huggingface.configuration import SpadePretrainedConfig

_PACKAGE = "spade_model"
_ENTRIES = ("configuration", "modeling", "encoder", "classification", "question_answering")
_ENTRY_MODULES = tuple(f"{_PACKAGE}.huggingface.{name}" for name in (*_ENTRIES, "causal_lm"))

# The longest prefix of a module's name decides which file it goes to.
_FILES: Final = {
    "spade_model": "spade_network",
    "spade_model.attention": "spade_attention",
    "spade_model.state_space": "spade_state_space",
    "spade_model.config": "configuration_spade",
    "spade_model.config_checks": "configuration_spade",
    "spade_model.cuts": "configuration_spade",
    "spade_model.huggingface": "modeling_spade",
    "spade_model.huggingface.adapters": "configuration_spade",
    "spade_model.huggingface.configuration": "configuration_spade",
}

_MODELS: Final = "modeling_spade"

AUTO_MAP: Final = {
    "AutoConfig": "configuration_spade.SpadePretrainedConfig",
    "AutoModel": "modeling_spade.SpadePretrainedModel",
    "AutoModelForCausalLM": "modeling_spade.SpadeForCausalLM",
    "AutoModelForQuestionAnswering": "modeling_spade.SpadeForQuestionAnswering",
    "AutoModelForSeq2SeqLM": "modeling_spade.SpadeForConditionalGeneration",
    "AutoModelForSequenceClassification": "modeling_spade.SpadeForSequenceClassification",
    "AutoModelForTextEncoding": "modeling_spade.SpadeEncoderModel",
    "AutoModelForTokenClassification": "modeling_spade.SpadeForTokenClassification",
}
"""Where `transformers` finds each class in the files; the `auto_map` of a configuration."""


def write_standalone(config: SpadePretrainedConfig, folder: Path) -> None:
    """Write the files into a folder, over those that are there, and name them in a configuration.

    Args:
        config: The one that is about to be saved.
        folder: Made if it is absent.

    Raises:
        OSError: The disk refuses.
    """
    config.auto_map = dict(AUTO_MAP)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in standalone_files().items():
        (folder / name).write_text(text, encoding="utf-8")


@functools.cache
def standalone_files() -> dict[str, str]:
    """Return the text of each file by its name."""
    order: list[str] = []
    for entry in _ENTRY_MODULES:
        _add_with_imports(entry, order)
    files: dict[str, _FlatFile] = {}
    for module in order:
        name = _file_of(module)
        files.setdefault(name, _FlatFile(name)).add(module)
    for name, file in files.items():
        if name != _MODELS:
            files[_MODELS].name_neighbour(name, file)
    return {f"{name}.py": file.text() for name, file in sorted(files.items())}


def _add_with_imports(module: str, order: list[str]) -> None:
    """Append a module behind all that it imports of ours."""
    if module in order:
        return
    for statement in _own_imports(ast.parse(_source(module))):
        _add_with_imports(str(statement.module), order)
    order.append(module)


def _own_imports(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    """All imports of our package, which have to stand at the top of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == _PACKAGE:
            assert node in tree.body, f"line {node.lineno}: an import inside something"
            yield node


@functools.cache
def _source(module: str) -> str:
    specification = importlib.util.find_spec(module)
    assert specification is not None, module
    assert specification.origin is not None, module
    return Path(specification.origin).read_text(encoding="utf-8")


def _file_of(module: str) -> str:
    prefixes = (known for known in _FILES if f"{module}.".startswith(f"{known}."))
    return _FILES[max(prefixes, key=len)]


class _FlatFile:
    """One file while modules are added to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.imports: set[str] = set()
        self.own_imports: set[str] = set()
        self.bodies: list[str] = []
        self.defined: dict[str, str] = {}

    def add(self, module: str) -> None:
        """Append a module without its imports and its docstring.

        An assertion fails where two modules of a file give different things one name.
        """
        source = _source(module)
        lines, tree = source.splitlines(), ast.parse(source)
        for number, node in enumerate(tree.body):
            docstring = number == 0 and isinstance(node, ast.Expr)
            if docstring or isinstance(node, (ast.Import, ast.ImportFrom)):
                for line in range(node.lineno - 1, node.end_lineno or node.lineno):
                    lines[line] = ""
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._take_import(node)
            for name in _names_defined(node):
                text = ast.dump(node)
                known = self.defined.setdefault(name, text)
                assert known == text, f"{self.name}: {module} gives {name} another meaning"
        self.bodies.append("\n".join(lines).strip("\n"))

    def name_neighbour(self, name: str, neighbour: _FlatFile) -> None:
        """Import another file here unless that is done already.

        Early 5.x copies only the files that the one with the models names itself, not those that
        these import.
        """
        if not any(f"from .{name} import" in statement for statement in self.own_imports):
            self.own_imports.add(f"from .{name} import {min(neighbour.defined)}  # noqa: F401")

    def _take_import(self, node: ast.Import | ast.ImportFrom) -> None:
        own = isinstance(node, ast.ImportFrom) and str(node.module).startswith(_PACKAGE)
        if own and isinstance(node, ast.ImportFrom):
            target = _file_of(str(node.module))
            if target == self.name:
                assert all(alias.asname is None for alias in node.names), ast.unparse(node)
                return
            moved = ast.ImportFrom(module=target, names=node.names, level=1)
            self.own_imports.add(ast.unparse(moved))
        elif not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            self.imports.add(ast.unparse(node))

    def text(self) -> str:
        """Return the file."""
        head = [
            f'"""Part of SPADE (arXiv 2212.08136), made from the modules of `{_PACKAGE}`."""',
            "from __future__ import annotations",
            "\n".join(sorted(self.imports)),
            "\n".join(sorted(self.own_imports)),
        ]
        parts = [part for part in head if part]
        return "\n\n".join(parts) + "\n\n\n" + "\n\n\n".join(filter(None, self.bodies)) + "\n"


def _names_defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return [target.id for target in targets if isinstance(target, ast.Name)]
