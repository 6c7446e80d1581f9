"""Commands whose workers take their time and keep a ledger, so that faults strike at work and doubled work is seen.

A command runs in a process of its own, forked from a server that has loaded what drivers load. Before it begins, it
puts workers in place that note in a file, part by part (of a training: steps and checkpoints), what they begin and how
that ends, and that pause before each file they put; what they make is the product's, byte for byte. The ledger lies
beside the command's folder, so that commands that follow each other in other folders share it.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.execution.failures import PartFailure
from pipeline.execution.worker import Worker
from schemas.errors import UserError
from stages.storage.store import Store

PAUSE = 0.05
"""Seconds before a worker puts a file, and before a step of training."""
DONE = "done"
STEP = "step-"
"""How the ledger's names of training steps begin; a training's others are of checkpoints."""
_LEDGER = "ledger.jsonl"
_OUT, _ERR = "out.txt", "err.txt"
_PRELOADED = ["watched", "cli", "ray.train.torch", "pipeline.commands.run"]


class Attempt(NamedTuple):
    """One process's work on one part; `end` is DONE or an error's name, "" as long as nothing has come of it."""

    part: str
    pid: int
    end: str


def attempts(folder: Path) -> list[Attempt]:
    """All attempts of the commands in folders below this one, in the order in which they began."""
    found: dict[tuple[str, int, float], str] = {}
    text = (folder / _LEDGER).read_text() if (folder / _LEDGER).exists() else ""
    for line in text.splitlines():
        part, pid, since, end = json.loads(line)
        found[part, pid, since] = end
    return [Attempt(part, pid, end) for (part, pid, _), end in found.items()]


def start(folder: Path, *arguments: str) -> BaseProcess:
    """Start a command in a folder, in a session of its own; its environment is this process's at the first start."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_command, args=(folder, arguments), daemon=True)
    process.start()
    return process


def said(folder: Path) -> tuple[str, str]:
    """What the newest command in a folder has written to stdout and to stderr."""
    return (folder / _OUT).read_text(), (folder / _ERR).read_text()


def _command(folder: Path, arguments: tuple[str, ...]) -> None:
    import cli
    from pipeline.execution import ray_executor, ray_train

    os.setsid()
    os.chdir(folder)
    for number, name in ((1, _OUT), (2, _ERR)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for module, name, watched in ((ray_executor, "Worker", Watched), (ray_train, "_in_worker", _watched_training)):
        assert hasattr(module, name)
        setattr(module, name, watched)
    sys.argv[1:] = arguments
    cli.main()


class Watched(Worker):
    """A worker of shards or labels, in its process."""

    def run(self, spec: Any) -> Any:
        """See `Worker`."""
        _slow_down()
        return _noted(spec.name, lambda: super(Watched, self).run(spec))


def _watched_training(config: dict[str, Any]) -> None:
    """A worker of training, in its process."""
    from pipeline.execution.ray_train import _in_worker
    from stages.train.trainer import Trainer

    step, save = Trainer.step, Trainer.save

    def slow_step(trainer: Trainer, batch: Any) -> None:
        def work() -> None:
            time.sleep(PAUSE)
            step(trainer, batch)

        _noted(f"{STEP}{batch.step + 1:09d}", work)

    def noted_save(trainer: Trainer, number: int) -> None:
        _noted(f"checkpoint-{number:09d}", lambda: save(trainer, number))

    Trainer.step, Trainer.save = slow_step, noted_save  # type: ignore[method-assign, assignment]
    _slow_down()
    _in_worker(config)


def _slow_down() -> None:
    """Pause before each file that this process puts."""
    put: Callable[..., Any] = Store.put
    if put.__name__ == "slow_put":
        return

    def slow_put(*arguments: Any) -> Any:
        time.sleep(PAUSE)
        return put(*arguments)

    Store.put = slow_put  # type: ignore[method-assign, assignment]


def _noted(part: str, work: Callable[[], Any]) -> Any:
    """Do a piece of work between two lines of the ledger."""
    since = time.time()
    _note(part, since, "")
    try:
        outcome = work()
    except BaseException as error:
        _note(part, since, type(error).__name__)
        raise
    _note(part, since, type(outcome).__name__ if isinstance(outcome, UserError | PartFailure) else DONE)
    return outcome


def _note(part: str, since: float, end: str) -> None:
    with (Path.cwd().parent / _LEDGER).open("a") as file:  # one write, so that the lines of several do not mix
        file.write(json.dumps([part, os.getpid(), since, end]) + "\n")
