"""A stage's folder: its missing parts are the wanted parts without a valid receipt.

A stage's folder opens with a plan, which names all that determines its content, so that a changed run file meets
existing parts with an error and never mixes with them. A plan is written under a lease; who finds a lease of another
plan withdraws, so two commands that start at one moment from different run files do not mix either. The manifest is
written last, so its existence means that every part it lists is done.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from pipeline.execution.lease import Lease, remove_stale_leases
from schemas.errors import MismatchError, UserError
from schemas.manifests import PartsManifest
from schemas.parts import Parts
from schemas.plan import Plan
from schemas.receipts import Receipt, fingerprint, require_unchanged
from stages.storage.commit import PLAN, RECEIPTS, put_state, read_plan
from stages.storage.manifest import (
    CompleteStage,
    binding_plan,
    first_made_by,
    open_manifest,
    put_manifest,
    read_any_manifest,
)
from stages.storage.store import Store

M = TypeVar("M", bound=PartsManifest)

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

    def plan(self) -> Plan | None:
        """The plan that binds: from its first part on, so that what was refused holds nobody who corrects the run file.

        Raises:
            MismatchError: if the folder is of something else, naming every difference.
        """
        plan = self.look()
        manifest = read_any_manifest(self.store) if plan is None else None
        if manifest is not None:  # its plan is lost
            self.put_plan(manifest.wanted, getattr(manifest, "versions", self.versions))
        return plan

    def look(self) -> Plan | None:
        """As `plan`, and nothing is written.

        Raises:
            MismatchError: if the folder is of something else, naming every difference.
        """
        plan = binding_plan(self.store)
        if plan is None:
            self._without_plan()
        elif plan.made_by != self.made_by:
            if first_made_by(self.store) == self.made_by:
                raise MismatchError(
                    f"{self.store.display_path(PLAN)}: is of something else than this folder's parts; {Plan.FIX}"
                )
            require_unchanged(str(self.store), plan.made_from, self.made_from, self.hint)
        return plan

    def _without_plan(self) -> None:
        """Where the plan is lost, what is there tells what it was made from."""
        manifest = read_any_manifest(self.store)
        if manifest is not None:
            require_unchanged(str(self.store), manifest.made_from, self.made_from, self.hint)
        elif (other := first_made_by(self.store)) not in ("", self.made_by):
            raise MismatchError(
                f"{self.store} was made differently ({PLAN} is missing; made_by: {other[:12]} -> {self.made_by[:12]}); "
                f"{self.hint}"
            )

    @contextmanager
    def hold_lease(self, wanted: int, step: int | None = None) -> Iterator[Lease]:
        """Hold a lease, under which the plan is written: `wanted` is the number of parts (or steps).

        Raises:
            MismatchError: if the folder has another identity, or another command is about to start one.
        """
        with Lease(self.store, self.made_by, step=step) as lease:
            plan = self.plan()
            self.put_plan(wanted, plan.versions if plan else self.versions)
            yield lease

    def put_plan(self, wanted: int, versions: dict[str, str]) -> Plan:
        """Put the plan, unless it is there already."""
        plan = Plan(made_from=self.made_from, versions=versions, wanted=wanted)
        put_state(self.store, PLAN, plan)
        return plan


def open_stage(store: Store, made_from: dict[str, Any], versions: dict[str, str], hint: str) -> StageDir:
    """Open a stage's folder: remove stale temporary files, and check the identity of its parts.

    Raises:
        UserError: if the folder will not outlive the command.
        MismatchError: if the folder has another identity, naming every difference.
    """
    _refuse_lent(store)
    store.remove_stale_temp_files()
    stage_dir = StageDir(store, made_from, versions, hint)
    remove_stale_leases(store, stage_dir.made_by)
    stage_dir.plan()
    return stage_dir


def look_at_stage(store: Store, made_from: dict[str, Any], versions: dict[str, str], hint: str) -> StageDir:
    """As `open_stage`, and nothing is written or removed.

    Raises:
        UserError: if the folder will not outlive the command.
        MismatchError: if the folder has another identity, naming every difference.
    """
    _refuse_lent(store)
    stage_dir = StageDir(store, made_from, versions, hint)
    stage_dir.look()
    return stage_dir


def _refuse_lent(store: Store) -> None:
    if _RAY_WORKING_DIR in store.absolute:
        raise UserError(
            f"{store}: lies in the copy of --working-dir that Ray deletes after the job; name a workspace that all "
            "nodes share: an absolute path on a shared disk, or a URI"
        )


def completed_manifest(
    stage_dir: StageDir, kind: type[M], beside: Sequence[str] = (), **said: Any
) -> CompleteStage[M] | None:
    """The manifest of a stage that is done and still there, by what lists of its folder tell; else None.

    Args:
        stage_dir: the stage's folder.
        kind: the manifest's type.
        beside: further files that have to be there.
        said: further values that the manifest must have.

    Raises:
        UserError: if the manifest is damaged.
    """
    found = open_manifest(stage_dir.store, kind)
    if found is None or found.manifest.made_by != stage_dir.made_by:
        return None
    if any(getattr(found.manifest, key) != value for key, value in said.items()):
        return None
    files, receipts = stage_dir.store.files(), stage_dir.store.files(RECEIPTS)
    there = found.parts.lengths().items() <= files.items() and set(beside) <= files.keys()
    return found if there and {f"{part}.json" for part in found.parts.names} <= receipts.keys() else None


def write_manifest(stage_dir: StageDir, kind: type[M], receipts: Iterable[Receipt], **more: Any) -> CompleteStage[M]:
    """Put the manifest that makes a stage complete, unless it is there already, and return it."""
    parts = Parts.of(receipts)
    plan = read_plan(stage_dir.store) or stage_dir.put_plan(len(parts), stage_dir.versions)
    identity = {"made_from": stage_dir.made_from, "made_by": stage_dir.made_by, "versions": plan.versions}
    found = put_manifest(stage_dir.store, kind, parts, **identity, **more)
    stage_dir.store.remove_stale_temp_files()
    return found
