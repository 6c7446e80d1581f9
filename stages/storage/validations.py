"""Validations: what a run's checkpoints reached on the val split while it trained, and which of them was best.

    runs/<run>/validations/step-000001251.json

One file a validated step, so that two commands at one run take nothing from each other. It names by their sha256 the
weights that it is of, and holds no time: whoever validates them puts the same bytes. No torch is loaded here.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import UserError
from schemas.receipts import canonical_json, read_json
from stages.storage.store import Store

FOLDER = "validations"
_FILE = re.compile(r"step-\d{9}\.json")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What the weights of one checkpoint reached.

    Attributes:
        step: steps they had taken.
        epoch: in which the last of these was.
        measured_on: all that makes figures comparable: split, number of images, crop, input size.
        head: the one by which checkpoints are ranked.
        weights: path below the run's folder and sha256 by kind, "model" and, where there is one, "ema".
        figures: top-1 and top-5 as fractions, and numbers of images, by the names that metrics.jsonl has for them.
    """

    step: int
    epoch: int
    measured_on: dict[str, Any]
    head: str
    weights: dict[str, tuple[str, str]]
    figures: dict[str, float | int]

    def top1(self, kind: str) -> float:
        """Top-1 of the ranking head of one kind of weights, on the images that all validations of a run see."""
        return float(self.figures[figure_name(kind, self.head, "top1")])

    @property
    def line(self) -> dict[str, Any]:
        """The line of metrics.jsonl."""
        return {"step": self.step, "epoch": self.epoch, **self.figures}


@dataclass(frozen=True)
class BestWeights:
    """The weights with the highest top-1 of all that were validated: where they lie below the run's folder."""

    step: int
    kind: str
    file: str
    sha256: str
    top1: float


def figure_name(kind: str, head: str, figure: str, *, full: bool = False) -> str:
    """What a figure is called in metrics.jsonl, such as val_fused_top1 or val_full_ema_class_top5."""
    return f"val_{'full_' if full else ''}{'ema_' if kind == 'ema' else ''}{head}_{figure}"


def put_validation(store: Store, one: Validation) -> None:
    """Put a validation beside the others of a run."""
    store.put(validation_path(one.step), canonical_json(vars(one)))


def validation_path(step: int) -> str:
    """Where the validation of a step lies below a run's folder."""
    return f"{FOLDER}/step-{step:09d}.json"


def read_validations(store: Store, warn: Callable[[str], None] = lambda line: None) -> list[Validation]:
    """The validations of a run, in the order of their steps; one that is damaged is named and skipped."""
    found = []
    for name in sorted(filter(_FILE.fullmatch, store.files(FOLDER))):
        path = f"{FOLDER}/{name}"
        try:
            fields = read_json(store.read(path), store.display_path(path))
            weights = {kind: (str(file), str(sha256)) for kind, (file, sha256) in fields.pop("weights").items()}
            found.append(Validation(weights=weights, **fields))
        except FileNotFoundError:
            continue
        except (UserError, TypeError, ValueError, KeyError, AttributeError) as error:
            warn(f"{store.display_path(path)}: is damaged ({error}) and is skipped; delete it")
    return found


def best_of(validations: Sequence[Validation]) -> BestWeights | None:
    """The best of those measured on what the newest one was measured on; None without any.

    Of equals it is the earliest, and the model before its moving average.
    """
    if not validations:
        return None
    newest = max(validations, key=lambda one: one.step)
    comparable = [one for one in validations if (one.measured_on, one.head) == (newest.measured_on, newest.head)]
    ranked = [(one.top1(kind), -one.step, kind == "model", one, kind) for one in comparable for kind in one.weights]
    top1, _, _, one, kind = max(ranked, key=lambda row: row[:3])
    return BestWeights(one.step, kind, *one.weights[kind], top1)


def best_weights(store: Store) -> BestWeights:
    """The best weights of a run that is validated while it trains.

    Raises:
        UserError: if it has no validation, or they are gone.
    """
    best = best_of(read_validations(store))
    if best is None:
        raise UserError(
            f'evaluate.weights = "best": {store} has no validation; train with a val split and train.validate_every, '
            'or set evaluate.weights = "model"'
        )
    if not store.exists(best.file):
        raise UserError(
            f'evaluate.weights = "best": {store.display_path(best.file)} is missing; restore it, or set '
            'evaluate.weights = "model"'
        )
    return best
