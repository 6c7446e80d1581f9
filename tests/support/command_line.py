"""Commands in this process, and what they print."""

import json
from pathlib import Path

from typer.testing import CliRunner

import cli
from schemas.toml_text import toml_text


def typed(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def complaint(code: int, *arguments: str) -> str:
    """The one line in which a command is refused."""
    exit_code, out, err = typed(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("deit-pipeline: ")]
    failure = {"error": lines[0].removeprefix("deit-pipeline: "), "exit_code": code} if lines else {}
    wanted = json.dumps(failure) + "\n" if "--json" in arguments else ""
    assert (exit_code, out, len(lines)) == (code, wanted, 1), err
    assert err.splitlines()[-1] == lines[0]
    assert "Traceback" not in err
    return lines[0].removeprefix("deit-pipeline: ")


def written(run, folder: Path) -> str:
    (folder / "deit.toml").write_text(toml_text(run))
    return str(folder / "deit.toml")
