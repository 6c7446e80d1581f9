"""Work: the parts a stage wants, less those that valid receipts prove, is what is left to do.

A stage's folder opens with a plan, which names all that determines its content, so that a changed run file meets
existing parts with an error and never mixes with them. A plan is put under a lease, and who finds a lease from another
plan withdraws: so two commands that begin at one moment from different run files do not mix either. The manifest is
written last, so its existence means that every part it lists is done.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.execution.lease import Lease, remove_stale_leases
from schemas.errors import UserError
from schemas.receipts import Receipt, fingerprint, require_unchanged
from stages.storage.commit import MANIFEST, PLAN, RECEIPTS, put_json, read_manifest
from stages.storage.store import Store

_RAY_WORKING_DIR = "/runtime_resources/working_dir_files/"
"""In the path of what Ray lends a job: a copy of the folder of `ray job submit --working-dir`, deleted after it."""


@dataclass(frozen=True)
class StageDir:
    """A stage's folder, and what this command makes its parts from; see `begin`.

    Attributes:
        store: the folder.
        made_from: all that determines the content.
        versions: of libraries; recorded and not compared.
        hint: what to do where the folder was made from something else.
    """

    store: Store
    made_from: dict[str, Any]
    versions: dict[str, str]
    hint: str

    @cached_property
    def made_by(self) -> str:
        """The fingerprint that receipts carry."""
        return fingerprint(self.made_from)

    def plan(self) -> dict[str, Any] | None:
        """The plan that binds: from its first part on, so that what was refused holds nobody who mended the run file.

        Raises:
            MismatchError: if it is of something else, naming every difference.
        """
        plan = read_manifest(self.store, PLAN)
        if plan is None or not (self.store.files(RECEIPTS) or self.store.exists(MANIFEST)):
            return None
        require_unchanged(str(self.store), plan["made_from"], self.made_from, self.hint)
        return plan

    @contextmanager
    def hold_lease(self, wanted: int, step: int | None = None) -> Iterator[Lease]:
        """Hold a lease, under which the plan is put: `wanted` is how many parts (or steps) there are to be.

        Raises:
            MismatchError: if the folder was begun from something else, or another command is about to.
        """
        with Lease(self.store, self.made_by, step=step) as lease:
            plan = self.plan() or {"made_from": self.made_from, "versions": self.versions}
            if read_manifest(self.store, PLAN) != plan | {"wanted": wanted}:
                put_json(self.store, PLAN, plan | {"wanted": wanted})
            yield lease


def open_stage(store: Store, made_from: dict[str, Any], versions: dict[str, str], hint: str) -> StageDir:
    """Come to a stage's folder: sweep it, and see that what is there was made from the same.

    Raises:
        UserError: if the folder will not outlive the command.
        MismatchError: if the folder was begun from something else, naming every difference.
    """
    if _RAY_WORKING_DIR in store.absolute:
        raise UserError(
            f"{store}: lies in the copy of --working-dir that Ray deletes after the job; name a workspace that all "
            "nodes share: an absolute path on a shared disk, or a URI"
        )
    store.remove_stale_temp_files()
    remove_stale_leases(store)
    stage_dir = StageDir(store, made_from, versions, hint)
    stage_dir.plan()
    return stage_dir


def completed_manifest(stage_dir: StageDir, beside: Sequence[str] = (), **said: Any) -> dict[str, Any] | None:
    """The manifest of a stage that is done and still there, by what lists of its folder tell; else None.

    Args:
        stage_dir: the stage's folder.
        beside: further files that have to be there.
        said: further values that the manifest has to have.
    """
    manifest = read_manifest(stage_dir.store)
    if manifest is None or (manifest["made_by"], *map(manifest.get, said)) != (stage_dir.made_by, *said.values()):
        return None
    files, receipts = stage_dir.store.files(), stage_dir.store.files(RECEIPTS)
    lengths = {file["path"]: file["bytes"] for part in manifest["parts"] for file in part["files"]}
    there = lengths.items() <= files.items() and set(beside) <= files.keys()
    return manifest if there and {f"{part['part']}.json" for part in manifest["parts"]} <= receipts.keys() else None


def write_manifest(stage_dir: StageDir, receipts: Iterable[Receipt], **more: Any) -> dict[str, Any]:
    """Put the manifest that makes a stage whole, unless it is there already, and return it."""
    parts = [{"part": one.part, "rows": one.rows, "files": [vars(file) for file in one.files]} for one in receipts]
    versions = (read_manifest(stage_dir.store, PLAN) or {}).get("versions", {})
    manifest = {
        "made_from": stage_dir.made_from,
        "made_by": stage_dir.made_by,
        "versions": versions,
        "content": fingerprint(parts),
        "parts": parts,
        **more,
    }
    if read_manifest(stage_dir.store) != manifest:
        put_json(stage_dir.store, MANIFEST, manifest)
    stage_dir.store.remove_stale_temp_files()
    return manifest
