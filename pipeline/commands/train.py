"""Training as a command runs it: what a run is made from, how far it is, and launching the rest."""

from collections.abc import Callable
from typing import Any

from pipeline.execution.devices import changed, compiled, device_count, device_line, settled
from pipeline.execution.ray_train import launch_training
from pipeline.execution.stage_dir import open_stage
from schemas.config import AUTO, RunFile
from schemas.errors import UserError
from stages.data.views import pixel_versions
from stages.models.student import new_student
from stages.models.weights import MODEL_FILE
from stages.storage.commit import read_manifest
from stages.storage.store import Store
from stages.train.checkpoint import newest_checkpoint
from stages.train.metrics import show
from stages.train.plan import plan_training
from stages.train.validation import validation_images

Say = Callable[[str], None]


def train(run: RunFile, say: Say) -> dict[str, Any]:
    """Train the run file's student.

    Raises:
        UserError: if shards or labels are missing or too few, or the loss is not finite.
        MismatchError: if the run there was trained from something else.
    """
    run = _validating(settled(run), say)
    plan = plan_training(run, device_count(run))
    run = compiled(run, steps=plan.steps)
    new_student(run, plan.split)  # a model that cannot be built is refused here, before any process is started
    store = Store(run.workspace).at(f"runs/{run.train.name}")
    mend = "use another train.name, or restore the run file"
    begun = open_stage(store, plan.made_from, pixel_versions(), mend)
    say(_devices(run))
    manifest = read_manifest(store)
    if manifest and manifest["steps"] >= plan.steps and store.exists(MODEL_FILE):
        show(store, tensorboard=run.train.tensorboard)
        say(f"run {run.train.name}: {manifest['steps']} steps are done → {store}")
        steps = manifest["steps"]
        return {
            "stage": "train",
            "run": run.train.name,
            "steps": steps,
            "resumed_from_step": steps,
            "loss": manifest["loss"],
        }
    found = newest_checkpoint(store, warn=lambda line: say(f"warning: {line}"))
    result = launch_training(run, plan, begun, found.step if found else 0)
    say(f"run {run.train.name}: {result['steps']} steps, from step {result['resumed_from_step']} → {store}")
    return {"stage": "train", "run": run.train.name} | result


def _validating(run: RunFile, say: Say) -> RunFile:
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


def _devices(run: RunFile) -> str:
    train, world = run.train, device_count(run)
    share = train.batch_size // world
    pieces = f" in passes of {train.micro_batch}" if train.micro_batch and train.micro_batch < share else ""
    return device_line(
        run,
        f"student {run.student.model}",
        precision=train.precision,
        compiled=train.compile,
        batch=f"batch {train.batch_size}" + (f", {share} each" if world > 1 else "") + pieces,
        workers=train.workers,
    )
