"""Work: the parts a stage wants, less those that valid receipts prove, is what is left to do.

A stage's folder opens with a plan, which names all that determines its content, so that a changed run file meets
existing parts with an error and never mixes with them. Its manifest is written last, so its existence means
that every part it lists is done.
"""

import errno
import os
import platform
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.failures import Fault
from schemas.errors import PipelineError
from schemas.receipts import Made, Receipt, fingerprint, refuse_changes
from stages.store import MANIFEST, PLAN, RECEIPTS, Store, commit, put_json, read_manifest

_LENT = "/runtime_resources/working_dir_files/"
"""In the path of what Ray lends a job: a copy of the folder of `ray job submit --working-dir`, deleted after it."""


class Spec(Protocol):
    """What a stage is told to make for one part; its name is the part's."""

    @property
    def name(self) -> str:
        """The part's name."""


SpecT = TypeVar("SpecT", bound=Spec)

Maker = Callable[[Any, Path], Made]
"""Makes a part from its spec in a local staging folder."""


@dataclass(frozen=True)
class Job:
    """One stage's work on one folder.

    Attributes:
        store: the stage's folder.
        made_by: fingerprint of all that determines the content.
        maker: builds what makes the parts, once a process; picklable.
    """

    store: Store
    made_by: str
    maker: Callable[[], Maker]


@dataclass
class Worker:
    """A process that makes parts and commits them; errors come back as values, so that a user's stays one line.

    Attributes:
        job: what is made.
        folder: that of the command; relative paths of the run file are meant from there.
    """

    job: Job
    folder: str = field(default_factory=os.getcwd)
    _maker: Maker | None = field(default=None, init=False)

    def settle(self) -> PipelineError | None:
        """Go to the command's folder, in a process elsewhere; the error if it does not see the command's storage."""
        return settle(self.folder, self.job.store.absolute)

    def run(self, spec: Spec) -> Receipt | PipelineError | Fault:
        """Make one part and commit it."""
        try:
            self._maker = self._maker or self.job.maker()
            with tempfile.TemporaryDirectory(prefix="deit-pipeline-") as staging:
                made = self._maker(spec, Path(staging))
                return commit(self.job.store, spec.name, made, self.job.made_by)
        except PipelineError as error:  # Unfinished among them: a data process or the store was lost
            return error
        except OSError as error:
            return _no_room(error) if error.errno in (errno.ENOSPC, errno.EDQUOT) else self._fault(error)
        except Exception as error:
            return self._fault(error)

    def _fault(self, error: Exception) -> Fault:
        self._maker = None  # whatever state the error left it in
        lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
        return Fault(cause=lines[-1], traceback="".join(traceback.format_exception(error)))


def settle(folder: str, stage: str) -> PipelineError | None:
    """Make relative paths mean on another node what they mean for the command.

    Args:
        folder: the command's working folder.
        stage: path or URI of a stage's folder, whose plan the command has put.

    Returns:
        The error, if this node does not see the plan.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
    store = Store(stage)
    if store.exists(PLAN):
        return None
    return PipelineError(
        f"{store.name(PLAN)}: node {platform.node()} does not see it, working in {os.getcwd()}; name a workspace that "
        "all nodes share: an absolute path on a shared disk, or a URI"
    )


def _no_room(error: OSError) -> PipelineError:
    return PipelineError(
        f"{tempfile.gettempdir()} on {platform.node()}: no room for a part being made ({error.strerror}); make some, "
        "or set TMPDIR to a folder on a larger disk"
    )


def begin(store: Store, made_from: dict[str, Any], versions: dict[str, str], mend: str, wanted: int = 0) -> str:
    """Open a stage's folder: put its plan, or check that the plan there is the same.

    `wanted` is how many parts (or steps, of a training) there are to be, for those who look from elsewhere.

    A plan binds from its first part on: whoever mends the run file after a refusal is not held to what was refused.

    Returns:
        The fingerprint that receipts will carry.

    Raises:
        PipelineError: if the folder will not outlive the command.
        Mismatch: if the folder was begun from something else, naming every difference.
    """
    if _LENT in store.absolute:
        raise PipelineError(
            f"{store}: lies in the copy of --working-dir that Ray deletes after the job; name a workspace that all "
            "nodes share: an absolute path on a shared disk, or a URI"
        )
    store.sweep()
    plan = read_manifest(store, PLAN)
    if plan is None or not (store.files(RECEIPTS) or store.exists(MANIFEST)):
        put_json(store, PLAN, {"made_from": made_from, "versions": versions, "wanted": wanted})
    else:
        refuse_changes(str(store), plan["made_from"], made_from, mend)
    return fingerprint(made_from)


def want(store: Store, wanted: int) -> None:
    """Say in the plan of a stage's folder how many parts there are to be, where that has changed."""
    plan = read_manifest(store, PLAN)
    if plan and plan.get("wanted") != wanted:
        put_json(store, PLAN, plan | {"wanted": wanted})


def left_to_do(wanted: Iterable[SpecT], done: dict[str, Receipt]) -> list[SpecT]:
    """The wanted parts without a receipt, in their order."""
    return [spec for spec in wanted if spec.name not in done]


def finish(store: Store, made_from: dict[str, Any], receipts: Iterable[Receipt], **more: Any) -> dict[str, Any]:
    """Put the manifest that makes a stage whole, unless it is there already, and return it."""
    parts = [{"part": one.part, "rows": one.rows, "files": [vars(file) for file in one.files]} for one in receipts]
    versions = (read_manifest(store, PLAN) or {}).get("versions", {})
    manifest = {
        "made_from": made_from,
        "made_by": fingerprint(made_from),
        "versions": versions,
        "content": fingerprint(parts),
        "parts": parts,
        **more,
    }
    if read_manifest(store) != manifest:
        put_json(store, MANIFEST, manifest)
    store.sweep()
    return manifest
