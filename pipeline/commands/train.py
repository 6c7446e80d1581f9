"""Training as a command runs it: what a run is made from, how far it is, and launching the rest."""

from collections.abc import Callable
from typing import Any

from pipeline.execution.devices import changed, compiled, device_count, device_line, settled
from pipeline.execution.ray_train import launch_training
from pipeline.execution.stage_dir import StageDir, open_stage
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.manifests import TrainManifest
from schemas.receipts import require_unchanged
from schemas.values import AUTO
from stages.data.split import Split
from stages.data.views import pixel_versions
from stages.models.student import new_student
from stages.storage.run_files import find_run, store_run_file, warning_of_classes
from stages.storage.store import Store
from stages.train.checkpoint import newest_checkpoint
from stages.train.metrics import show
from stages.train.plan import plan_training
from stages.train.tracking import send_the_rest
from stages.train.validation import validation_images

Say = Callable[[str], None]


def train(config: RunFile, say: Say) -> dict[str, Any]:
    """Train the run file's student.

    Raises:
        UserError: if shards or labels are missing or too few, or the loss is not finite.
        MismatchError: if the run there was trained from something else.
    """
    run = validating(settled(config), say)
    plan = plan_training(run, device_count(run))
    run = compiled(run, steps=plan.steps)
    student = new_student(run, plan.split)  # a model that cannot be built is refused here, before a process is started
    lost = plan.labels.warning_of_lost_mass(run.train.tau) if plan.labels and run.train.distillation == "soft" else ""
    warnings = (_other_classes(run, plan.split), student.weights_note, lost)
    store = Store(run.workspace).child(f"runs/{run.train.name}")
    hint = "use another train.name, or restore the run file"
    stage_dir = open_stage(store, plan.made_from, pixel_versions(), hint)
    for line in filter(None, (*warnings, student_line(run))):
        say(line)
    finished = _finished(run, stage_dir, plan.steps, say)
    if finished is not None:
        send_the_rest(run, plan, store, show(store, stage_dir.made_by))
        say(f"run {run.train.name}: {finished.steps} steps are done → {store}")
        done = {"steps": finished.steps, "resumed_from_step": finished.steps, "loss": finished.loss}
        return {"stage": "train", "run": run.train.name} | done
    found = newest_checkpoint(store, stage_dir.made_by, warn=lambda line: say(f"warning: {line}"))
    result = launch_training(run, plan, stage_dir, found.step if found else 0)
    say(f"run {run.train.name}: {result['steps']} steps, from step {result['resumed_from_step']} → {store}")
    return {"stage": "train", "run": run.train.name} | result


def _finished(config: RunFile, stage_dir: StageDir, steps: int, say: Say) -> TrainManifest | None:
    """The run's manifest, if it took the steps and every file it lists is sound; a lost run file is written again.

    Raises:
        MismatchError: if the manifest is of another training, naming every difference.
    """
    found = find_run(config.workspace, config.train.name)
    if found is None or found.manifest.steps < steps:
        return None
    require_unchanged(str(stage_dir.store), found.manifest.made_from, stage_dir.made_from, stage_dir.hint)
    if broken := found.broken():
        say(
            f"warning: {stage_dir.store}: {' and '.join(broken)}: missing or damaged; made again from the "
            "last checkpoint"
        )
        return None
    try:
        found.config(config)
    except UserError as error:
        say(f"warning: {error}; it is written again")
        store_run_file(stage_dir.store, config)
    return found.manifest


def _other_classes(run: RunFile, split: Split) -> str:
    """A warning where no file says the order of the classes of the run that the student starts from.

    Raises:
        MismatchError: if it is another.
    """
    if run.student.new_head:
        return ""
    return warning_of_classes(
        "student.init_checkpoint", run.student.init_checkpoint, run.workspace, split.classes, split.content
    )


def validating(run: RunFile, say: Say) -> RunFile:
    """The run file with a number in place of validate_every = "auto": 0 where there is no val split to validate on.

    Raises:
        UserError: if the run file asks for validations, and there is none.
    """
    every = run.train.epochs_between_validations
    if every:
        try:
            validation_images(run)
        except UserError as error:
            if run.train.validate_every != AUTO:
                raise
            say(f"no validation during training: {error}")
            every = 0
    return changed(run, {"train": {"validate_every": every}})


def student_line(config: RunFile) -> str:
    """The line with which a training begins: student, device, precision, batch, data processes."""
    train, world = config.train, device_count(config)
    share = train.batch_size // world
    pieces = f" in passes of {train.micro_batch}" if train.micro_batch and train.micro_batch < share else ""
    return device_line(
        config,
        f"student {config.student.model}",
        precision=train.precision,
        compiled=train.compile,
        batch=f"batch {train.batch_size}" + (f", {share} each" if world > 1 else "") + pieces,
        workers=train.workers,
    )
