"""A worker makes parts of a stage and commits them, in this process or on a cluster's node."""

import errno
import os
import platform
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.execution.failures import PartFailure
from pipeline.execution.stage_dir import StageDir
from schemas.errors import UserError
from schemas.receipts import PartOutput, Receipt
from stages.data.servers import keep_sockets_in
from stages.storage.commit import commit
from stages.storage.hours import Hours
from stages.storage.locks import scratch_folder
from stages.storage.store import Store


class Spec(Protocol):
    """What a stage is told to make for one part; its name is the part's."""

    @property
    def name(self) -> str:
        """The part's name."""


SpecT = TypeVar("SpecT", bound=Spec)

Maker = Callable[[Any, Path], PartOutput]
"""Makes a part from its spec in a local staging folder."""

STAGING = ".deit-pipeline-staging-"
"""How the names of folders begin in which parts are made; such folders are nobody else's, and swept."""


@dataclass(frozen=True)
class Job:
    """One stage's work on one folder.

    Attributes:
        stage_dir: the folder.
        maker: builds what makes the parts, once a process; picklable.
        lanes: parts that a process makes at once, each in a thread of its own, where the maker allows it.
        device: "cpu" or "cuda", on which they are made.
    """

    stage_dir: StageDir
    maker: Callable[[], Maker]
    lanes: int = 1
    device: str = "cpu"


@dataclass
class Worker:
    """A process that makes parts and commits them; errors come back as values, so that a user's stays one line.

    Attributes:
        job: what is made.
        lease_path: a file that only the command's own storage has: its lease.
        folder: that of the command; relative paths of the run file are meant from there.
        sockets: folder for those of data processes, which is removed when this process is killed; "" = there is none.
    """

    job: Job
    lease_path: str
    folder: str = field(default_factory=os.getcwd)
    sockets: str = ""
    _maker: Maker | None = field(default=None, init=False)
    _hours: Hours | None = field(default=None, init=False)
    _building: threading.Lock = field(default_factory=threading.Lock, init=False)

    def check_storage(self) -> UserError | None:
        """Go to the command's folder, in a process elsewhere; the error if it does not see the command's storage."""
        if self.sockets:
            keep_sockets_in(self.sockets)
        return check_shared_storage(self.folder, self.job.stage_dir.store.absolute, self.lease_path)

    def run(self, spec: Spec) -> Receipt | UserError | PartFailure:
        """Make one part and commit it."""
        try:
            with self._building:
                maker = self._maker = self._maker or self.job.maker()
                hours = self._hours = self._hours or Hours(self.job.stage_dir.store, self.job.device)
            since = time.perf_counter()
            with scratch_folder(STAGING) as staging:
                made = maker(spec, staging)
                receipt = commit(self.job.stage_dir.store, spec.name, made, self.job.stage_dir.made_by)
            hours.add(spec.name, time.perf_counter() - since, lanes=self.job.lanes)
            return receipt
        except UserError as error:  # IncompleteError among them: a data process or the store was lost
            return error
        except OSError as error:
            return _no_room(error) if error.errno in (errno.ENOSPC, errno.EDQUOT) else self._fault(error)
        except Exception as error:
            return self._fault(error)

    def _fault(self, error: Exception) -> PartFailure:
        self._maker = None  # whatever state the error left it in
        lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
        return PartFailure(cause=lines[-1], traceback="".join(traceback.format_exception(error)))


def check_shared_storage(folder: str, stage: str, lease_path: str) -> UserError | None:
    """Make relative paths mean on another node what they mean for the command.

    Args:
        folder: the command's working folder.
        stage: path or URI of a stage's folder.
        lease_path: a file in it that only the command's own storage has.

    Returns:
        The error, if this node does not see that file.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    store = Store(stage)
    if store.exists(lease_path):
        return None
    return UserError(
        f"{store.display_path(lease_path)}: node {platform.node()} does not see it, working in {os.getcwd()}; name a "
        "workspace that all nodes share: an absolute path on a shared disk, or a URI"
    )


def _no_room(error: OSError) -> UserError:
    return UserError(
        f"{tempfile.gettempdir()} on {platform.node()}: no room for a part being made ({error.strerror}); make some, "
        "or set TMPDIR to a folder on a larger disk"
    )


def left_to_do(wanted: Iterable[SpecT], done: dict[str, Receipt]) -> list[SpecT]:
    """The wanted parts without a receipt, in their order."""
    return [spec for spec in wanted if spec.name not in done]
