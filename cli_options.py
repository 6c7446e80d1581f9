"""Options that several verbs share, and how words that are no verb or option are refused."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli_process import STANDARD_FILE, TYPED, print_object_of_failure, say_to, start_typed
from schemas.config import RunFile
from schemas.run_file import load_run_file
from schemas.secrets import hide_secrets

Config = Annotated[str, typer.Option("--config", "-c", help="The run file.")]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="Another value for one key: key=value, dotted, TOML.")
]
Address = Annotated[
    str | None,
    typer.Option(help="local: an embedded Ray; auto or a host: an existing cluster; inline: no Ray, this process."),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Also try parts again that an earlier command gave up.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done and check all that needs no device; write nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout as the last line, all else on stderr.")]
STANDARD = STANDARD_FILE

_UsageError: Any = typer.BadParameter.__mro__[1]
"""click's; newer typers carry a click of their own, in a private module."""


class Verbs(TyperGroup):
    """The verbs; typer names the nearest one of a misspelt verb or option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Also take `--debug` from behind the verb, and keep what concerns the ending."""
        with _usage_as_object():
            return super().parse_args(ctx, start_typed(args))

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        with _usage_as_object():
            return super().invoke(ctx)


class _usage_as_object:  # noqa: N801 (a context manager)
    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, _UsageError):
            print_object_of_failure(hide_secrets(error.format_message()), 2)


def settings_of(config: str, overrides: list[str] | None) -> RunFile:
    """The run file of a command; which workspace a relative path means is said on stderr.

    Raises:
        UserError: as `load_run_file`.
    """
    TYPED.run_file = config
    return load_run_file(config, overrides or [], say_to(True))


def on_address(config: RunFile, address: str | None) -> RunFile:
    """The run file with another `cluster.address`, where `--address` gives one."""
    if address is None:
        return config
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": address})})
