"""The verbs that make something, and what each typed option means; those that look are in `cli_inspect`.

Every verb reads one run file and can be typed again after any failure. Exit codes: 0 done; 1 an error the user can
fix, in one line that says how; 2 usage; 3 stopped or some parts failed, resumable; 4 incompatible inputs.
"""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from cli_help import teach
from cli_inspect import config_app, doctor, inspect_app, report, status, verify
from cli_options import STANDARD, Address, Config, DryRun, Json, Override, RetryFailed, Verbs, on_address, settings_of
from cli_plan import estimate
from cli_process import errors, guarded
from cli_process import print_object as _print
from cli_process import say_to as _say
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.formats import require_export_format
from schemas.paths import local_path
from schemas.presets import TEACHERS, run_file_text
from schemas.toml_text import toml_value

# Data processes share the cores with the model's threads, which by default spin while they wait for each other:
# with both cores of a machine in use, passing the core on instead made a training step ten times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_ABOUT = "Distil a convnet into a vision transformer offline: shard, label once, train as often as wanted."

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=_ABOUT,
)
app.add_typer(inspect_app, name="inspect")
app.add_typer(config_app, name="config")

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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; also behind a verb.")] = False,
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
    with errors():
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

    with errors():
        _print(run_demo(folder, address or "local", _say(json_)), json_)


@app.command()
def shard(
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    config: Config = STANDARD,
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Pack images into WebDataset tars with an index."""
    _stage("shard", config, _retrying(set_, retry_failed), address, json_, dry_run)


@app.command()
def label_teacher(
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    config: Config = STANDARD,
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Run the teacher once over every view and store its decisions."""
    _stage("label", config, _retrying(set_, retry_failed), address, json_, dry_run)


@app.command()
def train(
    follow: Annotated[bool, typer.Option("--follow", help="Wait for passes that are still being labelled.")] = False,
    dry_run: DryRun = False,
    config: Config = STANDARD,
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Train the student from shards and decisions."""
    _stage("train", config, [*(set_ or []), *(["train.follow=true"] if follow else [])], address, json_, dry_run)


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
    dry_run: DryRun = False,
    config: Config = STANDARD,
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """Measure top-1 and top-5 of every head on the val split, or make one of the paper's analyses."""
    analyses = {"disagreement": disagreement, "tokens": tokens, "throughput": throughput}
    chosen = [name for name, on in analyses.items() if on]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    if chosen and dry_run:
        raise typer.BadParameter(f"--dry-run is of the evaluation, not of --{chosen[0]}")
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
    _stage(
        chosen[0] if chosen else "evaluate",
        config,
        [*_retrying(set_, retry_failed), *overrides],
        address,
        json_,
        dry_run,
    )


def _one_or_all(values: list[str] | None) -> str | list[str] | None:
    return values[0] if values and len(values) == 1 else values or None


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Finished runs of the workspace.")],
    config: Config = STANDARD,
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Lay finished runs side by side: what differs in their run files, and their figures (Tables 3, 8; Figure 3)."""
    with errors():
        settings = settings_of(config, set_)
        from pipeline.commands.compare import compare as lay_out

        _print(lay_out(settings, runs, _say(json_)), json_)


@app.command()
def export(
    format_: Annotated[str, typer.Option("--format", help="safetensors, huggingface, onnx or torch-export.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an export that is there.")] = False,
    config: Config = STANDARD,
    set_: Override = None,
    json_: Json = False,
) -> None:
    """Write the trained model in a form in which others load it."""
    with errors():
        require_export_format(format_)  # before torch is loaded, which takes seconds
        settings = settings_of(config, set_)
        from pipeline.commands.export import export as write

        _print(write(settings, format_, out, _say(json_), force), json_)


@app.command()
def run(
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    config: Config = STANDARD,
    set_: Override = None,
    address: Address = None,
    json_: Json = False,
) -> None:
    """All stages in order; those that are done are passed by."""
    _stage("everything", config, _retrying(set_, retry_failed), address, json_, dry_run)


for verb in (estimate, status, report, verify, doctor):
    app.command()(verb)
teach(app, inspect_app, config_app)


def main() -> NoReturn:
    """Entry point of the console script."""
    guarded(app)


def _retrying(overrides: list[str] | None, retry_failed: bool) -> list[str]:
    return [*(overrides or []), *(["cluster.retry_failed=true"] if retry_failed else [])]


def _stage(
    name: str, config: str, overrides: list[str] | None, address: str | None, as_json: bool, dry_run: bool
) -> None:
    with errors():
        settings = on_address(settings_of(config, overrides), address)
        if dry_run:
            from pipeline.commands.dry_run import dry_run as foresee

            _print(foresee(name, settings, _say(as_json)), as_json)
            return
        if name != "shard" and "torch" not in sys.modules:
            _say(True)(f"run file {config}, workspace {settings.workspace}; loading torch and timm")
        room = importlib.import_module(
            f"pipeline.commands.{_COMMAND_MODULES[name]}"
        )  # now that the run file is good: torch takes seconds
        stage: Callable[[RunFile, Callable[[str], None]], dict[str, Any]] = getattr(room, name)
        _print(stage(settings, _say(as_json)), as_json)


if __name__ == "__main__":
    main()
