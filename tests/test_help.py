"""`--help` teaches: options in groups, examples that can be typed; tables are drawn on terminals only."""

import io
import shlex

import pytest
from typer.main import get_command

import cli
from cli_help import EXAMPLES
from cli_tables import print_table, print_text
from schemas.presets import PRESETS
from tests.support.command_line import typed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def verbs(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*words, name))
        else:
            yield (*words, name), command


VERBS = dict(verbs(get_command(cli.app)))
TABLE = "# Heads\n\n| head | top-1 |\n|---|---|\n| class | 81.2% |\n"


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_examples_that_can_be_parsed(words):
    for example in EXAMPLES[words[-1]]:
        typed_words = shlex.split(example)
        assert tuple(typed_words[: len(words) + 1]) == ("deit-pipeline", *words)
        context = VERBS[words].make_context(words[-1], typed_words[len(words) + 1 :])
        assert context.params.get("preset", "deit-s-distilled") in PRESETS
    code, out, _ = typed(*words, "--help")
    assert code == 0 and out.index("How it runs:") < out.index("Examples:") < out.index(example)


def test_options_are_in_groups_once_each():
    out = typed("train", "--help")[1].partition("Examples:")[0]
    for option in ("--follow", "--config", "--set", "--dry-run", "--json"):
        assert out.count(f"{option} ") == 1
    assert out.index("Options:") < out.index("--follow") < out.index("Run file:") < out.index("--config")


def test_a_table_is_drawn_on_a_terminal_and_plain_elsewhere():
    terminal, file = Terminal(), io.StringIO()
    print_text(TABLE, terminal)
    print_text(TABLE, file)
    assert "81.2%" in terminal.getvalue() and "|---" not in terminal.getvalue()
    assert file.getvalue() == TABLE + "\n"
    print_text("one | two", plain := Terminal())
    assert plain.getvalue() == "one | two\n"


def test_rows_are_drawn_on_a_terminal_and_lines_elsewhere():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        print_table(("stage", "state"), [("train", "[red]done")], ["  train  done"], stream)
    assert "stage" in terminal.getvalue() and "[red]done" in terminal.getvalue()
    assert file.getvalue() == "  train  done\n"
