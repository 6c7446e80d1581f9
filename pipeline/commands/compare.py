"""Compare finished runs of a workspace: what differs in their run files, and what they reached (Tables 3, 8, Figure 3).

    WORKSPACE/comparisons/<runs>/   compare.json  compare.md  compare.png

Nothing is measured here: every figure is read from a run's manifest, run file or evaluation, which the result names.
"""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from pipeline.commands.reports import put_figures
from schemas import paper
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.presets import PRESETS
from schemas.receipts import fingerprint, read_json, truncate_json
from stages.plotting.charts import Series, chart, markdown
from stages.storage.commit import read_manifest
from stages.storage.run_files import stored_run
from stages.storage.store import Store

Say = Callable[[str], None]
_HEADS = {"class": "class", "distillation": "distillation", "fused": "fused", "fused_softmax": "sum of softmaxes"}
_NOT_TRAINED = (
    "workspace", "cluster", "cache", "evaluate", "train.name", "train.workers", "train.log_every",
    "train.validate_every", "train.validate_images",
)  # fmt: skip
"""Keys that do not change what is trained, or that today's run file decides."""


def compare(run: RunFile, names: Sequence[str], say: Say) -> dict[str, Any]:
    """Lay runs side by side.

    Raises:
        UserError: if a run is not there, named twice, not trained to its end, or not evaluated.
    """
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"compare: {twice[0]} is named twice; name each run once")
    rows = [_row(run, name) for name in names]
    settings = {row["run"]: row.pop("settings") for row in rows}
    differing = _differing(list(settings.values()))
    for row in rows:
        row["differs"] = {key: settings[row["run"]].get(key) for key in differing}
    result = {"stage": "compare", "runs": rows}
    text, picture = _table(rows, differing), _figure_3(rows)
    joined = "-".join(names)
    folder = joined if len(joined) <= 80 else f"{joined[:60]}-{fingerprint(list(names))[:8]}"
    store = Store(run.workspace).at(f"comparisons/{folder}")
    files = put_figures(store, "compare", result, text, picture)
    say(text)
    say(f"→ {store}: {', '.join(files)}")
    return result


def _row(run: RunFile, name: str) -> dict[str, Any]:
    """What the files of one run say."""
    stored = stored_run(run, name)
    store = Store(run.workspace).at(f"runs/{name}")
    manifest = read_manifest(store)
    if manifest is None:
        raise UserError(f"{store}: is not trained to its end; run `deit-pipeline train` first")
    if not store.exists("evaluation.json"):
        raise UserError(f"{store}: is not evaluated; run `deit-pipeline evaluate --set train.name={name}` first")
    evaluation = read_json(store.read("evaluation.json"), store.name("evaluation.json"))
    train = read_manifest(Store(run.workspace).at("shards/train")) or {"samples": None}
    steps = manifest["steps"]
    return {
        "run": name,
        "steps": steps,
        "epochs": steps * stored.train.batch_size / train["samples"] if train["samples"] else None,
        "loss": manifest["loss"],
        "samples": evaluation["samples"],
        **{head: evaluation[head] for head in _HEADS},
        "paper": _paper(stored, name),
        "files": [f"runs/{name}/{file}" for file in ("run.toml", "manifest.json", "evaluation.json")],
        "settings": _flat(stored.model_dump(mode="json")),
    }


def _paper(stored: RunFile, name: str) -> dict[str, Any] | None:
    """Top-1 in percent that the paper gives for the preset of this name; None = there is none."""
    preset = PRESETS.get(name)
    heads = paper.TABLE_3.get(stored.student.model, {}) if preset and preset.table == 3 else {}
    return {"top1": preset.top1, "table": preset.table, **heads} if preset else None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of a run file by dotted key, but for those that do not change what is trained."""
    if name in _NOT_TRAINED:
        return {}
    if not isinstance(value, dict) or name.endswith(".extra"):
        return {name: value}
    return {key: leaf for part, one in value.items() for key, leaf in _flat(one, f"{name}.{part}".lstrip(".")).items()}


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all runs."""
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]


def _table(rows: Sequence[dict[str, Any]], differing: Sequence[str]) -> str:
    there = [head for head in _HEADS if any(row[head] for row in rows)]
    head = ["run", *differing, "epochs", "loss", *(f"top-1, {_HEADS[one]}" for one in there), "top-5", "images"]
    lines = []
    for row in rows:
        top1 = [f"{row[one]['top1']:.1%}" if row[one] else "" for one in there]
        epochs = "" if row["epochs"] is None else f"{row['epochs']:.1f}"
        changed = [truncate_json(row["differs"][key]) for key in differing]
        top5 = f"{(row['fused'] or row['class'])['top5']:.1%}"
        lines.append([row["run"], *changed, epochs, f"{row['loss']:.3f}", *top1, top5, f"{row['samples']:,}"])
    text = f"# Runs side by side\n\n{markdown(head, lines)}"
    if known := [row for row in rows if row["paper"]]:
        theirs = [
            [row["run"], *(str(row["paper"].get(one, "")) for one in ("class", "distillation")),
             str(row["paper"]["top1"]), str(row["paper"]["table"])]
            for row in known
        ]  # fmt: skip
        head = ["run", "class", "distillation", "top-1, %", "table"]
        text += f"\nThe paper's, for presets of these names ({paper.CREDIT}):\n\n{markdown(head, theirs)}"
    return text + "\nTop-5 is of both heads fused by the mean of logits, or of the only one.\n"


_LENGTH = ("train.epochs", "train.max_steps", "train.warmup_epochs", "labels.views", "train.reuse_views")
"""Keys by which trainings of one kind differ in length."""


def lines_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Epochs and top-1 in percent, a line for each way of training that more than its length tells from others."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["epochs"] is not None:
            others = {key: value for key, value in row["differs"].items() if key not in _LENGTH}
            words = (f"{key.rpartition('.')[2]} {_plain(value)}" for key, value in others.items())
            top1 = 100 * (row["fused"] or row["class"])["top1"]
            lines.setdefault(", ".join(words) or "top-1", []).append((row["epochs"], top1))
    return lines


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else truncate_json(value)


def _figure_3(rows: Sequence[dict[str, Any]]) -> Image.Image | None:
    """Top-1 by epochs; None where no run's epochs are known, as without its shards."""
    series = [Series(name, sorted(points)) for name, points in lines_of(rows).items()]
    if not series:
        return None
    about = "Top-1 on the val split after training for so many epochs, both heads fused where there are two."
    return chart("Accuracy by epochs", about, series, x="epochs", y="top-1, %")
