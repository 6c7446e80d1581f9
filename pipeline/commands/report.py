"""Report as a command runs it: what is stored of a run, of a label set or of several runs, on one page.

Nothing is measured here, and nothing is written but the page. A section whose data is not stored says so in one line,
with the command that makes it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from schemas.config import RunFile
from schemas.errors import IncompleteError, UserError
from schemas.manifests import LabelManifest, PartsManifest, PredictionsManifest, ShardManifest
from schemas.paths import local_path
from schemas.receipts import differences, read_json
from stages.data.split import Split
from stages.evaluate.predictions import Predictions
from stages.label.label_set import LabelSet
from stages.report.blocks import Missing, Section
from stages.report.confusion import confusion_section
from stages.report.facts import data_section, provenance_section, run_section, settings_section
from stages.report.heads import disagreement_section, heads_section, tokens_section
from stages.report.page import render
from stages.report.teacher import agreement_section, views_section
from stages.report.training import read_metrics, training_section
from stages.storage.commit import read_plan, read_receipt
from stages.storage.manifest import open_manifest, read_manifest
from stages.storage.run_files import FinishedRun, open_run
from stages.storage.store import Store

T = TypeVar("T")
Say = Callable[[str], None]


def report(config: RunFile, name: str, out: str, say: Say) -> dict[str, Any]:
    """Put a run on a page; `name` = "" is the run file's.

    Returns:
        Where the page is, and of each section whether it has anything to show.

    Raises:
        UserError: if the run is not trained to its end, its files are damaged, or the page cannot be written.
    """
    run = open_run(config.workspace, name or config.train.name)
    trained = run.config(config)
    splits = _splits(config.workspace)
    evaluations = _results(run, "evaluation")
    plan, labels = read_plan(run.store), _label_manifest(trained)
    taught = _is_taught(trained)
    made_from: dict[str, PartsManifest | None] = {"train split": splits["train"], "val split": splits["val"]}
    sections = [
        run_section(run, trained, splits["train"]),
        data_section(splits, run.manifest.made_from.get("shards")),
        *(_label_sections(trained) if taught else [_not_taught(trained)]),
        training_section({run.name: read_metrics(run.store)}),
        heads_section({run.name: evaluations}, {run.name: _weights(run)}),
        _confusion(trained, run, evaluations),
        disagreement_section(_results(run, "disagreement"), run.name),
        tokens_section(_results(run, "tokens"), run.name),
        settings_section({run.name: _flat(run.trained_with().model_dump(mode="json"))}),
        provenance_section(
            run, plan, made_from | ({"label set": labels} if taught else {}), _commands(run.name, taught)
        ),
    ]
    about = f"{trained.student.model}, {run.manifest.steps:,} steps, in {Store(config.workspace).display_uri}"
    return _write("run", f"Run {run.name}", about, sections, out, say) | {"run": run.name}


def report_labels(config: RunFile, out: str, say: Say) -> dict[str, Any]:
    """Put the run file's label set on a page.

    Returns:
        As `report`.

    Raises:
        UserError: if the train split is not stored, or the page cannot be written.
    """
    splits, labels = _splits(config.workspace), _label_manifest(config)
    made_from: dict[str, PartsManifest | None] = {"train split": splits["train"], "label set": labels}
    sections = [
        data_section({"train": splits["train"]}, None),
        *_label_sections(config),
        provenance_section(None, None, made_from, ["deit-pipeline shard", "deit-pipeline label-teacher"]),
    ]
    about = f"{config.teacher.title}, in {Store(config.workspace).display_uri}"
    return _write("labels", f"Label set {config.labels.name}", about, sections, out, say) | {
        "labels": config.labels.name
    }


def report_comparison(config: RunFile, names: Sequence[str], out: str, say: Say) -> dict[str, Any]:
    """Put several runs on a page, side by side.

    Returns:
        As `report`.

    Raises:
        UserError: if a run is named twice, not trained to its end or damaged, or the page cannot be written.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"report --compare: {twice[0]} is named twice; name each run once")
    runs = [open_run(config.workspace, name) for name in names]
    settings = {run.name: _flat(run.trained_with().model_dump(mode="json")) for run in runs}
    sections = [
        settings_section(_differing(settings)),
        training_section({run.name: read_metrics(run.store) for run in runs}),
        heads_section(
            {run.name: _results(run, "evaluation") for run in runs}, {run.name: _weights(run) for run in runs}
        ),
    ]
    for run in runs:
        one = provenance_section(run, read_plan(run.store), {}, _commands(run.name, _is_taught(run.trained_with())))
        sections.append(Section(f"provenance-{run.name}", f"Provenance of {run.name}", one.blocks))
    about = f"{len(runs)} runs, in {Store(config.workspace).display_uri}"
    return _write("compare", "Runs side by side", about, sections, out, say) | {"runs": list(names)}


def _write(kind: str, title: str, about: str, sections: Sequence[Section], out: str, say: Say) -> dict[str, Any]:
    file = local_path(out, "--out")
    try:
        file.write_text(render(title, about, sections), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror}); name a .html in a folder that exists"
        ) from None
    say(f"{title} → {out}")
    shown = {section.name: "absent" if section.absent else "shown" for section in sections}
    return {"report": kind, "out": out, "sections": shown}


def _splits(workspace: str) -> dict[str, ShardManifest | None]:
    return {name: read_manifest(Store(workspace).child(f"shards/{name}"), ShardManifest) for name in ("train", "val")}


def _label_manifest(config: RunFile) -> LabelManifest | None:
    return read_manifest(Store(config.workspace).child(f"labels/{config.labels.name}"), LabelManifest)


def _is_taught(trained: RunFile) -> bool:
    return trained.train.distillation in ("hard", "soft")


def _not_taught(config: RunFile) -> Section:
    what = f'No teacher taught this run: train.distillation is "{config.train.distillation}"'
    return Section("teacher", "The teacher's decisions", [Missing(what)])


def _label_sections(config: RunFile) -> list[Section]:
    """Agreement, margins and views of a label set; what is missing of them in a line."""
    split, why = _opened(lambda: Split.open(config.workspace, "train", config.cache))
    if split is None:
        return [Section("teacher", "The teacher's decisions", [Missing(f"Not shown: {why}")])]
    labels, why = _opened(lambda: LabelSet.open(config, split))
    manifest = _label_manifest(config)
    if labels is None or manifest is None:
        agreement = Section("teacher", "The teacher's decisions", [Missing(f"Not shown: {why}")])
    else:
        agreement = agreement_section(labels, manifest, split, config.views)
    teacher = f"{config.teacher.title}, set {config.labels.name}" if labels else "none for these views"
    return [agreement, views_section(labels, split, config.views, teacher)]


def _opened(do: Callable[[], T]) -> tuple[T | None, str]:
    """What is opened, or None and why it cannot be."""
    try:
        return do(), ""
    except IncompleteError:  # the store is away
        raise
    except UserError as error:
        return None, str(error)


def _results(run: FinishedRun, kind: str) -> list[dict[str, Any]]:
    """Results of a kind that are stored beside a run, in the order of their files' names."""
    files = [file for file in sorted(run.store.files()) if file.startswith(kind) and file.endswith(".json")]
    return [read_json(run.store.read(file), run.store.display_path(file)) for file in files]


def _weights(run: FinishedRun) -> set[str]:
    return {file.sha256 for file in run.manifest.files}


def _confusion(config: RunFile, run: FinishedRun, evaluations: Sequence[Mapping[str, Any]]) -> Section:
    """Of the first evaluation of the val split with the weights that the run has now."""
    title, fix = "Confusion of the worst classes", f"deit-pipeline evaluate --set train.name={run.name}"
    usable = [
        one
        for one in evaluations
        if one.get("model_sha256") in _weights(run) and one["images"] == "val" and one["labels"] == "source"
    ]
    if not usable:
        return Section("confusion", title, [Missing("No predictions of the val split are stored for this run", fix)])
    store = Store(config.workspace).child(usable[0]["predictions"])
    found = open_manifest(store, PredictionsManifest)
    split, why = _opened(lambda: Split.open(config.workspace, "val", config.cache))
    if found is None or split is None or split.content != usable[0]["split"]:
        what = why or "Predictions or val split are no longer those of the evaluation"
        return Section("confusion", title, [Missing(what, fix)])
    predictions = Predictions.read(store, [read_receipt(store, part) for part in found.parts.names])
    return confusion_section(predictions, split.classes, split)


def _commands(run: str, taught: bool) -> list[str]:
    stages = ["shard", *(["label-teacher"] if taught else [])]
    return [f"deit-pipeline {stage} -c run.toml" for stage in (*stages, "train", "evaluate")] + [
        f"deit-pipeline report {run} -c run.toml"
    ]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of a run file by dotted key."""
    if not isinstance(value, dict) or name.endswith(".extra"):
        return {name: value}
    return {key: leaf for part, one in value.items() for key, leaf in _flat(one, f"{name}.{part}".lstrip(".")).items()}


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings of each run in which not all are the same."""
    first = next(iter(settings.values()))
    keys = dict.fromkeys(
        key
        for one in settings.values()
        for key in (*first, *one)
        if differences(first.get(key), one.get(key)) and key != "workspace"
    )
    return {name: {key: one.get(key) for key in keys} for name, one in settings.items()}
