"""Run files to start from: DeiT's students as their authors trained them, written out with comments.

A preset names the few values in which it differs from the schema's defaults. Keys, order, values and
comments of the text all come from the models in `schemas.config` and `schemas.recipe`, and it parses to exactly
the preset's run. Rejected: template files, which drift from the schema.
"""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from schemas.config import RunFile, parse_run
from schemas.errors import PipelineError
from schemas.recipe import Table

_WIDTH = 110


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One student of the paper, and the top-1 on ImageNet's validation split it aims at.

    `top1` is in percent, from Touvron et al. 2021, Table 3; a distilled student's is that of both heads
    fused. Table 9's hyper-parameters are the same for all sizes and are the schema's defaults.
    """

    name: str
    title: str
    model: str
    distillation: Literal["none", "hard"]
    top1: float

    def run_file(self, teacher: str = "") -> RunFile:
        """The run file's values, with one of `TEACHERS` or the default one."""
        values: dict[str, Any] = {
            "student": {"model": self.model},
            "train": {"name": self.name, "distillation": self.distillation},
        }
        if teacher:
            values |= {"teacher": {"model": TEACHERS[teacher].model}, "labels": {"name": teacher}}
        return parse_run(values, f"preset {self.name}")


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


def _pair(size: str, title: str, model: str, top1: float, distilled_top1: float) -> list[Preset]:
    plain = Preset(name=f"deit-{size}", title=title, model=f"deit_{model}_patch16_224", distillation="none", top1=top1)
    distilled = Preset(
        name=f"deit-{size}-distilled",
        title=f"{title} distilled",
        model=f"deit_{model}_distilled_patch16_224",
        distillation="hard",
        top1=distilled_top1,
    )
    return [plain, distilled]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for pair in (
        _pair("ti", "DeiT-Ti", "tiny", 72.2, 74.5),
        _pair("s", "DeiT-S", "small", 79.8, 81.2),
        _pair("b", "DeiT-B", "base", 81.8, 83.4),
    )
    for preset in pair
}


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
    if teacher and chosen.distillation == "none":
        raise PipelineError(f"preset {preset}: has no teacher; choose {preset}-distilled")
    run = chosen.run_file(teacher)
    return "\n".join([*_head(chosen, run, teacher), "", *_keys(run)]) + "\n"


def toml_text(run: RunFile) -> str:
    """Any run file's values as commented TOML, which parses to the same run."""
    return "\n".join(_keys(run)) + "\n"


def _head(preset: Preset, run: RunFile, teacher: str) -> Iterator[str]:
    distils = run.train.distillation != "none"
    heads = ", its two heads fused" if distils else ""
    taught = f"taught by {run.teacher.title}" if distils else "without a teacher"
    yield f"# {preset.title}: {run.train.epochs} epochs at {run.views.image_size} pixels, {taught}."
    yield f"# Aims at {preset.top1}% top-1 on ImageNet's validation split{heads} (Touvron et al. 2021, Table 3)."
    if teacher and run.teacher.model != RunFile().teacher.model:
        yield f"# That is with regnety-16gf; this teacher's top-1 is {TEACHERS[teacher].top1}% in Table 2."
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
        yield '# [teacher] and [labels] matter only once train.distillation is "hard" or "soft".'


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
        comment = textwrap.wrap(_comment(fields[name]), _WIDTH - column - 2, break_on_hyphens=False)
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
