"""Config as a command: what a run file says, every default included, and how two differ. Secrets of URIs are hidden."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.config import RunFile
from schemas.presets import named_preset
from schemas.run_file import flat, load_run_file, parse_run, put_override, read_values
from schemas.secrets import without_secrets
from schemas.toml_text import toml_value

Say = Callable[[str], None]


def show(path: str, overrides: list[str], say: Say) -> dict[str, Any]:
    """Print every key, its value and its origin.

    The origin is `--set`; `default`, also of what a preset's run file writes out; `preset`, of what the preset that the
    file's head names has changed; or `file`. A key that `--set` gives inside a table, as in `student.extra`, counts
    as given.

    Returns:
        `keys`: a list of `key`, `value` and `from`.

    Raises:
        UserError: as `load_run_file`.
    """
    values, typed = read_values(path), _over({}, overrides)
    run = flat(load_run_file(path, overrides))
    preset = named_preset(Path(path).read_text(encoding="utf-8"))
    defaults, chosen = flat(RunFile()), flat(preset) if preset else {}
    rows = []
    for key, value in without_secrets(run).items():
        if _gives(typed, key):
            origin = "--set"
        elif not _gives(values, key):
            origin = "default"
        elif key in chosen and chosen[key] == run[key]:
            origin = "preset" if chosen[key] != defaults[key] else "default"
        else:
            origin = "file"
        rows.append({"key": key, "value": value, "from": origin})
    _table(["key", "value", "from"], [[one["key"], toml_value(one["value"]), one["from"]] for one in rows], say)
    return {"config": "show", "file": path, "keys": rows}


def diff(first: str, second: str, overrides: list[str], say: Say) -> dict[str, Any]:
    """Print the keys in which two run files differ; `overrides` are put over the second one.

    Returns:
        `differences`: a list of `key`, `first` and `second`.

    Raises:
        UserError: as `load_run_file`.
    """
    one, other = (
        without_secrets(flat(parse_run(_over(read_values(path), sets), path)))
        for path, sets in ((first, []), (second, overrides))
    )
    rows = [{"key": key, "first": one[key], "second": other[key]} for key in one if one[key] != other[key]]
    if rows:
        cells = [[row["key"], toml_value(row["first"]), toml_value(row["second"])] for row in rows]
        _table(["key", first, second], cells, say)
    else:
        say(f"{first} and {second}: every key has the same value")
    return {"config": "diff", "files": [first, second], "differences": rows}


def _over(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    for override in overrides:
        put_override(values, override)
    return values


def _gives(values: dict[str, Any], key: str) -> bool:
    """Whether a run file's own values have a dotted key."""
    table, _, name = key.rpartition(".")
    inner = values.get(table, {}) if table else values
    return isinstance(inner, dict) and name in inner


def _table(head: list[str], rows: list[list[str]], say: Say) -> None:
    """Columns with two spaces between; the last one is not padded."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
