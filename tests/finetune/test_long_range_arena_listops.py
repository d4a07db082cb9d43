"""ListOps: the grammar, the values, the lengths, and the files."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.long_range_arena.listops import ListOpsGrammar, draw_expressions
from finetune.long_range_arena.listops_files import FACTS, ListOpsCounts, write_listops
from finetune.long_range_arena.vocabulary import listops_ids, listops_text
from launch.cli import run as run_command

VALUES = {
    "[MIN": min,
    "[MAX": max,
    "[SM": lambda digits: sum(digits) % 10,
    "[MED": lambda digits: int(statistics.median(digits)),
}
SHORT = ListOpsGrammar(longer_than_tokens=10, shorter_than_tokens=60, max_depth=4, max_arguments=5)


class Parsed:
    """An expression, read by its definition: one stack, one word after the other."""

    def __init__(self, text: str) -> None:
        self.depth, self.num_arguments = 0, []
        self.operators: list[str] = []
        self.digits: list[int] = []
        stack: list[tuple[str, list[int]]] = []
        words = text.split(" ")
        self.tokens = len(words)
        for place, word in enumerate(words):
            # The outermost operation is at depth 1, and what stands in it one deeper.
            self.depth = max(self.depth, len(stack) + (word != "]"))
            if word in VALUES:
                stack.append((word, []))
                self.operators.append(word)
                continue
            if word == "]":
                operator, digits = stack.pop()
                self.num_arguments.append(len(digits))
                value = VALUES[operator](digits)
            else:
                value = int(word)
                self.digits.append(value)
            if stack:
                stack[-1][1].append(value)
            else:
                assert place == len(words) - 1, "one expression a row"
                self.value = value
        assert not stack, "all brackets are closed"


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    longest=st.integers(20, 200),
    max_depth=st.integers(3, 8),
    max_arguments=st.integers(2, 9),
)
def test_every_expression_is_of_the_grammar_and_has_its_value(
    seed: int, longest: int, max_depth: int, max_arguments: int
) -> None:
    grammar = ListOpsGrammar(
        longer_than_tokens=5,
        shorter_than_tokens=longest,
        max_depth=max_depth,
        max_arguments=max_arguments,
    )
    for ids, value in itertools.islice(draw_expressions(grammar, seed), 50):
        text = listops_text(ids)
        parsed = Parsed(text)
        assert parsed.value == value
        assert 5 < parsed.tokens == len(ids) < longest
        assert parsed.depth <= max_depth
        assert min(parsed.num_arguments) >= 2
        assert max(parsed.num_arguments) <= max_arguments
        assert listops_ids(text, "here").tolist() == ids.tolist()


def test_chances_are_those_of_the_published_grammar() -> None:
    """Without limits of length an argument is an operation once in four times."""
    open_grammar = ListOpsGrammar(longer_than_tokens=3, shorter_than_tokens=10**6, max_depth=3)
    rows = [
        Parsed(listops_text(ids))
        for ids, _ in itertools.islice(draw_expressions(open_grammar, 3), 4000)
    ]
    arguments = [number for row in rows for number in row.num_arguments]
    counts = np.bincount(arguments, minlength=11)[2:] / len(arguments)
    assert counts == pytest.approx(np.full(9, 1 / 9), abs=0.01)
    # At depth 2 operations are allowed, at depth 3 they are not.
    second = sum(row.num_arguments[-1] for row in rows)  # the outermost bracket closes last
    operations = sum(len(row.num_arguments) - 1 for row in rows)
    assert operations / second == pytest.approx(0.25, abs=0.01)
    digits = np.bincount([digit for row in rows for digit in row.digits])
    assert digits / digits.sum() == pytest.approx(np.full(10, 0.1), abs=0.005)
    names = [name for row in rows for name in row.operators]
    for operator in VALUES:
        assert names.count(operator) / len(names) == pytest.approx(0.25, abs=0.02)


def test_published_lengths_are_the_default() -> None:
    rows = list(itertools.islice(draw_expressions(ListOpsGrammar(), 0), 300))
    lengths = [len(ids) for ids, _ in rows]
    assert min(lengths) > 500
    assert max(lengths) < 2000
    assert 900 < statistics.mean(lengths) < 1200
    assert max(Parsed(listops_text(ids)).depth for ids, _ in rows) == 10
    assert len({ids.tobytes() for ids, _ in rows}) == 300


def test_trees_that_are_cut_short_while_drawn_are_never_kept() -> None:
    """Shapes that outgrow the limit stop growing; they must not come back as shorter ones."""
    narrow = ListOpsGrammar(longer_than_tokens=20, shorter_than_tokens=24, max_depth=4)
    wide = ListOpsGrammar(longer_than_tokens=20, shorter_than_tokens=2000, max_depth=4)

    def shares(grammar: ListOpsGrammar) -> tuple[float, float]:
        """Mean number of operations in expressions of 21 to 23 tokens, and how it is known."""
        drawn = itertools.islice(draw_expressions(grammar, 5), 6_000)
        counts = [
            len(Parsed(listops_text(ids)).operators) for ids, _ in drawn if 20 < len(ids) < 24
        ]
        return statistics.mean(counts), statistics.stdev(counts) / len(counts) ** 0.5

    (one, error), (other, other_error) = shares(narrow), shares(wide)
    assert abs(one - other) < 5 * (error**2 + other_error**2) ** 0.5


def test_files_are_the_same_for_a_seed_and_share_no_row(tmp_path: Path) -> None:
    def write(name: str, training: int, seed: int) -> dict[str, list[str]]:
        counts = ListOpsCounts(training=training, validation=40, test=30)
        write_listops(tmp_path / name, counts=counts, grammar=SHORT, seed=seed)
        files = sorted((tmp_path / name).glob("*.tsv"))
        return {path.name: path.read_text().splitlines() for path in files}

    one = write("one", 200, 0)
    assert {name: len(lines) - 1 for name, lines in one.items()} == {
        "test.tsv": 30,
        "train.tsv": 200,
        "validation.tsv": 40,
    }
    assert {lines.pop(0) for lines in one.values()} == {"Source\tTarget"}
    rows = [line for lines in one.values() for line in lines]
    assert len(set(rows)) == len(rows) == 270
    for row in rows:
        source, target = row.split("\t")
        assert Parsed(source).value == int(target)
    more = write("more", 300, 0)
    assert more["test.tsv"][1:] == one["test.tsv"]
    assert more["validation.tsv"][1:] == one["validation.tsv"]
    assert more["train.tsv"][1:201] == one["train.tsv"]
    other = write("other", 200, 1)
    assert not set(other["test.tsv"][1:]) & set(one["test.tsv"])
    # The stream of random numbers is one that no version of numpy may change, and so are the files.
    facts = json.loads((tmp_path / "one" / FACTS).read_text())
    assert facts["files"]["test.tsv"]["sha256"].startswith("8890634c67ed7071")
    assert sum(facts["files"]["train.tsv"]["values"].values()) == 200


def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--longer-than", "3", "--shorter-than", "5", "--max-depth", "2"]
    few = ["--training-rows", "9", "--validation-rows", "3", "--test-rows", "3"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("four years")
    none = tmp_path / "none"
    start = ["finetune", "make-listops", *few]
    for options, code, complaint in (
        (["--out", str(full)], 1, "is not an empty folder; choose another --out"),
        (["--out", str(none), "--longer-than", "9", "--shorter-than", "10"], 1, "use 11 or more"),
        # [X d d ]: there are 400 of them.
        (
            ["--out", str(none), *tiny, "--training-rows", "395"],
            1,
            "400 different expressions",
        ),
    ):
        assert run_command([*start, *options]) == code
        said = capsys.readouterr().err
        assert complaint in said
        assert said.count("error:") == said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    with pytest.raises(FinetuneError, match="test rows are 0: use 1 or more"):
        ListOpsCounts(test=0)


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["finetune", "make-listops", "--training-rows", "9", "--validation-rows", "3"]
    command += ["--test-rows", "3", "--longer-than", "10", "--shorter-than", "40"]
    assert run_command([*command, "--out", str(tmp_path / "a"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((tmp_path / "a" / FACTS).read_text())
    assert facts["grammar"]["shorter_than_tokens"] == 40
    assert run_command([*command, "--out", str(tmp_path / "b")]) == 0
    assert "train.tsv" in capsys.readouterr().out
