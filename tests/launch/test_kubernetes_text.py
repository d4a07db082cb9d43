"""No text of a user's can be more than a text: not in YAML, not in Kubernetes' own expansion."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch.clusters.job import Job
from launch.clusters.kubernetes.manifests import manifests, to_manifest
from launch.clusters.kubernetes.pods import Workload
from launch.clusters.kubernetes.settings import KubernetesCluster
from launch.clusters.kubernetes.text import literal, object_name

HOSTILE = [
    "$(HOME)",
    "$$(HOME)",
    "$(",
    "a$",
    "$(rm -rf /)",
    "`id`",
    "; touch /tmp/x",
    "two words",
    'it\'s "quoted"',
    "line\nbreak: [1, 2]",
    "---\nkind: Pod",
    "*alias",
    "&anchor",
    "!!python/object:os.system",
    "- item",
    "# comment",
    "{a: b}",
    "%TAG",
    "@at",
    "|",
    ">",
    "? key",
    "~",
    " leading",
    "trailing ",
    "\t",
    "\u2028",
    "\x85",
    "Ünïcode ☃ 𝕏",
    "--option",
    "y",
    "No",
    "off",
    "0o17",
    "1_000",
    "0x1F",
    "1e3",
    "12:30:45",
    "2020-01-01",
    ".inf",
    "null",
    "<<",
    "=",
]
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=60),
    st.text("$()AB \n'\";", max_size=20),
)


def expand(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a word of `command`, `args` or `env`.

    By the API's documentation of Container.command: `$(NAME)` is replaced where NAME is known and
    left as it is where it is not; `$$` is reduced to one `$`, so that `$$(NAME)` gives `$(NAME)`.
    """
    made, rest = "", text
    while "$" in rest:
        before, _, rest = rest.partition("$")
        made += before
        if rest.startswith("$"):
            made, rest = made + "$", rest[1:]
        elif rest.startswith("(") and ")" in rest:
            name, _, rest = rest[1:].partition(")")
            made += variables.get(name, f"$({name})")
        else:
            made += "$"
    return made + rest


def test_the_expander_does_what_is_documented() -> None:
    known = {"A": "one"}
    assert expand("$(A) $(B) $$(A) $$ $x $(A", known) == "one $(B) $(A) $ $x $(A"


@given(texts)
def test_kubernetes_gives_back_the_words_as_they_were(text: str) -> None:
    every_name = dict.fromkeys(re.findall(r"\$\(([^)]*)\)", text), "EXPANDED")
    assert expand(literal(text), every_name | {"A": "EXPANDED"}) == text
    assert "$(" not in literal(text).replace("$$", "")


def test_without_the_escape_words_would_change() -> None:
    assert expand("$(A)", {"A": "one"}) != "$(A)"


@given(st.lists(st.dictionaries(texts.filter(bool), texts, max_size=4), min_size=1, max_size=3))
@example([{text: text for text in HOSTILE}])
def test_yaml_gives_back_what_went_in(objects: list[dict[str, Any]]) -> None:
    written = to_manifest(objects)
    assert list(yaml.safe_load_all(written)) == objects


@given(st.lists(st.text(string.printable, max_size=30), max_size=6))
@example(["name: x", "", "  a: b", "- c"])
@example(["", "a"])
@example(["a ", "b"])
@example([" a", "b"])
def test_a_configuration_of_any_look_arrives(lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    (made,) = yaml.safe_load_all(to_manifest([{"data": {"config.yaml": text}}]))
    assert made["data"]["config.yaml"] == text


@pytest.mark.parametrize(
    "word",
    ["y", "Y", "n", "yes", "On", "off", "true", "Null", "0o7", "1_0", "0b1", "1e3", "+1", ""],
)
def test_words_that_readers_take_for_something_else_are_quoted(word: str) -> None:
    assert to_manifest([{"value": word}]) == f'---\nvalue: "{word}"\n'


@settings(max_examples=30)
@given(
    name=texts.filter(bool),
    value=texts,
    annotation=texts,
    kind=st.sampled_from(["trainjob", "pytorchjob", "mpijob", "jobset"]),
)
def test_hostile_settings_stay_where_they_belong(
    name: str, value: str, annotation: str, kind: str
) -> None:
    cluster = KubernetesCluster.model_validate(
        {
            "kind": kind,
            "nodes": {"environment": {"WORD": value}},
            "annotations": {"a/b": annotation},
        }
    )
    job = Job.of(Path("c.yaml"), [], nodes=2)
    workload = Workload(object_name(name), job, cluster, f"name: {name!r}\n")
    objects = manifests(workload)
    read = list(yaml.safe_load_all(to_manifest(objects)))
    assert read == objects
    assert [item["kind"] for item in read][-1].lower() == kind
    environments = [found for made in read for found in values_of(made, "env")]
    assert environments
    for variables in environments:
        (word,) = (item["value"] for item in variables if item["name"] == "WORD")
        assert expand(word, {"HOME": "/root", "A": "one"}) == value


def values_of(made: Any, key: str) -> list[Any]:
    """All values under a key, anywhere inside."""
    if isinstance(made, dict):
        own = [made[key]] if key in made else []
        return own + [found for value in made.values() for found in values_of(value, key)]
    return (
        [found for item in made for found in values_of(item, key)] if isinstance(made, list) else []
    )


@given(texts.filter(bool))
@example("base-4k")
@example("Base 4K")
@example("9")
@example("x" * 300)
def test_any_run_has_a_name_that_kubernetes_takes(run: str) -> None:
    name = object_name(run)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name)
    assert name == object_name(run)


@given(texts.filter(bool), texts.filter(bool))
@example("a_b", "a-b")
@example("A", "a")
@example("a" * 60, "a" * 61)
def test_two_runs_never_share_a_name(one: str, other: str) -> None:
    assert one == other or object_name(one) != object_name(other)
