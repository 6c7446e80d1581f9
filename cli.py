"""The verbs: init, demo, shard, label-teacher, train, evaluate, compare, export, run, status, report, verify, inspect.

Every verb reads one run file and can be typed again after any failure. Exit codes: 0 done; 1 an error the user can
fix, in one line that says how; 2 usage; 3 stopped or some parts failed, resumable; 4 incompatible inputs.
"""

import atexit
import errno
import importlib
import importlib.metadata
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from schemas.config import RunFile
from schemas.errors import UserError, last_line
from schemas.paths import local_path
from schemas.presets import TEACHERS, run_file_text
from schemas.run_file import load_run_file
from schemas.secrets import hide_secrets
from schemas.toml_text import toml_value
from schemas.visible import visible

# Data processes share the cores with the model's threads, which by default spin while they wait for each other:
# with both cores of a machine in use, passing the core on instead made a training step ten times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ABOUT = "Distil a convnet into a vision transformer offline: shard, label once, train as often as wanted."

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=_ABOUT,
)

inspect = typer.Typer(no_args_is_help=True, help="Look at what is stored.")
app.add_typer(inspect, name="inspect")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130
"""typer's exit code where a signal came before or after all that answers it itself."""
_COMMAND_MODULES = {
    "shard": "shard",
    "label": "label",
    "train": "train",
    "evaluate": "evaluate",
    "disagreement": "analyses",
    "tokens": "analyses",
    "throughput": "throughput",
    "everything": "run",
}

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
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout as the last line, all else on stderr.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"deit-pipeline {importlib.metadata.version('deit-pipeline')}")
        except importlib.metadata.PackageNotFoundError:
            print("deit-pipeline, not installed")
        raise typer.Exit()


@app.callback(help=_ABOUT)
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def init(
    file: Annotated[str, typer.Argument(help="Where to write the run file.")] = "deit.toml",
    preset: Annotated[
        str, typer.Option(help="A training of the paper; an unknown name lists all.")
    ] = "deit-b-distilled",
    teacher: Annotated[str, typer.Option(help=f"One of {', '.join(TEACHERS)}; none = regnety-16gf.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented run file."""
    with _errors():
        text = run_file_text(preset, teacher)
        path = local_path(file, "init")
        if path.exists() and not force:
            raise UserError(f"{file}: is there already; give another name, or --force to replace it")
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file}: cannot be written ({error.strerror}); name another") from None
        print(f"{file}: preset {preset}; name your images in [source], then type: deit-pipeline shard -c {file}")


@app.command()
def demo(
    folder: Annotated[str, typer.Option(help="Where to work; a finished demo there is shown again.")] = "runs/demo",
    address: Address = None,
    json_: Json = False,
) -> None:
    """The whole way in miniature: real handwritten digits, a teacher, its labels, students with and without it."""
    from pipeline.commands.demo import demo as run_demo

    with _errors():
        _print(run_demo(folder, address or "local", _say(json_)), json_)


@app.command()
def shard(
    retry_failed: RetryFailed = False,
    config: Config = "deit.toml",
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Pack images into WebDataset tars with an index."""
    _stage("shard", config, _retrying(set_, retry_failed), address, json_)


@app.command()
def label_teacher(
    retry_failed: RetryFailed = False,
    config: Config = "deit.toml",
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Run the teacher once over every view and store its decisions."""
    _stage("label", config, _retrying(set_, retry_failed), address, json_)


@app.command()
def train(
    follow: Annotated[bool, typer.Option("--follow", help="Wait for passes that are still being labelled.")] = False,
    config: Config = "deit.toml",
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Train the student from shards and decisions."""
    _stage("train", config, [*(set_ or []), *(["train.follow=true"] if follow else [])], address, json_)


@app.command()
def evaluate(
    disagreement: Annotated[
        bool, typer.Option("--disagreement", help="How often truth, teacher and students decide differently (Table 4).")
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Cosine of class and distillation token by layer (section 4).")
    ] = False,
    throughput: Annotated[
        bool, typer.Option("--throughput", help="Images a second, beside accuracies (Tables 1 and 5, Figure 1).")
    ] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="A timm model in place of the run; repeat it for several.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="Its weights: a file or run:NAME; as often as --model.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Images, in any form that shard reads.")] = None,
    class_folders: Annotated[str | None, typer.Option(help="names, or indices as in ImageNet-V2.")] = None,
    real: Annotated[bool, typer.Option("--real", help="Count by ImageNet-Real's labels.")] = False,
    baseline: Annotated[str | None, typer.Option(help="For --disagreement: a run without a teacher.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the crop.")] = None,
    crop_pct: Annotated[float | None, typer.Option(help="The crop's share of the resized short side.")] = None,
    retry_failed: RetryFailed = False,
    config: Config = "deit.toml",
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Measure top-1 and top-5 of every head on the val split, or make one of the paper's analyses."""
    analyses = {"disagreement": disagreement, "tokens": tokens, "throughput": throughput}
    chosen = [name for name, on in analyses.items() if on]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    given: dict[str, Any] = {
        "model": _one_or_all(model),
        "checkpoint": _one_or_all(checkpoint),
        "source": source,
        "class_folders": class_folders,
        "labels": "imagenet-real" if real else None,
        "baseline": baseline,
        "image_size": image_size,
        "crop_pct": crop_pct,
    }
    overrides = [f"evaluate.{key}={toml_value(value)}" for key, value in given.items() if value is not None]
    _stage(chosen[0] if chosen else "evaluate", config, [*_retrying(set_, retry_failed), *overrides], address, json_)


def _one_or_all(values: list[str] | None) -> str | list[str] | None:
    return values[0] if values and len(values) == 1 else values or None


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Finished runs of the workspace.")],
    config: Config = "deit.toml",
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Lay finished runs side by side: what differs in their run files, and their figures (Tables 3, 8; Figure 3)."""
    with _errors():
        settings = load_run_file(config, set_ or [])
        from pipeline.commands.compare import compare as lay_out

        _print(lay_out(settings, runs, _say(json_)), json_)


@app.command()
def export(
    format_: Annotated[str, typer.Option("--format", help="safetensors, huggingface, onnx or torch-export.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an export that is there.")] = False,
    config: Config = "deit.toml",
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Write the trained model in a form in which others load it."""
    with _errors():
        settings = load_run_file(config, set_ or [])
        from pipeline.commands.export import export as write

        _print(write(settings, format_, out, _say(json_), force), json_)


@app.command()
def run(
    retry_failed: RetryFailed = False,
    config: Config = "deit.toml",
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """All stages in order; those that are done are passed by."""
    _stage("everything", config, _retrying(set_, retry_failed), address, json_)


@app.command()
def status(config: Config = "deit.toml", set_: Override = None, json_: Json = False) -> None:
    """Show what the workspace holds and how far each stage is."""
    from pipeline.commands.status import about_stage
    from pipeline.commands.status import status as overview

    with _errors():
        found = overview(load_run_file(config, set_ or []).workspace)
        say = _say(json_)
        say(f"workspace {found['workspace']}" + ("" if found["stages"] else ": holds nothing yet"))
        for one in found["stages"]:
            say(f"  {one['stage']:14} {one['name']:20} {one['state']:8} {about_stage(one)}")
        _print(found, json_)


@app.command()
def report(
    runs: Annotated[list[str] | None, typer.Argument(help="A finished run; none = the run file's.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Several runs side by side.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="The run file's label set alone.")] = False,
    out: Annotated[str, typer.Option(help="The page to write.")] = "report.html",
    config: Config = "deit.toml",
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Write what is stored of a run, a label set or several runs as one HTML page that needs no network."""
    names = runs or []
    if labels and (compare or names):
        raise typer.BadParameter("--labels takes neither runs nor --compare")
    if compare != (len(names) > 1):
        raise typer.BadParameter("--compare wants two or more runs" if compare else "several runs want --compare")
    with _errors():
        settings = load_run_file(config, set_ or [])
        from pipeline.commands.report import report as write_report
        from pipeline.commands.report import report_comparison, report_labels

        if labels:
            result = report_labels(settings, out, _say(json_))
        elif compare:
            result = report_comparison(settings, names, out, _say(json_))
        else:
            result = write_report(settings, names[0] if names else "", out, _say(json_))
        _print(result, json_)


@app.command()
def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Also run replay and teacher again on a few parts.")] = False,
    parts: Annotated[int, typer.Option(min=1, help="With --deep: how many parts.")] = 2,
    config: Config = "deit.toml",
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Read everything stored again and compare it with its receipts."""
    from pipeline.commands.verify import verify as check

    with _errors():
        settings, say = load_run_file(config, set_ or []), _say(json_)
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


@inspect.command()
def views(
    sample: Annotated[str, typer.Option(help="Its number over the train split, from 0, or SHARD:ROW.")],
    views: Annotated[int, typer.Option(min=1, max=60, help="How many, from view 0.")] = 12,
    out: Annotated[str, typer.Option(help="The picture to write.")] = "sheet.png",
    config: Config = "deit.toml",
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Draw what the teacher saw of one sample: its views, how they were made and mixed, and what it named."""
    with _errors():
        settings = load_run_file(config, set_ or [])
        from pipeline.commands.inspect import views as draw

        _print(draw(settings, sample, views, out, _say(json_)), json_)


@inspect.command()
def labels(
    out: Annotated[str, typer.Option(help="The picture to write.")] = "labels.png",
    config: Config = "deit.toml",
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Print and plot how far the teacher's decisions agree with the truth, class by class, and by what margins."""
    with _errors():
        settings = load_run_file(config, set_ or [])
        from pipeline.commands.inspect import labels as draw

        _print(draw(settings, out, _say(json_)), json_)


@inspect.command()
def stability(
    views: Annotated[int, typer.Option(min=2, max=100_000, help="How many views to decide again.")] = 256,
    config: Config = "deit.toml",
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Count the decisions that flip in other precisions and batch sizes, and their margins; stores nothing."""
    with _errors():
        settings = load_run_file(config, set_ or [])
        from pipeline.commands.inspect import stability as compare

        _print(compare(settings, views, _say(json_)), json_)


def main() -> NoReturn:
    """Entry point of the console script."""
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
        _stopped()
    except Exception:  # a fault of ours
        print(hide_secrets(traceback.format_exc()), file=sys.stderr, flush=True)
        sys.exit(1)
    raise AssertionError("typer exits")


def _stopped() -> NoReturn:
    print("deit-pipeline: stopped; rerun the same command to resume", file=sys.stderr, flush=True)
    sys.exit(3)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_by(code: int) -> None:
    """Let a signal from now on end the command at once with the exit code that is due anyway.

    Only where `main` has set its own handlers: in tests a command ends without its process.
    """
    if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
        for number in _SIGNALS:
            signal.signal(number, lambda *_: os._exit(code))


def _retrying(overrides: list[str] | None, retry_failed: bool) -> list[str]:
    return [*(overrides or []), *(["cluster.retry_failed=true"] if retry_failed else [])]


def _stage(name: str, config: str, overrides: list[str] | None, address: str | None, as_json: bool) -> None:
    with _errors():
        settings = load_run_file(config, overrides or [])
        if address is not None:
            settings = settings.model_copy(update={"cluster": settings.cluster.model_copy(update={"address": address})})
        room = importlib.import_module(
            f"pipeline.commands.{_COMMAND_MODULES[name]}"
        )  # now that the run file is good: torch takes seconds
        stage: Callable[[RunFile, Callable[[str], None]], dict[str, Any]] = getattr(room, name)
        _print(stage(settings, _say(as_json)), as_json)


@contextmanager
def _errors() -> Iterator[None]:
    code = 1
    try:
        with _in_one_line():
            yield
        code = 0
    except typer.Exit as end:
        code = end.exit_code
        raise
    finally:
        _end_by(code)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        print(f"deit-pipeline: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("deit-pipeline: stopped; rerun the same command to resume", file=sys.stderr, flush=True)
        raise typer.Exit(3) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:  # of a disk: what is at fault is a path, not the code
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # met in an open file, which has no name; a store names its
        path = error.filename or (tempfile.gettempdir() if full else "")
        cause = visible(f"{path}: {error.strerror}" if path else last_line(error))
        print(f"deit-pipeline: {cause}; fix that, then rerun the same command", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None


def _say(as_json: bool) -> Callable[[str], None]:
    return lambda line: print(
        visible(hide_secrets(line), keep="\n\t"), file=sys.stderr if as_json else sys.stdout, flush=True
    )


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
