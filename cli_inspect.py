"""The verbs that look without making anything: status, report, verify, doctor, inspect, config."""

import os
import sys
from typing import Annotated

import typer

from cli_options import STANDARD, Config, Json, Override, settings_of
from cli_process import TYPED, errors, shown
from cli_process import print_object as _print
from cli_process import say_to as _say
from cli_tables import print_table
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.formats import require_picture

inspect_app = typer.Typer(no_args_is_help=True, help="Look at what is stored.")
config_app = typer.Typer(no_args_is_help=True, help="Look at run files.")


def status(config: Config = STANDARD, set_: Override = None, json_: Json = False) -> None:
    """Show what the workspace holds and how far each stage is."""
    from pipeline.commands.status import about_stage
    from pipeline.commands.status import status as overview

    with errors():
        found = overview(settings_of(config, set_).workspace)
        say = _say(json_)
        say(f"workspace {found['workspace']}" + ("" if found["stages"] else ": holds nothing yet"))
        rows = [[shown(one[key]) for key in ("stage", "name", "state")] for one in found["stages"]]
        rows = [[*row, shown(about_stage(one))] for row, one in zip(rows, found["stages"], strict=True)]
        plain = [f"  {stage:14} {name:20} {state:8} {about}" for stage, name, state, about in rows]
        print_table(("stage", "name", "state", "progress"), rows, plain, sys.stderr if json_ else sys.stdout)
        _print(found, json_)


def report(
    runs: Annotated[list[str] | None, typer.Argument(help="A finished run; none = the run file's.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Several runs side by side.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="The run file's label set alone.")] = False,
    out: Annotated[str, typer.Option(help="The page to write.")] = "report.html",
    config: Config = STANDARD,
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Write what is stored of a run, a label set or several runs as one HTML page that needs no network."""
    names = runs or []
    if labels and (compare or names):
        raise typer.BadParameter("--labels takes neither runs nor --compare")
    if compare != (len(names) > 1):
        raise typer.BadParameter("--compare wants two or more runs" if compare else "several runs want --compare")
    with errors():
        settings = settings_of(config, set_)
        from pipeline.commands.report import report as write_report
        from pipeline.commands.report import report_comparison, report_labels

        if labels:
            result = report_labels(settings, out, _say(json_))
        elif compare:
            result = report_comparison(settings, names, out, _say(json_))
        else:
            result = write_report(settings, names[0] if names else "", out, _say(json_))
        _print(result, json_)


def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Also run replay and teacher again on a few parts.")] = False,
    parts: Annotated[int, typer.Option(min=1, help="With --deep: how many parts.")] = 2,
    config: Config = STANDARD,
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Read everything stored again and compare it with its receipts."""
    from pipeline.commands.verify import verify as check

    with errors():
        settings, say = settings_of(config, set_), _say(json_)
        found = check(settings.workspace)
        for problem in found["problems"]:
            say(f"{problem['path']}: {problem['what']}; {problem['fix']}" if problem["fix"] else problem["what"])
        say(f"{found['checked']} files checked, {len(found['problems'])} problems")
        if deep and found["ok"]:
            from pipeline.commands.verify_deep import verify_deep

            found |= {"deep": verify_deep(settings, parts, say)}
        _print(found, json_)
        if not found["ok"]:
            raise UserError("verify: problems were found; do what each line says, then verify again")
        if deep and not found["deep"]["ok"]:
            raise UserError(
                "verify --deep: teacher or views are not those that were labelled; compare the versions in the label "
                "set's plan.json with what is installed, or label again under another labels.name"
            )


def doctor(config: Config = STANDARD, set_: Override = None, json_: Json = False) -> None:
    """Check Python, torch, GPU, Ray, disk, shared memory, file limits and Ray's token; say what to do about each."""
    from pipeline.commands.doctor import doctor as examine

    with errors():
        settings = settings_of(config, set_) if os.path.exists(config) or set_ or config != STANDARD else RunFile()
        found = examine(settings, _say(json_))
        _print(found, json_)
        if not found["ok"]:
            raise UserError("doctor: something required is wrong; do what its line says, then type it again")


@inspect_app.command()
def views(
    sample: Annotated[str, typer.Option(help="Its number over the train split, from 0, or SHARD:ROW.")],
    views: Annotated[int, typer.Option(min=1, max=60, help="How many, from view 0.")] = 12,
    out: Annotated[str, typer.Option(help="The picture to write.")] = "sheet.png",
    config: Config = STANDARD,
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Draw what the teacher saw of one sample: its views, how they were made and mixed, and what it named."""
    with errors():
        settings = settings_of(config, set_)
        require_picture("--out", out)
        from pipeline.commands.inspect import views as draw

        _print(draw(settings, sample, views, out, _say(json_)), json_)


@inspect_app.command()
def labels(
    out: Annotated[str, typer.Option(help="The picture to write.")] = "labels.png",
    config: Config = STANDARD,
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Print and plot how far the teacher's decisions agree with the truth, class by class, and by what margins."""
    with errors():
        settings = settings_of(config, set_)
        require_picture("--out", out)
        from pipeline.commands.inspect import labels as draw

        _print(draw(settings, out, _say(json_)), json_)


@inspect_app.command()
def stability(
    views: Annotated[int, typer.Option(min=2, max=100_000, help="How many views to decide again.")] = 256,
    config: Config = STANDARD,
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Count the decisions that flip in other precisions and batch sizes, and their margins; stores nothing."""
    with errors():
        settings = settings_of(config, set_)
        from pipeline.commands.inspect import stability as compare

        _print(compare(settings, views, _say(json_)), json_)


@config_app.command()
def show(config: Config = STANDARD, set_: Override = None, json_: Json = False) -> None:
    """Every key of the run file with its value, and whether default, preset, file or --set gave it."""
    from pipeline.commands.config import show as list_keys

    with errors():
        TYPED.run_file = config
        _print(list_keys(config, set_ or [], _say(json_)), json_)


@config_app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A run file.")],
    second: Annotated[str, typer.Argument(help="Another, such as the run.toml of a finished run.")],
    set_: Override = None,
    json_: Json = False,
) -> None:
    """The keys in which two run files differ, each --set put over the second one; defaults count as written out."""
    from pipeline.commands.config import diff as compare

    with errors():
        _print(compare(first, second, set_ or [], _say(json_)), json_)
