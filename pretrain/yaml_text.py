"""YAML in and out, with numbers such as ``1e-3`` read as numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pretrain.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's floats and without duplicate keys.

    PyYAML follows YAML 1.1, in which ``1e-3`` is a string, and keeps the last of two equal keys.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if not isinstance(key, str):
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: the key {key!r} is not a word; quote it"
                )
            if key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: the key {key!r} stands twice; keep one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes what the loader above would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+0123456789."),
    )


def parse_yaml(text: str, origin: str) -> Any:
    """Parse one YAML value.

    Args:
        text: YAML source.
        origin: What to call it in an error: a file's path or an override's key.

    Raises:
        ConfigError: If the text is not YAML; the message is one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError) as error:
        # The last three are what PyYAML lets through where a tag and its value do not fit.
        problem = " ".join(str(error).split())
        raise ConfigError(f"{origin}: not valid YAML: {problem}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: If the file is missing, unreadable, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}; name an existing YAML file") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds no settings; write `section:` lines as in configs/")
    return value


def to_yaml(value: dict[str, Any]) -> str:
    """Format plain data as YAML, keys in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100)
