"""The training of one run or several, as curves of what metrics.jsonl says of each step."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schemas.errors import UserError
from stages.report.blocks import Block, Chart, Missing, Section
from stages.report.charts import Points, line_chart
from stages.storage.run_files import METRICS_FILE
from stages.storage.store import Store

Lines = Sequence[Mapping[str, Any]]

_LOSSES = {"loss": "total", "class_loss": "class head", "teacher_loss": "distillation head"}


def read_metrics(store: Store) -> Lines:
    """The lines of a run's metrics; empty where it has none.

    Raises:
        UserError: if they are damaged.
    """
    try:
        lines = [json.loads(line) for line in store.read(METRICS_FILE).splitlines()]
        if not all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in lines):
            raise ValueError("a line without its step")
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(
            f"{store.display_path(METRICS_FILE)}: is damaged ({error}); delete it and rerun `deit-pipeline train` with "
            "that run's run file, which writes it again from the newest checkpoint"
        ) from None
    return lines


def training_section(runs: Mapping[str, Lines]) -> Section:
    """Curves of loss, learning rate, accuracy, throughput, waiting and MFU.

    Args:
        runs: the metrics of each run by its name.
    """
    if not any(runs.values()):
        missing = Missing("No line of metrics is stored; a run writes one every train.log_every steps")
        return Section("training", "Training", [missing])
    blocks: list[Block] = list(filter(None, (chart(runs) for chart in _CHARTS)))
    if not _keys(runs, lambda key: key.startswith("val_")):
        blocks.append(Missing("No accuracy is stored by step: the run was not validated while it trained"))
    if not _keys(runs, lambda key: key == "mfu"):
        blocks.append(Missing("MFU is not stored: the peak of the device is not known, as of a CPU"))
    return Section("training", "Training", blocks)


def _keys(runs: Mapping[str, Lines], wanted: Callable[[str], bool]) -> list[str]:
    """Keys of the lines, in the order of their first appearance."""
    return list(dict.fromkeys(key for lines in runs.values() for line in lines for key in line if wanted(key)))


def _curves(runs: Mapping[str, Lines], titles: Mapping[str, str], factor: float = 1.0) -> dict[str, Points]:
    """A line of points for each key that a run has; it is named by the run where there are several."""
    curves: dict[str, Points] = {}
    for run, lines in runs.items():
        for key, title in titles.items():
            known = [line for line in lines if isinstance(line.get(key), int | float)]
            if known:
                name = title if len(runs) == 1 else run if len(titles) == 1 else f"{run}, {title}"
                curves[name] = [line["step"] for line in known], [factor * line[key] for line in known]
    return curves


def _loss(runs: Mapping[str, Lines]) -> Chart | None:
    titles = _LOSSES if len(runs) == 1 else {"loss": "total"}
    curves = _curves(runs, titles)
    return line_chart("Loss", curves, y="loss, nats") if curves else None


def _learning_rate(runs: Mapping[str, Lines]) -> Chart | None:
    curves = _curves(runs, {"lr": "learning rate"})
    return line_chart("Learning rate", curves, y="learning rate", from_zero=True) if curves else None


def _agreement(runs: Mapping[str, Lines]) -> Chart | None:
    curves = _curves(runs, {"teacher_agreement": "agreement"}, 100)
    title = "Views on which the distillation head names the teacher's class"
    return line_chart(title, curves, y="views, %", from_zero=True) if curves else None


def _validation(runs: Mapping[str, Lines]) -> Chart | None:
    keys = _keys(runs, lambda key: key.startswith("val_") and key.endswith("_top1"))
    curves = _curves(runs, {key: key.removeprefix("val_").removesuffix("_top1").replace("_", " ") for key in keys}, 100)
    return line_chart("Top-1 on the val split", curves, y="top-1, %") if curves else None


def _throughput(runs: Mapping[str, Lines]) -> Chart | None:
    curves = _curves(runs, {"views_per_second": "views"})
    return line_chart("Throughput", curves, y="views/s", from_zero=True) if curves else None


def _waiting(runs: Mapping[str, Lines]) -> Chart | None:
    curves = _curves(runs, {"waiting": "waiting"}, 100)
    return line_chart("Time spent waiting for batches", curves, y="time, %", from_zero=True) if curves else None


def _mfu(runs: Mapping[str, Lines]) -> Chart | None:
    curves = _curves(runs, {"mfu": "MFU"}, 100)
    return line_chart("Model FLOPs utilisation", curves, y="of the peak, %", from_zero=True) if curves else None


_CHARTS = (_loss, _learning_rate, _agreement, _validation, _throughput, _waiting, _mfu)
