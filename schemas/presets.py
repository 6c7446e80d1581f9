"""Run files to start from: every training of DeiT's paper as its authors ran it, written out with comments.

A preset names the few values in which it differs from the schema's defaults. Keys, order, values and
comments of the text all come from the models in `schemas.config` and `schemas.recipe`, and it parses to exactly
the preset's run. Rejected: template files, which drift from the schema.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from schemas.config import RunFile, parse_run
from schemas.errors import PipelineError
from schemas.recipe import Table

_WIDTH = 110
Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One training of the paper, and the top-1 it aims at.

    Attributes:
        name: of the preset and of its run.
        title: what is trained.
        top1: in percent, from a table of Touvron et al. 2021; a distilled student's is that of both heads fused.
        table: the number of that table.
        changes: tables of the run file with the keys in which it differs from the defaults, which are Table 9's.
        after: the preset whose run it starts from; "" = from fresh weights.
        data: on whose held-out images top1 was measured.
        note: what the paper leaves open, or says besides.
        workspace: where all of it lies.
    """

    name: str
    title: str
    top1: float
    table: int
    changes: Changes
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


def _size(size: str, title: str, model: str, top1: dict[str, float]) -> Iterator[Preset]:
    """The trainings of Tables 3 and 5 that exist in all three sizes."""
    plain, token = f"deit_{model}_patch16_224", f"deit_{model}_distilled_patch16_224"
    yield Preset(name=f"deit-{size}", title=title, top1=top1["plain"], table=3, changes=_student(plain, "none"))
    yield Preset(
        name=f"deit-{size}-hard",
        title=f"{title} without a distillation token, its one head taught by the teacher's class as well",
        top1=top1["hard"],
        table=3,
        changes=_student(plain, "hard"),
    )
    usual: Changes = {"labels": {"store": "topk"}, "train": {"tau": 3.0, "alpha": 0.1, "soft_reduction": "paper"}}
    yield Preset(
        name=f"deit-{size}-soft",
        title=f"{title} without a distillation token, taught by the teacher's probabilities",
        top1=top1["soft"],
        table=3,
        changes=_over(_student(plain, "soft"), usual),
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


def _fine_tuned(start: Preset, side: int, top1: float, table: int) -> Preset:
    """A student trained at 224 pixels, trained on at others as the authors' command does."""
    views: Changes = {
        "views": {"image_size": side},
        "labels": {"name": f"teacher-{side}", "views": 30},
        "student": {"init_checkpoint": f"run:{start.name}"},
    }
    return replace(
        start,
        name=f"{start.name}-{side}",
        title=f"{start.title}, fine-tuned at {side} pixels",
        top1=top1,
        table=table,
        changes=_over(start.changes, views, _FINE_TUNING),
        after=start.name,
    )


_ABLATIONS: dict[str, tuple[str, float, Changes, str]] = {
    "sgd": ("SGD in place of AdamW", 74.5, {"train": {"optimizer": "sgd"}}, "The paper does not give SGD's lr."),
    "no-randaugment": ("without RandAugment", 79.6, {"views": {"rand_augment": ""}}, ""),
    "autoaugment": (
        "AutoAugment in place of RandAugment", 81.2, {"views": {"rand_augment": "", "auto_augment": "original"}}, "",
    ),
    "no-mixup": ("without mixup", 78.7, {"views": {"mixup_alpha": 0.0}}, ""),
    "no-cutmix": ("without CutMix", 80.0, {"views": {"cutmix_alpha": 0.0}}, ""),
    "no-mixing": ("without mixup and CutMix", 75.8, {"views": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0}}, ""),
    "no-erasing": ("without erasing", 4.3, {"views": {"erasing_prob": 0.0}}, "The paper's own did not train well."),
    "no-stochastic-depth": (
        "without stochastic depth", 3.4, {"student": {"drop_path": 0.0}}, "The paper's own did not train well.",
    ),
    "no-repeats": ("without repeated augmentation", 76.5, {"views": {"repeats": 1}}, ""),
    "dropout": ("with dropout", 81.3, {"student": {"drop_rate": 0.1}}, "The paper gives no rate; .1 is ViT's."),
    "ema": (
        "the moving average of its weights",
        81.9,
        {"evaluate": {"weights": "ema"}, "train": {"name": "deit-b"}},
        "One training with preset deit-b: where that is done, only evaluate is left to do.",
    ),
}  # fmt: skip
"""Rows of Table 8 by name: what differs, top-1 after training at 224 pixels, the change, and what to know of it."""


def _ablated(base: Preset) -> Iterator[Preset]:
    for name, (what, top1, change, note) in _ABLATIONS.items():
        yield replace(
            base,
            name=f"{base.name}-{name}",
            title=f"{base.title}, {what}",
            top1=top1,
            table=8,
            changes=_over(base.changes, change),
            note=note,
        )


_SGD: Changes = {
    "student": {"drop_path": 0.0},
    "views": {"erasing_prob": 0.0},
    "train": {"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4, "epochs": 1000},
}
_ADAMW: Changes = {"views": {"erasing_prob": 0.1}, "train": {"lr": 7.5e-5, "epochs": 360}}
_OTHERS: dict[str, tuple[str, float, Changes, str]] = {
    "cifar-10": ("CIFAR-10", 99.1, _SGD, ""),
    "cifar-100": ("CIFAR-100", 90.8, _SGD, "The authors named these settings for CIFAR-10 and Cars."),
    "flowers": ("Flowers-102", 98.4, _SGD, "The authors named these settings for CIFAR-10 and Cars."),
    "cars": ("Stanford Cars", 92.1, _SGD, ""),
    "inat-18": ("iNaturalist 2018", 73.2, _ADAMW, ""),
    "inat-19": ("iNaturalist 2019", 77.7, _ADAMW, ""),
}
"""Columns of Table 7: top-1 of DeiT-B, and the settings its first author gave in facebookresearch/deit#45 and #105."""


def _transferred(start: Preset) -> Iterator[Preset]:
    trained = f"{start.workspace}/runs/{start.name}/model.safetensors"
    new: Changes = {
        "student": {"init_checkpoint": trained, "new_head": True},
        "train": {"batch_size": 768, "scale_lr": False},
    }
    for name, (data, top1, settings, note) in _OTHERS.items():
        yield replace(
            start,
            name=f"{start.name}-{name}",
            title=f"{start.title}, transferred to {data}",
            top1=top1,
            table=7,
            changes=_over(start.changes, new, settings),
            after=start.name,
            data=data,
            note=note,
            workspace=f"runs/{name}",
        )


def _all() -> Iterator[Preset]:
    sizes = (
        ("ti", "DeiT-Ti", "tiny", {"plain": 72.2, "soft": 72.2, "hard": 74.3, "distilled": 74.5, "long": 76.6}),
        ("s", "DeiT-S", "small", {"plain": 79.8, "soft": 79.8, "hard": 80.9, "distilled": 81.2, "long": 82.6}),
        ("b", "DeiT-B", "base", {"plain": 81.8, "soft": 81.8, "hard": 83.0, "distilled": 83.4, "long": 84.2}),
    )
    found = {preset.name: preset for size in sizes for preset in _size(*size)}
    yield from found.values()
    base = found["deit-b"]
    for side, top1 in ((160, 79.9), (320, 82.7), (384, 83.1)):
        yield _fine_tuned(base, side, top1, table=10)
    yield _fine_tuned(found["deit-b-distilled"], 384, 84.5, table=3)
    yield _fine_tuned(found["deit-b-distilled-1000"], 384, 85.2, table=5)
    yield from _ablated(base)
    yield from _transferred(base)
    yield Preset(
        name="regnety-160",
        title="RegNetY-16GF, the teacher, by the students' own procedure",
        top1=82.9,
        table=2,
        changes=_student("regnety_160", "none"),
        note='Its decisions: set teacher.model = "regnety_160" and teacher.checkpoint = "run:regnety-160".',
    )


PRESETS: dict[str, Preset] = {preset.name: preset for preset in _all()}


def run_file_text(preset: str, teacher: str = "") -> str:
    """The text of a preset's commented run file, TOML with lines of at most 110 characters.

    Raises:
        PipelineError: for an unknown preset or teacher, naming those there are, or a teacher for who has none.
    """
    if preset not in PRESETS:
        raise PipelineError(f"unknown preset {preset}; allowed: {', '.join(PRESETS)}")
    if teacher and teacher not in TEACHERS:
        raise PipelineError(f"unknown teacher {teacher}; allowed: {', '.join(TEACHERS)}")
    chosen = PRESETS[preset]
    run = chosen.run_file(teacher)
    if teacher and run.train.distillation == "none":
        raise PipelineError(f"preset {preset}: has no teacher; choose a distilled one, such as deit-b-distilled")
    return "\n".join([*_head(chosen, run, teacher), "", *_keys(run)]) + "\n"


def toml_text(run: RunFile) -> str:
    """Any run file's values as commented TOML, which parses to the same run."""
    return "\n".join(_keys(run)) + "\n"


def _head(preset: Preset, run: RunFile, teacher: str) -> Iterator[str]:
    distils = run.train.distillation != "none"
    heads = ", its two heads fused" if "_distilled_" in run.student.model else ""
    taught = f"taught by {run.teacher.title}" if distils else "without a teacher"
    other = teacher and run.teacher.model != RunFile().teacher.model
    about = (
        f"{preset.title}: {run.train.epochs} epochs at {run.views.image_size} pixels, {taught}.",
        f"Aims at {preset.top1}% top-1 on {preset.data}'s validation split{heads} "
        f"(Touvron et al. 2021, Table {preset.table}).",
        f"That is with regnety-16gf; this teacher's top-1 is {TEACHERS[teacher].top1}% in Table 2." if other else "",
        preset.note,
        preset.after and f"It starts from the model of preset {preset.after}: train that first.",
    )
    for sentence in about:
        yield from textwrap.wrap(sentence, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
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
        yield '# [teacher] and [labels] matter only where train.distillation is not "none".'


def _keys(run: RunFile) -> Iterator[str]:
    fields = RunFile.model_fields
    values = {name: getattr(run, name) for name in fields}
    yield from _table({name: value for name, value in values.items() if not isinstance(value, Table)}, fields)
    for name, table in values.items():
        if isinstance(table, Table):
            yield from ("", f"# {(table.__doc__ or '').partition(chr(10))[0]}", f"[{name}]")
            yield from _table(dict(table), type(table).model_fields)


def _table(values: dict[str, Any], fields: dict[str, FieldInfo]) -> Iterator[str]:
    """One `key = value  # comment` a key; the comments of a table begin in one column and wrap there."""
    settings = {name: f"{name} = {_toml(value)}" for name, value in values.items()}
    column = max(map(len, settings.values())) + 2
    for name, setting in settings.items():
        room = max(_WIDTH - column - 2, 40)  # a long path pushes the comments out rather than squeezing them
        comment = textwrap.wrap(_comment(fields[name]), room, break_on_hyphens=False)
        for line in comment:
            yield f"{setting:<{column}}# {line}"
            setting = ""


def _comment(field: FieldInfo) -> str:
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    allowed = f"{' | '.join(map(_toml, choices))}: " if len(choices) > 1 else ""
    example = f"; such as {_toml(field.examples[0])}" if field.examples else ""
    return f"{allowed}{field.description}{example}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
