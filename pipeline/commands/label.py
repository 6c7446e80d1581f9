"""Labelling as a command runs it: what a label set is made from, its parts, and what they amount to.

Passes come first, then shards, so that training can start when its first passes are labelled.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pipeline.execution.devices import compiled, device_count, device_line, run_device, settled
from pipeline.execution.progress import Progress
from pipeline.execution.ray_session import Resources
from pipeline.execution.run_parts import make_missing
from pipeline.execution.stage_dir import StageDir, completed_manifest, open_stage, write_manifest
from pipeline.execution.worker import Job
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.receipts import Receipt
from stages.data.split import Split
from stages.data.views import pixel_versions
from stages.label.label_set import LabelSpec
from stages.label.labeller import Labeller
from stages.label.margins import quantiles
from stages.models.teacher import Teacher
from stages.models.weights import outside_data
from stages.storage.commit import valid_receipts
from stages.storage.store import Store

Say = Callable[[str], None]
_SUMMARY = ("agreement", "mixed_agreement", "margins", "margin_counts", "near_ties")
_MIXED = {"own": "the view's own class", "partner": "its partner's", "neither": "neither"}


def label(run: RunFile, say: Say) -> dict[str, Any]:
    """Store the teacher's decisions for the run file's views.

    Raises:
        UserError: if there are no shards, or the teacher cannot be had or does not fit.
        MismatchError: if the label set there is of another teacher, recipe or split.
    """
    run, split = settled(run), Split.open(run.workspace, "train", run.cache)
    if not split.pairs:
        raise UserError(f"{split.store}: no shard holds two images to mix; raise shards.samples_per_shard")
    run = compiled(run, views=len(split) * run.labels.views)
    for line in _outside(run):
        say(line)
    store = Store(run.workspace).at(f"labels/{run.labels.name}")
    made_from = label_identity(run, split)
    for line in _resized(run, made_from):
        say(line)
    begun = open_stage(store, made_from, pixel_versions(), "use another labels.name, or restore the run file")
    say(_devices(run))
    manifest, new = completed_manifest(begun, views=run.labels.views), 0
    if manifest is None:
        manifest, new = _make(run, split, begun)
    return _result(run, split, store, manifest, new, say)


def _devices(run: RunFile) -> str:
    teacher = run.teacher
    return device_line(
        run,
        f"teacher {teacher.title}",
        precision=teacher.precision,
        compiled=teacher.compile,
        batch=f"batches of {teacher.batch_size}",
        workers=run.labels.workers,
    )


def _result(run: RunFile, split: Split, store: Store, manifest: dict[str, Any], new: int, say: Say) -> dict[str, Any]:
    """What there is to say of a whole label set."""
    decisions = sum(part["rows"] for part in manifest["parts"])
    stored = sum(length for folder in ("", "receipts") for length in store.files(folder).values())
    say(
        f"labels {run.labels.name}: {decisions} decisions, {stored / decisions:.2f} bytes each with all files → {store}"
    )
    say(f"the teacher agrees with the truth on {manifest['agreement']:.1%} of {len(split)} unmixed centre crops")
    shares = manifest["mixed_agreement"]
    say("of mixed views it names " + ", ".join(f"{_MIXED[name]} {share:.1%}" for name, share in shares.items()))
    half, near = manifest["margins"]["p50"], manifest["near_ties"]
    say(f"half of its margins are below {half:.2f}; {near:.3%} of its decisions are within rounding of a tie")
    return {
        "stage": "label-teacher", "decisions": decisions, "parts": len(manifest["parts"]), "new_parts": new,
        "views": run.labels.views, "bytes_per_view": stored / decisions,
    } | {name: manifest[name] for name in _SUMMARY}  # fmt: skip


def label_specs(done: dict[str, Receipt], shards: int, passes: int, passes_per_part: int) -> list[LabelSpec]:
    """The parts of a label set, done ones as they were dealt, passes first, then shards.

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


def _outside(run: RunFile) -> Iterator[str]:
    """A warning for each of timm's pretrained teachers that was chosen without its tag and saw other data."""
    for member in run.teacher.members:
        tag = "" if member.checkpoint else outside_data(member.model)
        if tag:
            yield (
                f"warning: teacher.model = {member.model} stands for {member.model}.{tag}, which was trained on more "
                "than ImageNet-1k; name a tag if its students are to be compared with others"
            )


def _resized(run: RunFile, made_from: dict[str, Any]) -> Iterator[str]:
    """Says of every network that takes another side than the views' that it does."""
    sides = made_from["teacher"]["side"]
    for member, side in zip(run.teacher.members, sides if isinstance(sides, list) else [sides], strict=True):
        if side != run.views.image_size:
            yield f"{member.model} sees the views of {run.views.image_size} pixels resized to {side}"


def label_identity(run: RunFile, split: Split) -> dict[str, Any]:
    """The identity of the label set."""
    return {
        "shards": split.content,
        "recipe": run.views.model_dump(mode="json"),
        "teacher": _teacher_identity(run, split),
        "store": _kept(run, len(split.classes)),
    }


def _kept(run: RunFile, classes: int) -> str | dict[str, Any]:
    """What the store keeps of a decision."""
    settings = run.labels
    if settings.store != "topk":
        return settings.store
    if settings.topk >= classes:
        raise UserError(
            f"labels.topk = {settings.topk}: must be less than the {classes} classes; "
            'lower it, or set labels.store = "full"'
        )
    return {"kind": "topk", "k": settings.topk, "tau": run.train.tau}


def _teacher_identity(run: RunFile, split: Split) -> dict[str, Any]:
    """What names the teacher; built on the CPU, so that a wrong one is refused before anything is started."""
    teacher = Teacher(
        run.teacher,
        workspace=run.workspace,
        num_classes=len(split.classes),
        image_size=run.views.image_size,
        device=torch.device("cpu"),
    )
    return teacher.identity() | {"device": run_device(run)}


def _make(run: RunFile, split: Split, begun: StageDir) -> tuple[dict[str, Any], int]:
    """Label what is missing; the manifest, and how many parts are new."""
    passes = run.labels.views // run.views.repeats
    done = {name: one for name, one in valid_receipts(begun.store).items() if one.made_by == begun.made_by}
    specs = label_specs(done, len(split.rows), passes, run.labels.passes_per_part)
    gpu = run_device(run) == "cuda"
    seats = Resources(count=device_count(run), cpus=1 + run.labels.processes if gpu else 1, gpus=int(gpu))
    job = Job(begun, partial(Labeller, run, split, run_device(run)), lanes=2 if gpu else 1, device=run_device(run))
    with Progress("label-teacher", total=len(specs), unit="parts", rate_unit="views") as progress:
        receipts, new = make_missing(job, specs, cluster=run.cluster, seats=seats, progress=progress, receipts=done)
    return write_manifest(begun, receipts, stage="label-teacher", views=run.labels.views, **_summary(receipts)), new


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
        "margin_counts": counts,
        "near_ties": sum(receipt.facts["near_ties"] for receipt in receipts) / decisions,
    }
