"""Work: the parts a stage wants, less those that valid receipts prove, is what is left to do.

A stage's folder opens with a plan, which names all that determines its content, so that a changed run file meets
existing parts with an error and never mixes with them. Its manifest is written last, so its existence means
that every part it lists is done.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from schemas.errors import PipelineError, Unfinished
from schemas.receipts import Made, Receipt, fingerprint, refuse_changes
from stages.store import MANIFEST, PLAN, RECEIPTS, Store, commit, put_json, read_manifest


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
    """A process that makes parts and commits them; a user's error comes back as a value, so that it stays one line."""

    job: Job
    _maker: Maker | None = field(default=None, init=False)

    def run(self, spec: Spec) -> Receipt | PipelineError:
        """Make one part and commit it."""
        try:
            self._maker = self._maker or self.job.maker()
            with tempfile.TemporaryDirectory(prefix="deit-pipeline-") as staging:
                made = self._maker(spec, Path(staging))
                return commit(self.job.store, spec.name, made, self.job.made_by)
        except Unfinished:
            raise  # a data process was lost: another attempt may do
        except PipelineError as error:
            return error


def begin(store: Store, made_from: dict[str, Any], versions: dict[str, str], mend: str) -> str:
    """Open a stage's folder: put its plan, or check that the plan there is the same.

    A plan binds from its first part on: whoever mends the run file after a refusal is not held to what was refused.

    Returns:
        The fingerprint that receipts will carry.

    Raises:
        Mismatch: if the folder was begun from something else, naming every difference.
    """
    plan = read_manifest(store, PLAN)
    if plan is None or not (store.files(RECEIPTS) or store.exists(MANIFEST)):
        put_json(store, PLAN, {"made_from": made_from, "versions": versions})
    else:
        refuse_changes(str(store), plan["made_from"], made_from, mend)
    return fingerprint(made_from)


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
    return manifest
