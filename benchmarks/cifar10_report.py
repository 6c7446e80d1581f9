"""The evidence of benchmarks/cifar10.py: figures of a workspace as JSON, as a page and as a picture.

Everything is read from the workspace's files: evaluations, metrics, analyses and costs. Rows that were not trained yet
are named as such. A claim is judged by arithmetic: the difference of two means against the largest spread (largest less
smallest) of a row of several seeds; nothing is judged by hand.
"""

import json
import statistics
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from cifar10 import ROOT, ROWS, Setting, read
from cifar10_page import LINES, page, picture, spread_of, tops
from gpu import commit, machine, versions

from schemas.manifests import LabelManifest
from stages.storage.manifest import CompleteStage, open_manifest
from stages.storage.store import Store


class Claim(NamedTuple):
    """Something that the paper found: one line of the table above another by more than seeds differ, or `equal`."""

    text: str
    better: tuple[str, str]
    worse: tuple[str, str]
    equal: bool = False


CLAIMS = (
    Claim("the teacher is better than the student alone", ("teacher", "class"), ("none", "class")),
    Claim("usual distillation adds nothing", ("usual", "class"), ("none", "class"), equal=True),
    Claim("hard distillation beats usual distillation", ("hard", "class"), ("usual", "class")),
    Claim("hard distillation beats none", ("hard", "class"), ("none", "class")),
    Claim("the distillation token beats none", ("token", "fused"), ("none", "class")),
    Claim("the distillation token beats hard distillation of one token", ("token", "fused"), ("hard", "class")),
    Claim("the distillation head beats the class head", ("token", "distillation"), ("token", "class")),
    Claim("a second class token adds nothing", ("two-class-tokens", "fused"), ("none", "class"), equal=True),
)


def write_evidence(setting: Setting, out: Path) -> None:
    """Write cifar10.json, .md and .png of what a workspace holds."""
    found = gather(setting)
    out.mkdir(parents=True, exist_ok=True)
    (out / "cifar10.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    (out / "cifar10.md").write_text(page(found))
    picture(found).save(out / "cifar10.png")


def gather(setting: Setting) -> dict[str, Any]:
    """All figures of a workspace."""
    names = ["teacher", *(f"{row}-{seed}" for row in ROWS for seed in range(ROWS[row].seeds))]
    sizes = setting.sizes
    last = {name: str(sizes.teacher_epochs if name == "teacher" else sizes.epochs) for name in names}
    measured = {
        name: one | {"done": last[name] in one.get("top1", {})} for name in names if (one := read(setting.root, name))
    }
    tokens = {row: _analysis(setting.root, f"runs/{row}-0/tokens.json") for row in ("token", "two-class-tokens")}
    return {
        "profile": setting.profile,
        "sizes": vars(setting.sizes),
        "trainings": {name: one | {"parameters": _parameters(setting.root, name)} for name, one in measured.items()},
        "planned": names,
        "images": {one: _samples(setting.root, one) for one in ("train", "val")},
        "label": _labels(setting.root),
        "losses": {name: _losses(setting.root, name) for name in measured if name.endswith("-0")},
        "disagreement": _analysis(setting.root, "runs/token-0/disagreement-baseline-none-0.json"),
        "tokens": {row: one for row, one in tokens.items() if one},
        "claims": [judged(claim, measured) for claim in CLAIMS],
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "command": shown_command(),
    }


def judged(claim: Claim, measured: dict[str, Any]) -> dict[str, Any]:
    """A claim with its difference in points, the spread it is held against and what that says."""
    better, worse = (tops(measured, *side) for side in (claim.better, claim.worse))
    about = {"claim": claim.text, "seeds": [len(better), len(worse)]}
    if not better or not worse:
        return about | {"verdict": "not measured yet"}
    spread = max(spread_of(tops(measured, line.row, line.head)) for line in LINES)
    difference = statistics.mean(better) - statistics.mean(worse)
    if abs(difference) <= spread:
        verdict = "agrees" if claim.equal else "within the spread of seeds: neither shown nor refuted"
    elif claim.equal:
        verdict = "does not agree: it is better" if difference > 0 else "does not agree: it is worse"
    else:
        verdict = "agrees" if difference > 0 else "does not agree: the other way round"
    return about | {"points": 100 * difference, "spread": 100 * spread, "verdict": verdict}


def _losses(root: Path, name: str) -> list[tuple[float, float]]:
    """Epoch and class loss of a run's lines, about thirty of them."""
    path = root / "runs" / name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    images = _samples(root, "train")
    kept = lines[:: max(1, len(lines) // 30)]
    return [(line["step"] * _batch(root, name) / images, line["class_loss"]) for line in kept]


def _samples(root: Path, split: str) -> int:
    return int(json.loads((root / f"shards/{split}/manifest.json").read_text())["samples"])


def _batch(root: Path, name: str) -> int:
    return tomllib.loads((root / "runs" / name / "run.toml").read_text())["train"]["batch_size"]


def _parameters(root: Path, name: str) -> int | None:
    found = _analysis(root, f"runs/{name}/evaluation.json")
    return found["parameters"] if found else None


def label_set(root: Path, name: str) -> CompleteStage[LabelManifest] | None:
    """A label set of the workspace, or None where it is not complete."""
    return open_manifest(Store(str(root / "labels" / name)), LabelManifest)


def bytes_of(found: CompleteStage[LabelManifest]) -> int:
    """Bytes of a label set's files."""
    return sum(file.bytes for part in found.parts for file in part.files)


def _labels(root: Path) -> dict[str, Any]:
    found = label_set(root, "teacher")
    if not found:
        return {}
    return read(root, "label-teacher") | {
        "decisions": sum(found.parts.rows),
        "bytes": bytes_of(found),
        "agreement": found.manifest.agreement,
        "mixed_agreement": dict(found.manifest.mixed_agreement),
    }


def _analysis(root: Path, path: str) -> dict[str, Any] | None:
    return json.loads((root / path).read_text()) if (root / path).exists() else None


def shown_command() -> str:
    """The command without the folders of one machine."""
    words = [word if "/" not in word else Path(word).name for word in sys.argv[1:]]
    return " ".join(["PYTHONPATH=. python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *words])
