"""A signal in the last instants of a command ends it with the exit code that is due; what it prints, ASCII or not."""

import os
import subprocess
import sys

import pytest

from tests.support.world import ROOT, command, run_file

KILL = "os.kill(os.getpid(), signal.SIGTERM)"
MOMENTS = {
    "after the result": (f"print_ = cli_inspect._print; cli_inspect._print = lambda *a: (print_(*a), {KILL})", 3),
    "after the command": (f"end = cli_process.end_by; cli_process.end_by = lambda code: (end(code), {KILL})", 0),
    "before the interpreter's end": (
        "say = cli_inspect._say; "
        f"cli_inspect._say = lambda as_json: (atexit.register(lambda: {KILL}), say(as_json))[1]", 0,
    ),
    "in the interpreter's end": (f"atexit.register(lambda: {KILL})", 0),
}  # fmt: skip
"""A change of the command that sends it SIGTERM then, and its exit code."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_a_command_with_the_code_that_is_due(tmp_path, moment):
    change, code = MOMENTS[moment]
    program = f"import atexit, os, signal, sys\nimport cli, cli_inspect, cli_process\n{change}\ncli.main()"
    arguments = command("status", config=run_file(tmp_path / "ws", tmp_path), folder=tmp_path)[3:]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "holds nothing yet" in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.splitlines() == (["deit-pipeline: stopped; rerun the same command to resume"] if code else [])


def test_what_ascii_cannot_say_is_escaped_and_ends_no_command(tmp_path):
    arguments = command("status", config=run_file(tmp_path / "w→s", tmp_path), folder=tmp_path)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "w\\u2192s" in done.stdout
