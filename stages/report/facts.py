"""What was run on what: data set, settings and provenance, as manifests, plans and run files say them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from schemas.config import RunFile
from schemas.manifests import LabelManifest, PartsManifest, ShardManifest
from schemas.plan import Plan
from schemas.receipts import truncate_json
from stages.report.blocks import Block, Missing, Section, Table
from stages.storage.run_files import FinishedRun

_SHOWN_SKIPPED = 20
_COMMANDS = "Commands, with a copy of the run file that is stored with the run (runs/RUN/run.toml)"


def run_section(run: FinishedRun, trained: RunFile, split: ShardManifest | None) -> Section:
    """What was trained, on what, for how long."""
    train, labels = trained.train, trained.labels
    taught = train.distillation in ("hard", "soft")
    epochs = f" ({run.manifest.steps * train.batch_size / split.samples:.1f} epochs)" if split else ""
    loss = "none" if run.manifest.loss is None else f"{run.manifest.loss:.4f}"
    rows = [
        ("run", run.name),
        ("student", f"{trained.student.model}, {trained.image_size} pixels"),
        ("distillation", train.distillation + (f", label set {labels.name}, {labels.store}" if taught else "")),
        *([("teacher", trained.teacher.title)] if taught else []),
        ("images", trained.source.train),
        ("steps", f"{run.manifest.steps:,} of {train.batch_size:,} views{epochs}"),
        ("optimizer", f"{train.optimizer}, lr {train.lr:g}, weight decay {train.weight_decay:g}, {train.precision}"),
        ("last mean loss", loss),
    ]
    return Section("run", "What was run", [Table((), rows)])


def data_section(splits: Mapping[str, ShardManifest | None], trained_on: str | None) -> Section:
    """Facts of the splits, and the images that were skipped.

    Args:
        splits: manifests by the name of the split; None = it is not stored.
        trained_on: content of the train split that a run saw; None = no run is shown.
    """
    blocks: list[Block] = []
    known = {name: manifest for name, manifest in splits.items() if manifest}
    if known:
        head = ("split", "images", "classes", "skipped", "other files", "shards")
        rows = [
            (name, f"{one.samples:,}", f"{len(one.classes):,}", f"{len(one.skipped):,}", f"{one.other_files:,}",
             f"{one.wanted:,}")
            for name, one in known.items()
        ]  # fmt: skip
        blocks.append(Table(head, rows))
    for name in splits:
        if name not in known:
            blocks.append(Missing(f"The {name} split is not stored in this workspace", "deit-pipeline shard"))
    train = known.get("train")
    if train and trained_on is not None and train.content != trained_on:
        blocks.append(Missing("The run was trained on another train split than the one that is stored now"))
    for name, one in known.items():
        blocks += _skipped(name, one)
    return Section("data", "Data set", blocks)


def _skipped(name: str, manifest: ShardManifest) -> list[Block]:
    """The images of a split that were skipped: how many for which reason, and the first by name."""
    if not manifest.skipped:
        return []
    reasons = Counter(one["reason"] for one in manifest.skipped).most_common(_SHOWN_SKIPPED)
    first = [(one["name"], one["reason"]) for one in manifest.skipped[:_SHOWN_SKIPPED]]
    title = f"Skipped images of the {name} split"
    title += f", the first {len(first)} of {len(manifest.skipped):,}" if len(first) < len(manifest.skipped) else ""
    counted = Table(("reason", "images"), [(reason, f"{count:,}") for reason, count in reasons])
    return [counted, Table(("image", "reason"), first, title, words=True)]


def provenance_section(
    run: FinishedRun | None,
    plan: Plan | None,
    stages: Mapping[str, PartsManifest | None],
    commands: Sequence[str],
) -> Section:
    """Hashes, versions and commands.

    Args:
        run: that is shown; None = none is.
        plan: of the run.
        stages: manifests of what it was made from, by what they are called.
        commands: that make all of it, in their order.
    """
    hashes = [("run, made by", run.manifest.made_by)] if run else []
    hashes += [(f"run, {file.path}", file.sha256) for file in run.manifest.files] if run else []
    for name, one in stages.items():
        if one:
            hashes += [(f"{name}, made by", one.made_by), (f"{name}, content", one.content)]
    label = next((one for one in stages.values() if isinstance(one, LabelManifest)), None)
    if label:
        hashes += [("teacher's weights", truncate_json(label.made_from["teacher"].get("weights_sha256")).strip('"'))]
    known: dict[str, dict[str, str]] = {name: one.versions for name, one in stages.items() if one}
    if plan:
        known["run"] = plan.versions
    return Section(
        "provenance",
        "Provenance",
        [
            Table((), hashes, "Hashes (sha256)"),
            _versions(known),
            Table((), [(str(number), command) for number, command in enumerate(commands, 1)], _COMMANDS),
        ],
    )


def _versions(known: Mapping[str, Mapping[str, str]]) -> Table:
    """Versions of libraries: a row each, a column for each stage that says its own."""
    names = sorted({library for versions in known.values() for library in versions})
    rows = [(library, *(versions.get(library, "") for versions in known.values())) for library in names]
    return Table(("library", *known), rows, "Versions")


def settings_section(settings: Mapping[str, Mapping[str, Any]]) -> Section:
    """The keys of run files, a column each.

    Args:
        settings: leaves by dotted key, by the run.
    """
    keys = dict.fromkeys(key for one in settings.values() for key in one)
    rows = [(key, *(_value(one.get(key)) for one in settings.values())) for key in keys]
    return Section("settings", "Run file", [Table(("key", *settings), rows, words=True)])


def _value(value: Any) -> str:
    return value if isinstance(value, str) else truncate_json(value)
