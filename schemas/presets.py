"""Run files to start from: every training of DeiT's paper as its authors ran it, written out with comments.

A preset names the few values in which it differs from the schema's defaults; its text parses to exactly its run.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.run_file import parse_run
from schemas.suggestions import did_you_mean
from schemas.toml_text import WIDTH, toml_text

_IMAGES = 1_281_167
"""In ImageNet-1k's training split."""
Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One training of the paper, and the top-1 it aims at.

    Attributes:
        name: of the preset and of its run.
        title: what is trained.
        top1: in percent, from a table of Touvron et al. 2021; a distilled student's is that of both heads fused. None =
            the paper has no figure.
        table: the number of that table.
        changes: tables of the run file with the keys in which it differs from the defaults, which are Table 9's.
        after: the preset whose run it starts from; "" = from fresh weights.
        data: on whose held-out images top1 was measured.
        note: what the paper leaves open, or adds.
        workspace: the folder of everything.
    """

    name: str
    title: str
    changes: Changes
    top1: float | None = None
    table: int | None = None
    after: str = ""
    data: str = "ImageNet"
    note: str = ""
    workspace: str = "runs/deit"

    def run_file(self, teacher: str = "") -> RunFile:
        """The run file's values, with one of `TEACHERS` or the default one."""
        chosen: Changes = (
            {"teacher": {"model": TEACHERS[teacher].model}, "labels": {"name": teacher}} if teacher else {}
        )
        named = _over({"train": {"name": self.name}}, self.changes, chosen)
        return parse_run({"workspace": self.workspace, **named}, f"preset {self.name}")


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher of the paper's Table 2, and the top-1 in percent of the authors' own.

    Only the 16GF one's weights were published by the authors; for the smaller ones timm has those of RegNet's authors,
    trained on ImageNet-1k alone without DeiT's augmentation, which reach about one point less.
    """

    model: str
    top1: float


TEACHERS = {
    "deit-b": KnownTeacher("deit_base_patch16_224.fb_in1k", 81.8),
    "regnety-4gf": KnownTeacher("regnety_040.pycls_in1k", 80.0),
    "regnety-8gf": KnownTeacher("regnety_080.pycls_in1k", 81.7),
    "regnety-12gf": KnownTeacher("regnety_120.pycls_in1k", 82.4),
    "regnety-16gf": KnownTeacher("regnety_160.deit_in1k", 82.9),
}


def _over(*layers: Changes) -> dict[str, dict[str, Any]]:
    """Changes, the later over the earlier, key by key."""
    tables: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for table, keys in layer.items():
            tables[table] = tables.get(table, {}) | dict(keys)
    return tables


def _student(model: str, distillation: str) -> dict[str, dict[str, Any]]:
    return {"student": {"model": model}, "train": {"distillation": distillation}}


_USUAL: Changes = {"labels": {"store": "full"}, "train": {"tau": 3.0, "alpha": 0.1, "soft_reduction": "paper"}}


def _size(size: str, title: str, model: str, top1: dict[str, float]) -> Iterator[Preset]:
    """The trainings that exist in all three sizes: six kinds of supervision (Table 3, section 4) and Table 5's long."""
    plain, token = f"deit_{model}_patch16_224", f"deit_{model}_distilled_patch16_224"
    yield Preset(name=f"deit-{size}", title=title, top1=top1["plain"], table=3, changes=_student(plain, "none"))
    yield Preset(
        name=f"deit-{size}-hard",
        title=f"{title} without a distillation token, its one head taught by the teacher's class as well",
        top1=top1["hard"],
        table=3,
        changes=_student(plain, "hard"),
    )
    yield Preset(
        name=f"deit-{size}-soft",
        title=f"{title} without a distillation token, taught by the teacher's probabilities",
        top1=top1["soft"],
        table=3,
        changes=_over(_student(plain, "soft"), _USUAL),
    )
    yield Preset(
        name=f"deit-{size}-soft-token",
        title=f"{title} with a distillation token, taught by the teacher's probabilities",
        changes=_over(_student(token, "soft"), _USUAL),
    )
    yield Preset(
        name=f"deit-{size}-label-token",
        title=f"{title} with a second class token in place of the distillation token",
        changes=_student(token, "label"),
        note="Section 4's control: the paper found both tokens to become one (cosine .999), and no gain.",
    )
    distilled = Preset(
        name=f"deit-{size}-distilled",
        title=f"{title} distilled",
        top1=top1["distilled"],
        table=3,
        changes=_student(token, "hard"),
    )
    yield distilled
    long: Changes = {"train": {"epochs": 1000}, "labels": {"views": 1002}}
    yield replace(
        distilled, name=f"{distilled.name}-1000", top1=top1["long"], table=5, changes=_over(distilled.changes, long)
    )


_FINE_TUNING: Changes = {"train": {"epochs": 30, "batch_size": 512, "lr": 5e-6, "min_lr": 5e-6, "weight_decay": 1e-8}}


def _fine_tuned(
    start: Preset, side: int, top1: float | None, table: int | None, *, more: Changes | None = None, suffix: str = ""
) -> Preset:
    """A student trained at 224 pixels, trained on at others as the authors' command does, without depth dropped."""
    views: Changes = {
        "views": {"image_size": side},
        "labels": {"name": f"teacher-{side}", "views": 30},
        "student": {"init_checkpoint": f"run:{start.name}", "drop_path": 0.0, "drop_rate": 0.0},
    }
    return replace(
        start,
        name=f"{start.name}-{side}{suffix}",
        title=f"{start.title}, fine-tuned at {side} pixels{' by SGD' if suffix else ''}",
        top1=top1,
        table=table,
        changes=_over(start.changes, views, _FINE_TUNING, more or {}),
        after=start.name,
    )


class _Ablation(NamedTuple):
    """A row of Table 8: what differs, the change, top-1 at 224 pixels and after fine-tuning at 384, what to know."""

    what: str
    change: Changes
    top1: float
    tuned: float | None = None
    note: str = ""


_NO_RAND: Changes = {"views": {"rand_augment": ""}}
_FAILED = "The paper's own did not train well."
_ABLATIONS = {
    "sgd": _Ablation(
        "SGD in place of AdamW", {"train": {"optimizer": "sgd"}}, 74.5, 77.3, "The paper does not give SGD's lr."
    ),
    "no-randaugment": _Ablation("without RandAugment", _NO_RAND, 79.6, 80.4),
    "autoaugment": _Ablation(
        "AutoAugment in place of RandAugment", _over(_NO_RAND, {"views": {"auto_augment": "original"}}), 81.2, 81.9
    ),
    "no-mixup": _Ablation("without mixup", {"views": {"mixup_alpha": 0.0}}, 78.7, 79.8),
    "no-cutmix": _Ablation("without CutMix", {"views": {"cutmix_alpha": 0.0}}, 80.0, 80.6),
    "no-mixing": _Ablation(
        "without mixup and CutMix", {"views": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}}, 75.8, 76.7
    ),
    "no-erasing": _Ablation("without erasing", {"views": {"erasing_prob": 0.0}}, 4.3, note=_FAILED),
    "no-stochastic-depth": _Ablation("without stochastic depth", {"student": {"drop_path": 0.0}}, 3.4, note=_FAILED),
    "no-repeats": _Ablation("without repeated augmentation", {"views": {"repeats": 1}}, 76.5, 77.4),
    "dropout": _Ablation(
        "with dropout", {"student": {"drop_rate": 0.1}}, 81.3, 83.1, "The paper gives no rate; .1 is ViT's."
    ),
    "ema": _Ablation(
        "the moving average of its weights",
        {"evaluate": {"weights": "ema"}, "train": {"name": "deit-b"}},
        81.9,
        note="One training with preset deit-b: where that is done, only evaluate is left to do.",
    ),
}


def _ablated(base: Preset) -> Iterator[Preset]:
    """The rows of Table 8; all but the first are fine-tuned by AdamW, with the row's own augmentation."""
    by_adamw: Changes = {"train": {"optimizer": "adamw"}}
    for name, row in _ABLATIONS.items():
        trained = replace(
            base,
            name=f"{base.name}-{name}",
            title=f"{base.title}, {row.what}",
            top1=row.top1,
            table=8,
            changes=_over(base.changes, row.change),
            note=row.note,
        )
        yield trained
        if row.tuned is not None:
            yield _fine_tuned(trained, 384, row.tuned, table=8, more=by_adamw)
    by_sgd: Changes = {"train": {"optimizer": "sgd"}}
    tuned = _fine_tuned(base, 384, 83.1, table=8, more=by_sgd, suffix="-sgd")
    yield replace(tuned, note="The paper does not give SGD's lr.")


_SGD: Changes = {
    "student": {"drop_path": 0.0},
    "views": {"erasing_prob": 0.0},
    "train": {"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4, "epochs": 1000},
}
_ADAMW: Changes = {"views": {"erasing_prob": 0.1}, "train": {"lr": 7.5e-5, "epochs": 360}}
_AS_CIFAR_10 = "The authors named these settings for CIFAR-10 and Cars."
_OTHERS: dict[str, tuple[str, dict[int, float], Changes, str]] = {
    "cifar-10": ("CIFAR-10", {224: 99.1, 384: 99.1}, _SGD, ""),
    "cifar-100": ("CIFAR-100", {224: 90.8, 384: 90.8}, _SGD, _AS_CIFAR_10),
    "flowers": ("Flowers-102", {224: 98.4, 384: 98.5}, _SGD, _AS_CIFAR_10),
    "cars": ("Stanford Cars", {224: 92.1, 384: 93.3}, _SGD, ""),
    "inat-18": ("iNaturalist 2018", {224: 73.2, 384: 79.5}, _ADAMW, ""),
    "inat-19": ("iNaturalist 2019", {224: 77.7, 384: 81.4}, _ADAMW, ""),
}
"""Columns of Table 7: top-1 of DeiT-B by resolution, and the settings of facebookresearch/deit#45 and #105."""


def _transferred(start: Preset, side: int) -> Iterator[Preset]:
    """A student trained at a resolution, trained on with other images at the same."""
    new: Changes = {
        "views": {"image_size": side},
        "student": {
            "model": start.changes["student"]["model"],
            "init_checkpoint": f"{start.workspace}/runs/{start.name}/model.safetensors",
            "new_head": True,
        },
        "train": {"distillation": "none", "batch_size": 768, "scale_lr": False},
    }
    for name, (data, top1, settings, note) in _OTHERS.items():
        yield Preset(
            name=f"{start.name}-{name}",
            title=f"{start.title}, transferred to {data}",
            top1=top1[side],
            table=7,
            changes=_over(new, settings),
            after=start.name,
            data=data,
            note=note,
            workspace=f"runs/{name}" if side == 224 else f"runs/{name}-{side}",
        )


_DECIDES = 'Its decisions: set teacher.model = "regnety_160" and teacher.checkpoint = "run:{}".'


def _all() -> Iterator[Preset]:
    sizes = (
        ("ti", "DeiT-Ti", "tiny", {"plain": 72.2, "soft": 72.2, "hard": 74.3, "distilled": 74.5, "long": 76.6}),
        ("s", "DeiT-S", "small", {"plain": 79.8, "soft": 79.8, "hard": 80.9, "distilled": 81.2, "long": 82.6}),
        ("b", "DeiT-B", "base", {"plain": 81.8, "soft": 81.8, "hard": 83.0, "distilled": 83.4, "long": 84.2}),
    )
    found = {preset.name: preset for size in sizes for preset in _size(*size)}
    yield from found.values()
    base = found["deit-b"]
    for side, top1 in ((160, 79.9), (320, 82.7)):
        yield _fine_tuned(base, side, top1, table=10)
    tuned = _fine_tuned(base, 384, 83.1, table=10)
    yield tuned
    for start, top1 in (("deit-b-soft", 83.2), ("deit-b-hard", 84.0), ("deit-b-distilled", 84.5)):
        yield _fine_tuned(found[start], 384, top1, table=3)
    yield _fine_tuned(found["deit-b-distilled-1000"], 384, 85.2, table=5)
    yield from _ablated(base)
    yield from _transferred(base, 224)
    yield from _transferred(tuned, 384)
    teacher = Preset(
        name="regnety-160",
        title="RegNetY-16GF, the teacher, by the students' own procedure",
        top1=82.9,
        table=2,
        changes=_student("regnety_160", "none"),
        note=_DECIDES.format("regnety-160"),
    )
    yield teacher
    yield replace(_fine_tuned(teacher, 384, None, None), note=_DECIDES.format("regnety-160-384"))


_NAMED = re.compile(r"^# Preset ([\w-]+)(?: with teacher ([\w-]+))?\.$", re.MULTILINE)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _all()}


def run_file_text(preset: str, teacher: str = "") -> str:
    """The text of a preset's commented run file, TOML with lines of at most 110 characters.

    Raises:
        UserError: for an unknown preset or teacher, naming those there are, or a teacher for who has none.
    """
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset}; allowed: {', '.join(PRESETS)}{did_you_mean(preset, PRESETS)}")
    if teacher and teacher not in TEACHERS:
        raise UserError(f"unknown teacher {teacher}; allowed: {', '.join(TEACHERS)}{did_you_mean(teacher, TEACHERS)}")
    chosen = PRESETS[preset]
    run = chosen.run_file(teacher)
    if teacher and run.train.distillation not in ("hard", "soft"):
        raise UserError(f"preset {preset}: has no teacher; choose a distilled one, such as deit-b-distilled")
    return "\n".join([*_head(chosen, run, teacher), "", toml_text(run)])


def named_preset(text: str) -> RunFile | None:
    """The values of the preset whose run file a text was written as; None where it names none that is known."""
    found = _NAMED.search(text)
    if found is None or found[1] not in PRESETS or (found[2] or "") not in ("", *TEACHERS):
        return None
    return PRESETS[found[1]].run_file(found[2] or "")


def _notes(preset: Preset, config: RunFile) -> Iterator[str]:
    """What follows from a preset's values and is not to be seen in them."""
    resized = (
        config.views.image_size != 224 and "drop_path" in preset.changes["student"] and not config.student.new_head
    )
    if resized:
        yield (
            "It runs without stochastic depth and dropout, as the authors' released fine-tuning did "
            "(facebookresearch/deit#177)."
        )
    if config.train.distillation == "soft":
        gigabytes = 2 * 1000 * _IMAGES * config.labels.views / 1e9
        yield (
            f"Its loss reads the whole distribution: 2,000 bytes a view of 1,000 classes, {gigabytes:,.0f} GB for "
            f"{config.labels.views} views of ImageNet. At tau = 3 ten logits would hold 6% of the probability."
        )
    if resized and config.train.distillation in ("hard", "soft"):
        yield (
            f"The teacher is that of 224 pixels as it is; the paper adapts it to {config.views.image_size}: "
            "train preset "
            "regnety-160-384, and take its run as the teacher."
        )


def _head(preset: Preset, config: RunFile, teacher: str) -> Iterator[str]:
    distils = config.train.distillation in ("hard", "soft")
    heads = ", its two heads fused" if "_distilled_" in config.student.model else ""
    taught = f"taught by {config.teacher.title}" if distils else "without a teacher"
    other = teacher and config.teacher.model != RunFile().teacher.model
    aim = f"Aims at {preset.top1}% top-1 on {preset.data}'s validation split{heads} "
    about = (
        f"{preset.title}: {config.train.epochs} epochs at {config.views.image_size} pixels, {taught}.",
        f"{aim}(Touvron et al. 2021, Table {preset.table})." if preset.top1 else "The paper has no figure for it.",
        f"That is with regnety-16gf; this teacher's top-1 is {TEACHERS[teacher].top1}% in Table 2."
        if other and preset.top1
        else "",
        preset.note,
        *_notes(preset, config),
        preset.after and f"It starts from the model of preset {preset.after}: train that first.",
    )
    for sentence in about:
        yield from textwrap.wrap(sentence, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    yield f"# Preset {preset.name}" + (f" with teacher {teacher}." if teacher else ".")  # read by `named_preset`
    yield "#"
    yield "# Name your images in [source], then type, one after the other:"
    yield "#"
    yield "#     deit-pipeline shard            # packs the images, once"
    if distils:
        yield "#     deit-pipeline label-teacher    # stores the teacher's decisions, once for any number of students"
    yield "#     deit-pipeline train            # trains the student"
    yield "#     deit-pipeline evaluate         # top-1 and top-5"
    yield "#"
    yield "# Each reads deit.toml, or the file given with --config. Stopped? The same command again resumes."
    yield "# Try a value without editing: deit-pipeline train --set train.epochs=100"
    if not distils:
        yield '# [teacher] and [labels] matter only where train.distillation is "hard" or "soft".'
