"""Rates of a device elsewhere, from the record that `benchmarks/gpu.py` writes.

A record has sections by network and size. A network that it does not have is taken to use the device as well as one
that it has: its rate is that one's, by the operations of both for a view.
"""

import json
from dataclasses import dataclass
from typing import Any

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.paths import local_path
from stages.estimate.timing import BatchCost, Cost
from stages.models.classifier import build
from stages.models.flops import TRAINING, forward_flops

_STUDENTS = {"ti": "deit_tiny", "s": "deit_small", "b": "deit_base"}
_TEACHERS = {"16gf": "regnety_160", "4gf": "regnety_040"}
_SIDE, _CLASSES = 224, 1000
"""At which every section was measured."""
_MEASURE = "measure it: python benchmarks/gpu.py --only"


@dataclass(frozen=True)
class Device:
    """A recorded device.

    Attributes:
        name: of the card.
        cores: of its host.
        file: that the record was read from.
        sections: their figures by name.
    """

    name: str
    cores: int
    file: str
    sections: dict[str, dict[str, Any]]

    def student(self, config: RunFile, flops: int, precision: str) -> BatchCost:
        """What a training step takes for a view; `flops` are its operations.

        Raises:
            UserError: if no student was recorded.
        """
        model = config.student.model.partition(".")[0].removesuffix("_distilled_patch16_224")
        exact = next((name for name, stem in _STUDENTS.items() if model == stem), "")
        if config.student.extra or config.image_size != _SIDE:
            exact = ""
        return self._cost("student", exact, precision, config.train.compile, flops)

    def teacher(self, config: RunFile, flops: int, precision: str) -> BatchCost:
        """What the teacher takes for a view; `flops` are its operations.

        Raises:
            UserError: if neither a teacher nor a student was recorded.
        """
        model = config.teacher.title.partition(".")[0]
        exact = next((name for name, stem in _TEACHERS.items() if model == stem), "")
        if config.teacher.extra or config.views.image_size != _SIDE:
            exact = ""
        return self._cost("teacher", exact, precision, config.teacher.compile, flops)

    def _cost(self, kind: str, exact: str, precision: str, compile_: Any, flops: int) -> BatchCost:
        if exact and (found := self._rate(f"{kind}-{exact}", precision, compile_)):
            rate, way = found
            return _at(rate, f"{kind}: {rate:,.0f} views/s, measured on {self.name} ({kind}-{exact}, {way})")
        others = [f"teacher-{one}" for one in _TEACHERS] + [f"student-{one}" for one in _STUDENTS]
        others.sort(key=lambda name: not name.startswith(kind))
        for name in others:
            if found := self._rate(name, precision, compile_):
                rate, way = found
                scaled = rate * _flops(name) / flops
                return _at(
                    scaled,
                    f"{kind}: {scaled:,.0f} views/s, not measured: {self.name}'s rate of {name} ({way}, {rate:,.0f} "
                    "views/s) by the operations of both for a view",
                )
        raise UserError(f"--rates {self.file}: has no rate of a {kind}; {_MEASURE} {kind}-{next(iter(_of(kind)))}")

    def _rate(self, section: str, precision: str, compile_: Any) -> tuple[float, str] | None:
        """A section's rate and the way it was measured: compiled, where the run file does not forbid that."""
        ready = self.sections.get(section, {}).get("ready", {})
        half = [precision, *(one for one in ("bf16", "fp16") if precision in ("bf16", "fp16"))]
        for name in half:
            for way in ([f"{name} compiled"] if compile_ is not False else []) + [name]:
                rate = ready.get(way, {}).get("views_per_second")
                if rate:
                    return float(rate), way
        return None


def _of(kind: str) -> dict[str, str]:
    return _STUDENTS if kind == "student" else _TEACHERS


def _at(rate: float, note: str) -> BatchCost:
    return BatchCost(Cost(0.0, 0.0), Cost(1 / rate, 0.0), 0, note)


def _flops(section: str) -> int:
    """Operations for a view of the network that a section measured."""
    kind, _, size = section.partition("-")
    model = _TEACHERS[size] if kind == "teacher" else f"{_STUDENTS[size]}_distilled_patch16_224"
    network = build(model, num_classes=_CLASSES, img_size=_SIDE, drop_path=0.0, extra={})
    once = forward_flops(network, _SIDE, next(network.parameters()).device)
    return once if kind == "teacher" else TRAINING * once


def read_rates(file: str) -> Device:
    """Read a record.

    Raises:
        UserError: if there is none, or it is not one that `benchmarks/gpu.py` writes.
    """
    wrong = f"--rates {file}: is not a record that benchmarks/gpu.py writes"
    try:
        found = json.loads(local_path(file, "--rates").read_text(encoding="utf-8"))
        sections = {name: one["figures"] for name, one in found["sections"].items() if "figures" in one}
        return Device(str(found["card"]), int(found["machine"]["cores"]), file, sections)
    except OSError as error:
        raise UserError(f"--rates {file}: cannot be read ({error.strerror}); name a record of docs/evidence") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{wrong} ({type(error).__name__}: {error}); name a file such as gpu-nvidia-h200.json"
        ) from None
