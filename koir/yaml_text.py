"""YAML as people write it: a date is its text, a key stands once, and what cannot be read is one line."""

import json
from pathlib import Path

import yaml

from koir.errors import FlagError


class _Loader(yaml.SafeLoader):
    """YAML in which a date is its text, and no mapping has a key twice: the first would be forgotten."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if seen.setdefault(str(key.value), line) != line:
                found = f"{key.value} again in line {line}, first in line {seen[key.value]}"
                raise yaml.constructor.ConstructorError(None, None, found, None)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path, place: str, expected: str) -> object:
    """The content of a YAML file; None where it is empty. Raises FlagError, at `place`, for what cannot be read."""
    try:
        return _Loader(file.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # values raise what Python does for them: !!bool x a KeyError, a number of 5,000 digits a ValueError
        why = " ".join(str(error).split())[:300]
        raise FlagError(place, f"broken YAML ({why})", expected) from None


def as_text(value: object, place: str) -> str:
    """A YAML value as a flag has it, JSON where it holds others. Raises FlagError, at `place`, where it has no text."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)
    except (TypeError, ValueError, RecursionError) as error:  # what holds itself, a number of too many digits
        raise FlagError(place, " ".join(str(error).split())[:200], "a value that can be written down") from None
