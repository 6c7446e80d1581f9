"""Read a run file: TOML, with a command's overrides; errors have one line with the fault and what is allowed."""

import tomllib
from typing import Any

from pydantic import ValidationError

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.paths import local_path
from schemas.receipts import truncate_json
from schemas.secrets import without_secrets

_PAIR = "must be two numbers, such as [0.5, 1.0]"
_PLAIN = {  # pydantic's error types whose own words speak of Python rather than of TOML
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": _PAIR,
    "missing": _PAIR,
    "too_long": _PAIR,
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
}


def load_run_file(path: str, overrides: list[str]) -> RunFile:
    """Read a run file and apply `key=value` overrides (dotted keys, TOML values) to it.

    Raises:
        UserError: one line naming the key, the cause and what is allowed.
    """
    try:
        values = tomllib.loads(local_path(path, "--config").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such run file; write one with `deit-pipeline init {path}`") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from None
    for override in overrides:
        _put(values, override)
    return parse_run(values, path)


def parse_run(values: dict[str, Any], context: str) -> RunFile:
    """Check a run file's values; `context` names their origin in the error.

    Raises:
        UserError: one line naming the key, the cause and what is allowed.
    """
    try:
        return RunFile.model_validate(_tuples(values))
    except ValidationError as error:
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(f"{context}: {_explain(error.errors()[0])}{more}") from None


def shareable(run: RunFile) -> RunFile:
    """A run file as others may read it: without secrets in its URIs."""
    return RunFile.model_validate(without_secrets(run.model_dump()))


def _put(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not override.isascii() and any("\ud800" <= one <= "\udfff" for one in override):
        raise UserError(f"--set {override}: is not UTF-8 text; rename the file, or name it in another way")
    if not equals or not all(names):
        raise UserError(f"--set {override}: must be key=value, such as --set train.epochs=100")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": text.strip()}  # a bare word is a string, as shells eat the quotes
    if len(parsed) > 1:
        raise UserError(f"--set {truncate_json(override)}: must be one key=value; repeat --set for the next")
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: {name} is a value, not a table")
    values[names[-1]] = parsed["value"]


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _explain(error: Any) -> str:
    path = [part for part in error["loc"] if isinstance(part, str)]
    key, given = ".".join(path), error["input"]
    if error["type"] == "extra_forbidden":
        table: Any = RunFile
        for name in path[:-1]:
            table = table.model_fields[name].annotation
        return f"unknown key {key}; allowed here: {', '.join(table.model_fields)}"
    if error["type"] == "value_error" and isinstance(given, dict):  # of a table: names the key below it itself
        return ".".join([*path, str(error["ctx"]["error"])])
    message = _PLAIN.get(error["type"]) or error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return f"{key} = {truncate_json(given)}: {message}"
