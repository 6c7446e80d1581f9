"""Read a run file: TOML, with a command's overrides; errors have one line with the fault and what is allowed."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.paths import local_path
from schemas.receipts import truncate_json
from schemas.recipe import Table
from schemas.secrets import is_uri, without_secrets
from schemas.suggestions import did_you_mean

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


def load_run_file(path: str, overrides: list[str], say: Callable[[str], None] = lambda _: None) -> RunFile:
    """Read a run file and apply `key=value` overrides (dotted keys, TOML values) to it.

    A relative workspace is one beside the run file, where `--set` does not give it.

    Args:
        path: of the run file.
        overrides: as typed behind `--set`.
        say: takes a line that says which workspace that is, where it is not of the current folder alone.

    Raises:
        UserError: one line naming the key, the cause and what is allowed.
    """
    values = read_values(path)
    typed: dict[str, Any] = {}
    for override in overrides:
        put_override(values, override)
        put_override(typed, override)
    run = parse_run(values, path)
    if "workspace" in typed:
        return run
    return run.model_copy(update={"workspace": workspace_beside(path, run.workspace, say)})


def workspace_beside(path: str, workspace: str, say: Callable[[str], None]) -> str:
    """Which folder a run file's workspace is: a relative one is beside the run file.

    One that an earlier version made in the current folder is still found, where there is none beside the run file.
    """
    here, folder = Path.cwd(), Path(path).parent.resolve()
    if is_uri(workspace) or Path(workspace).is_absolute() or here == folder:
        return workspace
    beside, old = folder / workspace, here / workspace
    if old.exists() and not beside.exists():
        say(f"workspace {old}: in the current folder, as version 0.1 took it; beside {path} there is none")
        return workspace
    say(f"workspace {beside}" + (f", not {old}, which is there too" if old.exists() else ""))
    return str(beside)


def read_values(path: str) -> dict[str, Any]:
    """A run file's own keys, unchecked.

    Raises:
        UserError: if there is none, or it is not TOML.
    """
    try:
        return tomllib.loads(local_path(path, "--config").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such run file; write one with `deit-pipeline init {path}`") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from None


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


def put_override(values: dict[str, Any], override: str) -> None:
    """Put one `key=value` over a run file's values.

    Raises:
        UserError: if it is not of that form.
    """
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
        return f"unknown key {key}; allowed here: {', '.join(table.model_fields)}{_nearest(path, table)}"
    if error["type"] == "value_error" and isinstance(given, dict):  # of a table: names the key below it itself
        return ".".join([*path, str(error["ctx"]["error"])])
    message = _PLAIN.get(error["type"]) or error["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return f"{key} = {truncate_json(given)}: {message}"


def _nearest(path: list[str], table: Any) -> str:
    """The key that was probably meant: one of that name in another table, else one like it in the same."""
    elsewhere = [key for key in flat(RunFile()) if key.endswith(f".{path[-1]}")]
    if elsewhere:
        return f" (did you mean {' or '.join(elsewhere)}?)"
    return did_you_mean(".".join(path), [".".join([*path[:-1], name]) for name in table.model_fields])


def flat(run: RunFile) -> dict[str, Any]:
    """Dotted key → value of every key of a run file, in its order; a key's own table, as of `extra`, stays whole."""
    found: dict[str, Any] = {}
    for name in RunFile.model_fields:
        value = getattr(run, name)
        found |= {f"{name}.{key}": one for key, one in value} if isinstance(value, Table) else {name: value}
    return found
