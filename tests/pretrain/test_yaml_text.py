"""YAML is read strictly, with the numbers people write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.errors import ConfigError
from pretrain.yaml_text import parse_yaml, read_yaml, to_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("3E8", 3e8), ("-1.5e+2", -150.0), (".5e1", 5.0), ("12", 12), ("1.0", 1.0)],
)
def test_numbers_are_numbers(text, value):
    read = parse_yaml(text, "test")
    assert read == value
    assert type(read) is type(value)


def test_equal_keys_are_an_error_that_names_the_line():
    with pytest.raises(ConfigError, match=r"line 3.*'a' stands twice"):
        parse_yaml("a: 1\nb: 2\na: 3\n", "test")


@pytest.mark.parametrize(
    "text",
    [
        *("a: [1", "a: !!python/object/apply:os.system ['true']", "1: 2", "\t- x", "{" * 3000),
        *("!!int ''", "!!timestamp x", "!!bool x", "1" * 5000),
    ],
)
def test_what_is_not_plain_yaml_is_refused_in_one_line(text):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "test")
    assert "\n" not in str(caught.value)


leaves = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(st.dictionaries(st.text(), trees))
def test_what_is_written_is_read_back(value):
    assert parse_yaml(to_yaml(value), "test") == value


def test_a_missing_file_and_a_list_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds no settings"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(path)
