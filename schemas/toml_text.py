"""A run file's values as commented TOML.

Keys, order, values and comments all come from the models in `schemas.config` and `schemas.recipe`. Rejected: template
files, which drift from the schema.
"""

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from schemas.config import RunFile
from schemas.recipe import Table

WIDTH = 110
"""Columns of a line of text."""


def toml_text(config: RunFile) -> str:
    """Any run file's values as commented TOML, which parses to the same run."""
    return "\n".join(_keys(config)) + "\n"


def _keys(config: RunFile) -> Iterator[str]:
    fields = RunFile.model_fields
    values = {name: getattr(config, name) for name in fields}
    yield from _table({name: value for name, value in values.items() if not isinstance(value, Table)}, fields)
    for name, table in values.items():
        if isinstance(table, Table):
            yield from ("", f"# {(table.__doc__ or '').partition(chr(10))[0]}", f"[{name}]")
            yield from _table(dict(table), type(table).model_fields)


def _table(values: dict[str, Any], fields: dict[str, FieldInfo]) -> Iterator[str]:
    """One `key = value  # comment` a key; the comments of a table begin in one column and wrap there."""
    settings = {name: f"{name} = {_toml(value)}" for name, value in values.items()}
    column = max(map(len, settings.values())) + 2
    for name, setting in settings.items():
        room = max(WIDTH - column - 2, 40)  # a long path pushes the comments out rather than squeezing them
        comment = textwrap.wrap(_comment(fields[name]), room, break_on_hyphens=False)
        for line in comment:
            yield f"{setting:<{column}}# {line}"
            setting = ""


def _comment(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    allowed = f"{' | '.join(map(_toml, choices))}: " if len(choices) > 1 else ""
    example = f"; such as {_toml(field.examples[0])}" if field.examples else ""
    return f"{allowed}{field.description}{example}"


def toml_value(value: Any) -> str:
    """A value as TOML spells it."""
    return _toml(value)


def _toml(value: Any) -> str:
    """JSON's way but for tables, numbers that are none, and DEL."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
