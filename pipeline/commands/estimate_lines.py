"""What an estimate says for people: its stages, what other settings would save, and what it assumes."""

from typing import Any, NamedTuple

from pipeline.execution.devices import changed
from pipeline.execution.progress import duration
from schemas.config import RunFile
from stages.estimate.facts import Facts
from stages.estimate.forecast import Costs, Forecast, Machine, forecast
from stages.estimate.networks import StudentFacts
from stages.train.plan import TAUGHT

_HOUR = 3600.0


class Probed(NamedTuple):
    """All that a forecast is made from."""

    config: RunFile
    facts: Facts
    student: StudentFacts
    costs: Costs
    machine: Machine
    device: str
    busy: bool
    notes: list[str]


def forecast_of(probed: Probed, config: RunFile) -> Forecast:
    """What a run file takes by what was measured; `config` may have other values for some keys."""
    return forecast(config, probed.facts, probed.student, probed.costs, probed.machine)


def savings_of(probed: Probed, whole: Forecast) -> list[dict[str, Any]]:
    """What other settings would save, each alone; those that save nothing are told too."""
    found = []
    for change, tables in _alternatives(probed).items():
        other = forecast_of(probed, changed(probed.config, tables))
        hours = sum(one.seconds for one in whole.stages.values()) - sum(one.seconds for one in other.stages.values())
        found.append(
            {
                "change": change,
                "hours": hours / _HOUR,
                "device_hours": (whole.device_seconds - other.device_seconds) / _HOUR,
                "bytes": round(whole.bytes - other.bytes),
            }
        )
    return found


def _alternatives(probed: Probed) -> dict[str, dict[str, dict[str, Any]]]:
    config = probed.config
    found: dict[str, dict[str, dict[str, Any]]] = {}
    if config.train.distillation in TAUGHT:
        for share in (2, 10):
            passes = config.labels.views // config.views.repeats // share
            if passes:
                views = passes * config.views.repeats
                name = f"labels.views = {views}, train.reuse_views = true"
                found[name] = {"labels": {"views": views}, "train": {"reuse_views": True}}
        for precision in probed.costs.teacher:
            if precision != config.teacher.precision:
                found[f'teacher.precision = "{precision}"'] = {"teacher": {"precision": precision}}
    for precision in probed.costs.student:
        if precision != config.train.precision:
            found[f'train.precision = "{precision}"'] = {"train": {"precision": precision}}
    if not config.cache.decoded:
        found["cache.decoded = true"] = {"cache": {"decoded": True}}
    return found


def assumptions_of(probed: Probed) -> list[str]:
    """What a forecast takes for granted, a line each."""
    config, devices = probed.config, probed.machine.devices
    facts, costs = probed.facts, probed.costs
    said = [
        "everything is done from the beginning, once, and nothing fails",
        f"{len(facts.sample)} images, evenly spread, stand for all {facts.images:,} ({facts.origin})",
        "a core renders views as fast as one of this machine's",
        "the machine has no other work; hours of cores do not depend on that"
        + (", and hours are reckoned from them, since this one is busy now" if probed.busy else ""),
        "of mixed views the teacher names the own class in 40%, the partner's in 22%, which decides a decision's bytes",
    ]
    if devices > 1:
        said.append(f"{devices} devices are {devices} times as fast as one")
    measured = costs.student[config.train.precision]
    if measured.batch:
        said.append(
            f"a batch of {config.train.batch_size} takes what batches of 2 and {measured.batch} views say of it"
        )
        said.append("networks are not compiled, and have random weights")
    if probed.machine.on_cores and devices == 1:
        said.append("network and data processes share the cores")
    if config.cache.decoded:
        said.append("the decoded cache is filled; the first epoch does that")
    return [*probed.notes, *said]


def lines_of(probed: Probed, whole: Forecast, result: dict[str, Any]) -> list[str]:
    """The result for people: a line for each stage, then what it needs, what would be saved, and what is assumed."""
    machine, facts = probed.machine, probed.facts
    lines = [
        f"{facts.images:,} images of {facts.classes:,} classes in {len(facts.rows):,} shards, {facts.val_images:,} to "
        f"validate; {machine.devices} x {probed.device}, {machine.cores:g} cores each"
    ]
    lines += [_stage_line(name, one) for name, one in whole.stages.items()]
    total = sum(one.seconds for one in whole.stages.values())
    lines.append(
        f"{'all':14} {duration(total):>12}   {_bytes(whole.bytes):>10}   {result['device_hours']:,.2f} device hours"
    )
    free = result["free_bytes"]
    if free is not None:
        lines.append(f"free on the workspace's disk: {_bytes(free)}" + ("" if free > whole.bytes else ", too little"))
    lines.append(
        f"checkpoints: {whole.checkpoints:,} of {_bytes(probed.student.bytes.checkpoint)}, of which the newest stay; "
        f"decoded cache: {_bytes(whole.cached_bytes)}"
    )
    for name, wanted in result["cores_a_device"].items():
        each, taken = result["views_per_second_a_core"][name], f"{wanted:.1f} cores"
        lines.append(f"{name}: a core renders {each:,.0f} views/s; a device takes the views of {taken}")
    for one in result["savings"]:
        lines.append(f"{one['change']}: {_saved(one)}")
    if result["price"]:
        lines.append(f"price at {result['price']['an_hour']:g} an hour of a device: {result['price']['total']:,.2f}")
    return [*lines, *(f"assumed: {one}" for one in result["assumptions"])]


def _stage_line(name: str, one: Any) -> str:
    unit = "images" if name in ("shard", "evaluate") else "views"
    about = f"{one.units:,} {unit}, {one.units / one.seconds:,.0f}/s, waits for {_WAITS[one.bound]}"
    return f"{name:14} {duration(one.seconds):>12}   {_bytes(one.bytes):>10}   {about}"


_WAITS = {"network": "the network", "views": "views", "cores": "cores"}


def _saved(one: dict[str, Any]) -> str:
    """What a change saves, or what it takes more."""
    hours, more = duration(abs(one["hours"]) * _HOUR), one["hours"] < 0
    stored = f", stores {_bytes(one['bytes'])} less" if one["bytes"] > 0 else ""
    return f"takes {hours} more{stored}" if more else f"saves {hours}{stored}"


def _bytes(count: float) -> str:
    """Bytes in the unit that keeps them at 1 or more: "1.2 GB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{round(count)} bytes"
