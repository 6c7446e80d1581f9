"""Labelling as a command runs it: what a label set is made from, its parts, and what they amount to.

Passes come first, then shards, so that training can start when its first passes are labelled.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch

from pipeline.execution.devices import compiled, device_count, device_line, run_device, settled
from pipeline.execution.progress import Progress
from pipeline.execution.ray_session import Resources
from pipeline.execution.run_parts import make_missing
from pipeline.execution.stage_dir import StageDir, completed_manifest, open_stage, write_manifest
from pipeline.execution.worker import Job
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.label_identity import LabelIdentity, Sampled, TopK
from schemas.manifests import LabelManifest
from schemas.receipts import Receipt
from stages.data.split import Split
from stages.data.views import pixel_versions
from stages.label.label_set import LabelSet, LabelSpec
from stages.label.labeller import Labeller
from stages.label.margins import quantiles
from stages.models.student import HasClassNames
from stages.models.teacher import Teacher
from stages.models.weights import outside_data
from stages.storage.commit import valid_receipts
from stages.storage.manifest import CompleteStage
from stages.storage.run_files import warning_of_classes
from stages.storage.store import Store

Say = Callable[[str], None]
_SUMMARY = ("agreement", "mixed_agreement", "margins", "margin_counts", "near_ties")
_MIXED = {"own": "the view's own class", "partner": "its partner's", "neither": "neither"}


def label(config: RunFile, say: Say) -> dict[str, Any]:
    """Store the teacher's decisions for the run file's views.

    Raises:
        UserError: if there are no shards, or the teacher cannot be had or does not fit.
        MismatchError: if the label set there is of another teacher, recipe or split.
    """
    config, split = settled(config), Split.open(config.workspace, "train", config.cache)
    if not split.pairs:
        raise UserError(f"{split.store}: no shard holds two images to mix; raise shards.samples_per_shard")
    config = compiled(config, views=len(split) * config.labels.views)
    store = Store(config.workspace).child(f"labels/{config.labels.name}")
    identity = label_identity(config, split)
    warnings = (*_outside(config), *_other_shards(config, split), *_resized(config, identity))
    stage_dir = open_stage(
        store, identity.to_json(), pixel_versions(), "use another labels.name, or restore the run file"
    )
    for line in (*warnings, teacher_line(config)):
        say(line)
    found, new = completed_manifest(stage_dir, LabelManifest, views=config.labels.views), 0
    if found is None:
        found, new = _make(config, split, stage_dir)
    return _result(config, split, store, found, new, say)


def teacher_line(config: RunFile) -> str:
    """The line with which labelling begins: teacher, device, precision, batch, data processes."""
    teacher = config.teacher
    return device_line(
        config,
        f"teacher {teacher.title}",
        precision=teacher.precision,
        compiled=teacher.compile,
        batch=f"batches of {teacher.batch_size}",
        workers=config.labels.workers,
    )


def _result(
    config: RunFile, split: Split, store: Store, found: CompleteStage[LabelManifest], new: int, say: Say
) -> dict[str, Any]:
    """The summary of a complete label set."""
    manifest, decisions = found.manifest, sum(found.parts.rows)
    stored = sum(length for folder in ("", "receipts") for length in store.files(folder).values())
    say(
        f"labels {config.labels.name}: {decisions} decisions, {stored / decisions:.2f} bytes each with all files → "
        f"{store}"
    )
    say(f"the teacher agrees with the truth on {manifest.agreement:.1%} of {len(split)} unmixed centre crops")
    shares = manifest.mixed_agreement
    say("of mixed views it names " + ", ".join(f"{what} {shares[name]:.1%}" for name, what in _MIXED.items()))
    half, near = manifest.margins["p50"], manifest.near_ties
    say(f"half of its margins are below {half:.2f}; {near:.3%} of its decisions are within rounding of a tie")
    labels = LabelSet(store, manifest, found.parts, split.rows, config.views.repeats)
    if line := labels.warning_of_lost_mass(config.train.tau):
        say(line)
    return {
        "stage": "label-teacher", "decisions": decisions, "parts": len(found.parts), "new_parts": new,
        "views": config.labels.views, "bytes_per_view": stored / decisions,
    } | {name: value for name, value in manifest.fields().items() if name in _SUMMARY}  # fmt: skip


def label_specs(done: dict[str, Receipt], shards: int, passes: int, passes_per_part: int) -> list[LabelSpec]:
    """The parts of a label set, completed ones unchanged; ordered by passes, then shards.

    Raising `views` therefore adds parts and changes none.
    """
    specs = [LabelSpec.parse(name) for name in done]
    covered = {(spec.shard, pass_) for spec in specs for pass_ in range(spec.first_pass, spec.end_pass)}
    for shard in range(shards):
        missing = [pass_ for pass_ in range(passes) if (shard, pass_) not in covered]
        while missing:
            block = missing[0] // passes_per_part
            first = missing[0]
            end = first
            while missing and missing[0] == end and end // passes_per_part == block:
                end, missing = end + 1, missing[1:]
            specs.append(LabelSpec(shard, first, end))
    wanted = (spec for spec in specs if spec.first_pass < passes)
    return sorted(wanted, key=lambda spec: (spec.first_pass, spec.shard, spec.end_pass))


def _outside(config: RunFile) -> Iterator[str]:
    """A warning for each of timm's pretrained teachers that was chosen without its tag and saw other data."""
    for member in config.teacher.members:
        tag = "" if member.checkpoint else outside_data(member.model)
        if tag:
            yield (
                f"warning: teacher.model = {member.model} stands for {member.model}.{tag}, which was trained on more "
                "than ImageNet-1k; name a tag if its students are to be compared with others"
            )


def _other_shards(config: RunFile, split: Split) -> Iterator[str]:
    """A warning for each teacher that is a run of other shards, whose order of classes no file here says."""
    for member in config.teacher.members:
        line = warning_of_classes(
            "teacher.checkpoint", member.checkpoint, config.workspace, split.classes, split.content
        )
        if line:
            yield line


def _resized(config: RunFile, identity: LabelIdentity) -> Iterator[str]:
    """Says of every network that takes another side than the views' that it does."""
    for member, side in zip(config.teacher.members, identity.sides, strict=True):
        if side != config.views.image_size:
            yield f"{member.model} sees the views of {config.views.image_size} pixels resized to {side}"


def label_identity(config: RunFile, split: Split) -> LabelIdentity:
    """The identity of the label set."""
    return LabelIdentity(
        shards=split.content,
        recipe=config.views.identity(),
        teacher=teacher_identity(config, split),
        store=_kept(config, len(split.classes)),
    )


def _kept(config: RunFile, classes: int) -> Literal["hard", "full"] | TopK | Sampled:
    """What the store keeps of a decision."""
    settings = config.labels
    if settings.store == "hard" or settings.store == "full":
        return settings.store
    if settings.store == "sampled":
        return Sampled(kind="sampled", samples=settings.samples, tau=config.train.tau)
    if settings.topk >= classes:
        raise UserError(
            f"labels.topk = {settings.topk}: must be less than the {classes} classes; "
            'lower it, or set labels.store = "full"'
        )
    return TopK(kind=settings.store, k=settings.topk, tau=config.train.tau)


def teacher_identity(config: RunFile, split: HasClassNames) -> dict[str, Any]:
    """What names the teacher; built on the CPU, so that a wrong one is refused before anything is started.

    Raises:
        UserError: if its weights cannot be had or do not fit.
    """
    teacher = Teacher(
        config.teacher,
        workspace=config.workspace,
        num_classes=len(split.classes),
        image_size=config.views.image_size,
        device=torch.device("cpu"),
    )
    return teacher.identity() | {"device": run_device(config)}


def _make(config: RunFile, split: Split, stage_dir: StageDir) -> tuple[CompleteStage[LabelManifest], int]:
    """Label what is missing; the manifest, and how many parts are new."""
    passes = config.labels.views // config.views.repeats
    done = {name: one for name, one in valid_receipts(stage_dir.store).items() if one.made_by == stage_dir.made_by}
    specs = label_specs(done, len(split.rows), passes, config.labels.passes_per_part)
    device = run_device(config)
    gpu = device == "cuda"
    resources = Resources(count=device_count(config), cpus=1 + config.labels.processes if gpu else 1, gpus=int(gpu))
    job = Job(stage_dir, partial(Labeller, config, split, device), lanes=2 if gpu else 1, device=device)
    with Progress("label-teacher", total=len(specs), unit="parts", rate_unit="views") as progress:
        receipts, new = make_missing(
            job, specs, cluster=config.cluster, resources=resources, progress=progress, receipts=done
        )
    said: dict[str, Any] = {"stage": "label-teacher", "views": config.labels.views, **_summary(receipts)}
    return write_manifest(stage_dir, LabelManifest, receipts, **said), new


def _summary(receipts: Sequence[Receipt]) -> dict[str, Any]:
    """What the parts' facts add up to."""
    decisions = sum(receipt.rows for receipt in receipts)
    mixed = {name: sum(one.facts["agreement"][name] for one in receipts) for name in _MIXED}
    counts = [sum(bin_) for bin_ in zip(*(one.facts["margins"] for one in receipts), strict=True)]
    centre = [one.facts["centre_crops"] for one in receipts if "centre_crops" in one.facts]
    return {
        "agreement": sum(one["correct"] for one in centre) / sum(one["images"] for one in centre),
        "mixed_agreement": {name: count / decisions for name, count in mixed.items()},
        "margins": quantiles(counts),
        "margin_counts": tuple(counts),
        "near_ties": sum(receipt.facts["near_ties"] for receipt in receipts) / decisions,
    }
