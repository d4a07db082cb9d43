"""Who may import whom: the arrows between the rooms, checked on every import statement.

documents → shards → batches → steps → checkpoints → weights: data flows one way, and so do
imports. A room that is missing from the tables below may import nothing of ours.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("spade_model", "data_pipeline", "pretrain", "launch", "finetune")

# The longest prefix of a module's name decides which room it is in.
ROOMS = (
    "spade_model",
    "spade_model.huggingface",
    "data_pipeline",
    "pretrain",
    "launch",
    "launch.clusters",
    "finetune",
)

# Rooms whose files another room may import at module level, and those only inside functions.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "spade_model": (set(), set()),
    "spade_model.huggingface": ({"spade_model"}, set()),
    "data_pipeline": (set(), set()),
    "pretrain": ({"spade_model", "data_pipeline"}, {"spade_model.huggingface"}),
    "launch": (
        set(),
        {"launch.clusters", "pretrain", "data_pipeline", "spade_model", "spade_model.huggingface"}
        | {"finetune"},
    ),
    "launch.clusters": ({"launch", "pretrain"}, {"data_pipeline"}),
    "finetune": ({"spade_model.huggingface"}, set()),
}

# Third parties a room may use: at module level, and beyond those inside functions.
THIRD_PARTIES: dict[str, tuple[set[str], set[str]]] = {
    "spade_model": ({"torch"}, set()),
    "spade_model.huggingface": (
        {"torch", "transformers", "tokenizers", "safetensors", "sentencepiece"},
        set(),
    ),
    "data_pipeline": (
        {"numpy", "orjson", "sentencepiece", "xxhash", "pyarrow", "webdataset"},
        {"mpi4py", "pyarrow", "webdataset", "torch", "zstandard", "matplotlib"},
    ),
    "pretrain": (
        {"torch", "numpy", "pydantic", "yaml", "rich", "psutil", "safetensors", "matplotlib"}
        | {"xxhash", "tensorboard"},
        {"deepspeed", "transformers", "wandb", "mlflow", "mpi4py"},
    ),
    "launch": ({"typer"}, {"rich", "psutil", "yaml", "torch"}),
    "launch.clusters": ({"pydantic"}, {"rich", "psutil", "yaml", "torch", "mpi4py"}),
    "finetune": ({"torch", "numpy", "transformers", "rouge_score"}, {"deepspeed", "PIL"}),
}
# One file of the launcher is a thin shell around torchrun; no other touches torch.
LAUNCH_FILES_WITH_TORCH = {"launch.torchrun"}
# Export, the fill-in sample and the measuring of exports meet transformers; training never does.
PRETRAIN_FILES_WITH_HUGGINGFACE = {
    "pretrain.evaluation.exported",
    "pretrain.exporting.export",
    "pretrain.exporting.fill",
}


@dataclass(frozen=True)
class Import:
    """One imported module as a file names it."""

    target: str
    line: int
    lazy: bool
    """Inside a function."""
    typing_only: bool
    """Under ``if TYPE_CHECKING``."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    rooms = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(rooms, key=len, default=None)


def imports_of(source: str, modules: set[str]) -> list[Import]:
    """Lists every import of a source text; ``from package import module`` names the module."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing_only: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(name.name, node.lineno, lazy, typing_only) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            base = node.module or ""
            for name in node.names:
                inner = f"{base}.{name.name}"
                target = inner if inner in modules else base
                found.append(Import(target, node.lineno, lazy, typing_only))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, lazy, True)
            for child in node.orelse:
                visit(child, lazy, typing_only)
            return
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside, typing_only)

    visit(ast.parse(source), False, False)
    return found


def problems_of(module: str, found: list[Import]) -> Iterator[str]:
    """Names every import of a module that its room does not allow."""
    room = room_of(module)
    assert room is not None
    ours, ours_lazily = MAY_IMPORT[room]
    third, third_lazily = THIRD_PARTIES[room]
    for item in found:
        place = f"{module}, line {item.line}: imports {item.target}"
        top = item.target.partition(".")[0]
        target_room = room_of(item.target)
        if target_room is not None:
            if target_room == room:
                continue
            late = item.lazy or item.typing_only
            if target_room not in (ours | ours_lazily if late else ours):
                yield f"{place}: {room} may not import {target_room}" + ("" if late else " here")
            elif (room, target_room) == ("pretrain", "spade_model.huggingface") and (
                module not in PRETRAIN_FILES_WITH_HUGGINGFACE
            ):
                yield f"{place}: only {sorted(PRETRAIN_FILES_WITH_HUGGINGFACE)} may"
        elif top in sys.stdlib_module_names:
            continue
        elif top not in (third | third_lazily if item.lazy or item.typing_only else third):
            yield f"{place}: {room} may not use {top}" + ("" if item.lazy else " at module level")
        elif top == "torch" and room == "launch" and module not in LAUNCH_FILES_WITH_TORCH:
            yield f"{place}: only {sorted(LAUNCH_FILES_WITH_TORCH)} may"


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Finds one cycle through each strongly connected knot; empty for a graph without."""
    found: list[list[str]] = []
    state: dict[str, int] = {}
    path: list[str] = []

    def walk(node: str) -> None:
        state[node] = 1
        path.append(node)
        for following in sorted(graph.get(node, ())):
            if state.get(following) == 1:
                found.append([*path[path.index(following) :], following])
            elif following not in state:
                walk(following)
        path.pop()
        state[node] = 2

    for node in sorted(graph):
        if node not in state:
            walk(node)
    return found


def read_modules() -> dict[str, str]:
    return {
        module_name(path, REPOSITORY): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((REPOSITORY / package).rglob("*.py"))
    }


@pytest.fixture(scope="module")
def imports() -> dict[str, list[Import]]:
    sources = read_modules()
    return {module: imports_of(source, set(sources)) for module, source in sources.items()}


def test_every_import_follows_an_arrow(imports: dict[str, list[Import]]) -> None:
    problems = [
        problem for module, found in imports.items() for problem in problems_of(module, found)
    ]
    assert not problems, "\n" + "\n".join(problems)


def test_no_two_files_import_each_other(imports: dict[str, list[Import]]) -> None:
    """Neither when they load nor inside functions nor for types alone."""
    graph = {
        module: {item.target for item in found if item.target in imports and item.target != module}
        for module, found in imports.items()
    }
    assert not cycles(graph), "\n" + "\n".join(" -> ".join(cycle) for cycle in cycles(graph))


def test_every_file_is_in_a_room_of_the_tables(imports: dict[str, list[Import]]) -> None:
    assert {room_of(module) for module in imports} <= set(MAY_IMPORT) == set(THIRD_PARTIES)
    assert {"launch.cli", "pretrain.worker"} <= set(imports), "the walk finds the files"


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("spade_model.encoder", "import pretrain.config", "may not import pretrain"),
        ("spade_model.encoder", "import transformers", "may not use transformers"),
        ("spade_model.encoder", "from spade_model.huggingface import x", "spade_model.huggingface"),
        ("data_pipeline.reading.stream", "import torch", "at module level"),
        (
            "data_pipeline.reading.stream",
            "def f():\n    import spade_model",
            "may not import spade_model",
        ),
        ("pretrain.loop", "import launch.local", "may not import launch"),
        (
            "pretrain.loop",
            "def f():\n    import spade_model.huggingface",
            "only ['pretrain.evaluation.exported'",
        ),
        ("pretrain.exporting.export", "from spade_model.huggingface import x", "here"),
        ("launch.cli", "from pretrain.config import RunConfig", "here"),
        ("launch.cli", "try:\n    import rich\nexcept ImportError:\n    pass", "at module level"),
        ("launch.local", "def f():\n    import torch", "only ['launch.torchrun']"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, complaint: str) -> None:
    modules = {"spade_model", "spade_model.huggingface", "pretrain.config", "launch.local"}
    assert any(complaint in problem for problem in problems_of(module, imports_of(source, modules)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pretrain.loop", "import torch\nfrom data_pipeline.reading.stream import BatchLoader"),
        ("pretrain.exporting.export", "def f():\n    from spade_model.huggingface import x"),
        ("launch.cli", "def f():\n    from pretrain.config import RunConfig"),
        ("launch.cli", "if TYPE_CHECKING:\n    import psutil\n    from pretrain.config import X"),
    ],
)
def test_a_right_import_is_left_alone(module: str, source: str) -> None:
    assert list(problems_of(module, imports_of(source, {"pretrain.config"}))) == []


def test_a_cycle_is_found_and_a_diamond_is_not() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert cycles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}}) == []
