"""The forecast: what a run file's stages take and store, from measured costs.

Work on one device waits for the slower of two: the network, or the processes that render its views. Where both are on
the same cores, it also waits for the sum of what they take of these.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from schemas.config import RunFile
from stages.estimate.facts import Facts
from stages.estimate.networks import StudentFacts
from stages.estimate.probe import DataCosts
from stages.estimate.sizes import LabelBytes
from stages.estimate.timing import BatchCost, Cost
from stages.train.plan import TAUGHT, planned_steps

_GB = 1e9
_HOUR = 3600.0


@dataclass(frozen=True)
class Machine:
    """What computes.

    Attributes:
        devices: at once.
        cores: of one device's share of its machine.
        on_cores: the devices are the cores themselves.
        starts: until commands begin with their work.
    """

    devices: int
    cores: float
    on_cores: bool
    starts: "Starts"


class Starts(NamedTuple):
    """Core seconds until a command begins with its work: `shard`, and those that load networks."""

    packing: float
    computing: float


@dataclass(frozen=True)
class Costs:
    """Everything measured: of images and views, of networks by precision, of a byte on the disk."""

    data: DataCosts
    teacher: dict[str, BatchCost]
    student: dict[str, BatchCost]
    forward: BatchCost
    disk: Cost
    labels: LabelBytes


@dataclass(frozen=True)
class StageForecast:
    """What one stage takes.

    Attributes:
        units: of work, views or images.
        seconds: of the clock, all devices at once.
        device_seconds: of all devices together; 0 for a stage that needs none.
        core_seconds: of all cores together.
        bound: what it waits for: "network", "views" or "cores".
        bytes: that it stores.
    """

    units: int
    seconds: float
    device_seconds: float
    core_seconds: float
    bound: str
    bytes: float

    def to_json(self) -> dict[str, Any]:
        """Fields in hours, with the rate."""
        return {
            "units": self.units,
            "hours": self.seconds / _HOUR,
            "device_hours": self.device_seconds / _HOUR,
            "core_hours": self.core_seconds / _HOUR,
            "units_per_second": self.units / self.seconds if self.seconds else 0.0,
            "bound": self.bound,
            "bytes": round(self.bytes),
        }


@dataclass(frozen=True)
class Forecast:
    """All stages by name, and what the training comes to."""

    stages: dict[str, StageForecast]
    steps: int
    checkpoints: int
    labelled_views: int
    cached_bytes: float

    @property
    def device_seconds(self) -> float:
        """Of all stages."""
        return sum(one.device_seconds for one in self.stages.values())

    @property
    def bytes(self) -> float:
        """That all stages leave in the workspace."""
        return sum(one.bytes for one in self.stages.values())


def forecast(config: RunFile, facts: Facts, student: StudentFacts, costs: Costs, machine: Machine) -> Forecast:
    """What a complete run of the run file takes; nothing that is done already is taken off.

    Args:
        config: the run file, its precisions settled.
        facts: of its images.
        student: its bytes.
        costs: measured.
        machine: what computes.

    Raises:
        UserError: if the batch cannot be divided over the devices, or is larger than an epoch.
    """
    steps_per_epoch, steps = planned_steps(config, facts, machine.devices)
    every = config.train.checkpoint_every or steps_per_epoch
    stages = {"shard": _shard(config, facts, costs, machine)}
    taught = config.train.distillation in TAUGHT
    if taught:
        stages["label-teacher"] = _label(config, facts, costs, machine)
    stages["train"] = _train(config, facts, student, costs, machine, steps, steps_per_epoch)
    if facts.val_images:
        stages["evaluate"] = _evaluate(config, facts, costs, machine)
    cached = cached_share(config, facts, costs.data) * facts.images * costs.data.decoded_bytes
    views = 2 * facts.pairs * config.labels.views if taught else 0
    return Forecast(stages, steps, math.ceil(steps / every), views, cached)


def cached_share(config: RunFile, facts: Facts, data: DataCosts) -> float:
    """The share of the images for whose pixels `cache.decoded` would have space."""
    return min(1.0, config.cache.decoded_gigabytes * _GB / (facts.images * data.decoded_bytes))


def rendering(config: RunFile, facts: Facts, data: DataCosts) -> float:
    """Core seconds of a view for the student, of which some come from `cache.decoded` where that is on."""
    share = cached_share(config, facts, data) if config.cache.decoded else 0.0
    return share * data.cached_view + (1 - share) * data.train_view


def packed_bytes(facts: Facts, data: DataCosts, max_side: int) -> float:
    """Bytes of the train split's tars: as they are, by the listed lengths, or by the sample's mean."""
    if facts.packed_bytes:
        return float(facts.packed_bytes)
    if facts.encoded_bytes and not max_side:
        return facts.encoded_bytes + facts.images * (data.packed_bytes - data.encoded_bytes)
    return facts.images * data.packed_bytes


def _shard(config: RunFile, facts: Facts, costs: Costs, machine: Machine) -> StageForecast:
    images = facts.images + facts.val_images
    val = facts.val_bytes or facts.val_images * costs.data.packed_bytes
    stored = 0.0 if config.shards.adopt else packed_bytes(facts, costs.data, config.shards.max_side) + val
    processes = config.cluster.cpus or machine.cores * machine.devices
    work = images * costs.data.pack + stored * costs.disk.core_seconds
    seconds = max(work / processes, stored * costs.disk.seconds) + machine.starts.packing
    return StageForecast(images, seconds, 0.0, work + machine.starts.packing, "cores", stored)


def _label(config: RunFile, facts: Facts, costs: Costs, machine: Machine) -> StageForecast:
    views = 2 * facts.pairs * config.labels.views
    network = costs.teacher[config.teacher.precision].per_view(config.teacher.batch_size)
    each, bound = _together(
        network, costs.data.label_view + costs.labels.core_seconds, config.labels.processes, machine
    )
    crops, _ = _together(network, costs.data.crop, config.labels.processes, machine)
    seconds = (views * each.seconds + facts.images * crops.seconds) / machine.devices + machine.starts.computing
    core = views * each.core_seconds + facts.images * crops.core_seconds + machine.starts.computing
    return StageForecast(views, seconds, seconds * machine.devices, core, bound, views * costs.labels.each)


def _train(
    config: RunFile,
    facts: Facts,
    student: StudentFacts,
    costs: Costs,
    machine: Machine,
    steps: int,
    steps_per_epoch: int,
) -> StageForecast:
    train, batch = config.train, config.train.batch_size
    data = rendering(config, facts, costs.data)
    network = costs.student[train.precision].per_view(max(2, batch // machine.devices))
    each, bound = _together(network, data, train.processes, machine)
    written = math.ceil(steps / (train.checkpoint_every or steps_per_epoch)) * student.bytes.checkpoint
    written += student.bytes.weights * (2 if train.ema_decay else 1)
    saving = costs.disk.times(written)
    checked = _validated(config, facts, steps, steps_per_epoch)
    crops, _ = _together(costs.forward.per_view(config.evaluate.batch_size), costs.data.crop, train.processes, machine)
    seconds = (steps * batch * each.seconds + checked * crops.seconds) / machine.devices + saving.seconds
    core = (
        steps * batch * each.core_seconds
        + checked * crops.core_seconds
        + saving.core_seconds
        + machine.starts.computing
    )
    kept = train.keep_checkpoints + (1 if checked else 0)
    stored = min(kept, math.ceil(steps / (train.checkpoint_every or steps_per_epoch))) * student.bytes.checkpoint
    stored += student.bytes.weights * (2 if train.ema_decay else 1)
    seconds += machine.starts.computing
    return StageForecast(steps * batch, seconds, seconds * machine.devices, core, bound, stored)


def _validated(config: RunFile, facts: Facts, steps: int, steps_per_epoch: int) -> int:
    """Images that a training's validations take, of the weights and of their moving average."""
    every = config.train.epochs_between_validations * steps_per_epoch
    if not every or not facts.val_images:
        return 0
    some = min(config.train.validate_images or facts.val_images, facts.val_images)
    times = steps // every + (1 if steps % every else 0)
    rest = facts.val_images if some < facts.val_images else 0
    return (times * some + rest) * (2 if config.train.ema_decay else 1)


def _evaluate(config: RunFile, facts: Facts, costs: Costs, machine: Machine) -> StageForecast:
    forward = costs.forward.per_view(config.evaluate.batch_size)
    each, bound = _together(forward, costs.data.crop, config.train.processes, machine)
    seconds = facts.val_images * each.seconds / machine.devices + machine.starts.computing
    core = facts.val_images * each.core_seconds + machine.starts.computing
    return StageForecast(facts.val_images, seconds, seconds * machine.devices, core, bound, 0.0)


def _together(network: Cost, data: float, workers: int, machine: Machine) -> tuple[Cost, str]:
    """What a view takes on one device whose views are rendered beside it, and what it waits for."""
    core = network.core_seconds + data
    if not workers:
        return Cost(network.seconds + data, core), "network" if network.seconds > data else "views"
    waits = {"network": network.seconds, "views": data / min(workers, machine.cores)}
    if machine.on_cores:
        waits["cores"] = core / machine.cores
    bound = max(waits, key=lambda name: waits[name])
    return Cost(waits[bound], core), bound


def cores_wanted(network: Cost, data: float) -> float:
    """Cores that render views as fast as a device's network takes them."""
    return data / network.seconds
