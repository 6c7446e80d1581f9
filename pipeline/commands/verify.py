"""Whether every stored byte agrees with its receipt, and every receipt, plan and manifest is valid."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pipeline.commands.status import STAGES, newest_step
from pipeline.execution.progress import Progress
from schemas.errors import IncompleteError, UserError
from schemas.manifests import MANIFESTS, Manifest, PartsFile, PartsManifest, ShardManifest, TrainManifest
from schemas.parts import ManifestPart
from schemas.plan import Plan
from schemas.receipts import Receipt, StoredFile
from stages.storage.commit import MANIFEST, PLAN, RECEIPTS, broken_files, read_plan, read_receipt, receipt_names
from stages.storage.manifest import open_manifest, read_manifest
from stages.storage.run_files import RUN_FILE, find_run
from stages.storage.store import Store

_READERS = 4


class _Check(NamedTuple):
    """Files that belong together, their folder, and what to do when one is damaged."""

    store: Store
    files: tuple[StoredFile, ...]
    fix: str


def verify(workspace: str) -> dict[str, Any]:
    """Read everything that is stored again and compare it with its receipt.

    Returns:
        `ok`, how many files were `checked`, and `problems`, each with `path`, `what` and `fix` ("" where `what` says
        it).

    Raises:
        UserError: if the workspace holds nothing.
    """
    folders = [
        _Folder(workspace, folder, name, MANIFESTS[stage])
        for stage, folder in STAGES.items()
        for name in Store(workspace).folders(folder)
    ]
    if not folders:
        raise UserError(f"workspace {Store(workspace).display_uri}: holds nothing; run `deit-pipeline shard` first")
    problems: list[dict[str, str]] = []
    checked = 0
    for folder in folders:
        checks = list(folder.checks())
        problems += folder.problems
        with (
            Progress(f"verify {folder.store}", total=len(checks), unit="parts") as progress,
            ThreadPoolExecutor(_READERS) as threads,
        ):
            for check, faults in zip(checks, threads.map(_faults, checks), strict=True):
                problems += faults
                checked += len(check.files)
                progress.advance()
    return {"ok": not problems, "checked": checked, "problems": problems}


def _faults(check: _Check) -> list[dict[str, str]]:
    found = broken_files(check.store, check.files)
    return [{"path": check.store.display_path(path), "what": what, "fix": check.fix} for path, what in found]


class _Folder:
    """One stage's folder: its small files are read at once, and what they prove is handed out to be read.

    Args:
        workspace: it is in.
        folder: of the workspace, for all of a stage's folders.
        name: of this one.
        kind: the type of its manifest.

    Attributes:
        store: the folder.
        problems: of plan, manifest and receipts.
    """

    def __init__(self, workspace: str, folder: str, name: str, kind: type[Manifest]) -> None:
        self._workspace, self._name, self.kind = workspace, name, kind
        self.store = Store(workspace).child(f"{folder}/{name}")
        self.problems: list[dict[str, str]] = []

    def checks(self) -> Iterator[_Check]:
        """All files of the folder that a receipt or the manifest proves."""
        plan = self._plan()
        receipts = {receipt.part: receipt for receipt in self._receipts(plan.made_by if plan else "")}
        self._missing(plan, set(receipts))
        for receipt in receipts.values():
            yield _Check(self.store, receipt.files, self._fix(receipt.part))
        try:
            yield from self._manifest(receipts)
        except IncompleteError:
            raise
        except UserError as error:
            self._refused(MANIFEST, error)

    def _plan(self) -> Plan | None:
        try:
            return read_plan(self.store)
        except IncompleteError:
            raise
        except UserError as error:
            self._refused(PLAN, error)
            return None

    def _missing(self, plan: Plan | None, parts: set[str]) -> None:
        """What was deleted of a stage that was finished: its plan, or its manifest though all that it wants is done."""
        if parts and not self.store.exists(PLAN):
            self._problem(PLAN, "is missing", f"rerun {self.kind.VERB}")
        if plan is None or not plan.wanted or self.store.exists(MANIFEST):
            return
        done = newest_step(parts) if self.kind is TrainManifest else len(parts)
        if done >= plan.wanted:
            self._problem(MANIFEST, "is missing, though all parts are done", f"rerun {self.kind.VERB}")

    def _receipts(self, made_by: str) -> Iterator[Receipt]:
        for part in receipt_names(self.store):
            path = f"{RECEIPTS}/{part}.json"
            try:
                receipt = read_receipt(self.store, part)
            except FileNotFoundError:
                continue  # a training let go of it meanwhile
            except IncompleteError:
                raise
            except UserError as error:
                self._refused(path, error)
                continue
            if made_by and receipt.made_by != made_by:
                self._problem(path, "is of something else than the plan (made_by)", self._fix(part))
                continue
            yield receipt

    def _manifest(self, receipts: dict[str, Receipt]) -> Iterator[_Check]:
        """What the manifest lists and no receipt proves, once both agree."""
        if issubclass(self.kind, TrainManifest):
            yield from self._weights()
        elif issubclass(self.kind, PartsManifest):
            yield from self._listed(self.kind, receipts)

    def _listed(self, kind: type[PartsManifest], receipts: dict[str, Receipt]) -> Iterator[_Check]:
        manifest = read_manifest(self.store, kind)
        if manifest is not None and isinstance(manifest.parts, PartsFile):
            table = _Check(
                self.store, (manifest.parts.file,), f"delete {self.store.display_path(MANIFEST)} and rerun {kind.VERB}"
            )
            yield table
            if _faults(table):
                return
        found = open_manifest(self.store, kind)
        for part in found.parts if found else ():
            yield from self._part(part, receipts.get(part.part))
        if found and isinstance(found.manifest, ShardManifest) and found.manifest.adopted:
            adopted = found.manifest.adopted
            for tar in adopted.tars:
                yield _Check(Store(adopted.root), (tar,), "restore it; the split uses it where it lies")

    def _weights(self) -> Iterator[_Check]:
        run = find_run(self._workspace, self._name)
        if run:
            yield _Check(self.store, run.manifest.files, f"rerun {self.kind.VERB}")
            try:
                run.trained_with()
            except IncompleteError:
                raise
            except UserError as error:
                self._refused(RUN_FILE, error)

    def _part(self, part: ManifestPart, mine: Receipt | None) -> Iterator[_Check]:
        if mine is None:
            yield _Check(self.store, part.files, self._fix(part.part))
            path = f"{RECEIPTS}/{part.part}.json"
            if not self.store.exists(path):
                self._problem(path, "is missing", f"rerun {self.kind.VERB}")
        elif (mine.files, mine.rows) != (part.files, part.rows):
            self._problem(MANIFEST, f"{part.part} differs from its receipt", self._fix(part.part))

    def _fix(self, part: str) -> str:
        return f"delete {self.store.display_path(f'{RECEIPTS}/{part}.json')} and rerun {self.kind.VERB}"

    def _problem(self, path: str, what: str, fix: str) -> None:
        self.problems.append({"path": self.store.display_path(path), "what": what, "fix": fix})

    def _refused(self, path: str, error: UserError) -> None:
        if all(str(error) != one["what"] for one in self.problems):  # a damaged plan is met again with the manifest
            self._problem(path, str(error), "")
