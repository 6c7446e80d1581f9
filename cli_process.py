"""How a command of this process ends: its exit code, the line that says why, its JSON object, and signals.

A command runs within `errors()`. What its user typed that concerns the ending is kept in `TYPED`.
"""

import atexit
import errno
import io
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

import typer

from cli_tables import print_text
from schemas.errors import UserError, last_line
from schemas.secrets import hide_secrets
from schemas.visible import visible

STANDARD_FILE = "deit.toml"
"""The run file of a command that names none."""
_STOPPED = "stopped; rerun the same command to resume"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130
"""typer's exit code where a signal came before or after all that answers it itself."""
_HINT = re.compile(r"`(deit-pipeline (?:shard|label-teacher|train|evaluate|run|verify)\b)([^`]*)`(?! with that run's)")
"""A command that a message tells to type; not one with the run file of another run."""


@dataclass
class Typed:
    """What the command line says of how to report.

    Attributes:
        json: an object on stdout is the last line.
        debug: errors come with their traceback.
        run_file: as typed behind `-c`.
        printed: the object was printed.
        stdout: that takes the object alone, while a command runs.
    """

    json: bool = False
    debug: bool = False
    run_file: str = STANDARD_FILE
    printed: bool = False
    stdout: TextIO | None = None


TYPED = Typed()


def start_typed(words: list[str]) -> list[str]:
    """Begin a command: forget the last one's `TYPED`; returns the words with `--debug` before the verb."""
    vars(TYPED).update(vars(Typed(json="--json" in words, debug="--debug" in words)))
    return (["--debug"] if TYPED.debug else []) + [word for word in words if word != "--debug"]


def guarded(app: Callable[[], Any]) -> NoReturn:
    """Run the command line as the whole process, and end the process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    atexit.register(_ignore_signals)  # it runs last: the interpreter then puts the default handlers back, but for these
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in a C locale too, where stdout takes ASCII only
    try:
        app()
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        print_failure(_STOPPED, 3)
        sys.exit(3)
    except Exception as error:  # a fault of ours
        print(hide_secrets(traceback.format_exc()), file=sys.stderr, flush=True)
        print_object_of_failure(last_line(error), 1)
        sys.exit(1)
    raise AssertionError("typer exits")


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_by(code: int) -> None:
    """Let a signal from now on end the command at once with the exit code that is due anyway.

    Only where `guarded` has set its own handlers: in tests a command ends without its process.
    """
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
        for number in _SIGNALS:
            signal.signal(number, lambda *_: os._exit(code))


@contextmanager
def errors() -> Iterator[None]:
    """Around a command: an error that its user can fix becomes one line and an exit code."""
    code = 1
    try:
        with _in_one_line(), _object_alone():
            yield
        code = 0
    except typer.Exit as end:
        code = end.exit_code
        raise
    finally:
        end_by(code)


@contextmanager
def _object_alone() -> Iterator[None]:
    """With `--json`, what libraries print goes to stderr: stdout holds one object."""
    if not TYPED.json:
        yield
        return
    TYPED.stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        print_failure(str(error), error.exit_code)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print_failure(_STOPPED, 3)
        raise typer.Exit(3) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:  # of a disk: what is at fault is a path, not the code
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # met in an open file, which has no name; a store names its
        path = error.filename or (tempfile.gettempdir() if full else "")
        cause = visible(f"{path}: {error.strerror}" if path else last_line(error))
        print_failure(f"{cause}; fix that, then rerun the same command", 1)
        raise typer.Exit(1) from None


def print_failure(line: str, exit_code: int) -> None:
    """Say on stderr why a command ends, with `--debug` after the traceback, and with `--json` on stdout as well."""
    if TYPED.debug and sys.exc_info()[0] is not None:
        print(visible(hide_secrets(traceback.format_exc()), keep="\n\t"), file=sys.stderr, flush=True)
    line = with_run_file(line)
    print(f"deit-pipeline: {line}", file=sys.stderr, flush=True)
    print_object_of_failure(line, exit_code)


def print_object_of_failure(line: str, exit_code: int) -> None:
    """With `--json`, print `{"error", "exit_code"}`, unless the command has printed its object already."""
    if TYPED.json and not TYPED.printed:
        print_object({"error": line, "exit_code": exit_code}, True)


def with_run_file(line: str) -> str:
    """A line whose advice to type a command names the run file in use, where that is not the standard one."""
    if TYPED.run_file == STANDARD_FILE:
        return line
    return _HINT.sub(lambda found: f"`{found[1]} -c {shlex.quote(TYPED.run_file)}{found[2]}`", line)


def say_to(as_json: bool) -> Callable[[str], None]:
    """What prints a command's lines: on stdout, or on stderr where stdout has the object."""
    stream = sys.stderr if as_json else sys.stdout
    return lambda line: print_text(shown(line), stream)


def shown(line: str) -> str:
    """A line as it is printed: with the run file in use in its advice, without secrets and control characters."""
    return visible(hide_secrets(with_run_file(line)), keep="\n\t")


def print_object(result: dict[str, Any], as_json: bool) -> None:
    """Print a command's result if it was asked for."""
    if as_json:
        TYPED.printed = True
        print(json.dumps(result), file=TYPED.stdout or sys.stdout, flush=True)
