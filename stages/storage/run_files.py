"""Files of a run that others read: its manifest, its weights, its run file and its metrics. No torch is loaded here."""

import tomllib
from dataclasses import dataclass
from typing import Any

from schemas.config import RunFile
from schemas.errors import IncompleteError, MismatchError, UserError
from schemas.manifests import ShardManifest, TrainManifest
from schemas.names import RUN_PREFIX, require_folder_name
from schemas.receipts import StoredFile, differences, fingerprint
from schemas.run_file import parse_run
from schemas.secrets import hide_secrets
from schemas.toml_text import toml_text
from stages.storage.commit import read_checked, read_receipt
from stages.storage.manifest import read_manifest
from stages.storage.store import Store
from stages.storage.validations import best_weights, validation_path

METRICS_FILE = "metrics.jsonl"
MODEL_FILE, EMA_FILE = "model.safetensors", "model_ema.safetensors"
"""What a run leaves: its model, and the moving average of that."""
WEIGHTS_FILES = {"model": MODEL_FILE, "ema": EMA_FILE}
"""By `evaluate.weights`; "best" is in a checkpoint."""
RUN_FILE = "run.toml"
_CHECKPOINTS = "checkpoints/"
_OTHER_WEIGHTS = 'set evaluate.weights = "model"'
_FIX = "rerun `deit-pipeline train` with that run's run file, which makes it again"


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained to its end; what is read of it is proven against its manifest.

    Attributes:
        name: of the run.
        store: its folder.
        manifest: its manifest.
        workspace: that it is in.
    """

    name: str
    store: Store
    manifest: TrainManifest
    workspace: str

    def file(self, path: str) -> StoredFile:
        """The manifest's entry of a weights file such as `model.safetensors`, or the receipt's of one of a checkpoint.

        Raises:
            UserError: if the run has no such file.
        """
        found = self.manifest.file(path) or self._in_checkpoint(path)
        if found is None:
            there = ", ".join(file.path for file in self.manifest.files)
            raise UserError(f"{self.store}: has no {path}; it has {there} (train.ema_decay keeps a moving average)")
        return found

    def weights(self, kind: str) -> StoredFile:
        """The weights file that `evaluate.weights` names.

        Raises:
            UserError: if the run has no such file, or was not validated where it names the best weights.
        """
        if kind != "best":
            return self.file(WEIGHTS_FILES[kind])
        best = best_weights(self.store)
        found = self.file(best.file)
        if found.sha256 != best.sha256:
            raise UserError(
                f"{self.store.display_path(best.file)}: is not the file that was validated after step {best.step}; "
                f"delete {self.store.display_path(validation_path(best.step))}, or {_OTHER_WEIGHTS}"
            )
        return found

    def read(self, path: str) -> bytes:
        """The bytes of a weights file, proven.

        Raises:
            UserError: if the run has no such file, or it is missing or damaged.
        """
        if path.startswith(_CHECKPOINTS):
            return read_checked(
                self.store, self.file(path), proof="checkpoint's receipt", fix=f"restore it, or {_OTHER_WEIGHTS}"
            )
        return read_checked(self.store, self.file(path), proof="run's manifest", fix=_FIX)

    def broken(self) -> list[str]:
        """Paths of the weights files that are missing or damaged."""
        return [file.path for file in self.manifest.files if not self._is_sound(file)]

    def config(self, today: RunFile) -> RunFile:
        """The run file that was stored with the run, in today's workspace and with today's evaluation and cluster.

        Raises:
            UserError: if it is missing, damaged, or not that of the manifest.
        """
        return _as_today(self.trained_with(), today)

    def trained_with(self) -> RunFile:
        """The run file that was stored with the run, as it is.

        Raises:
            UserError: if it is missing, damaged, or not that of the manifest.
        """
        stored = _read_run_file(self.store)
        if found := _undeclared(stored, self.manifest.made_from):
            raise UserError(
                f"{self.store.display_path(RUN_FILE)}: is not what the run was trained with "
                f"({'; '.join(found)}); {_FIX}"
            )
        return stored

    def _in_checkpoint(self, path: str) -> StoredFile | None:
        if not path.startswith(_CHECKPOINTS):
            return None
        try:
            receipt = read_receipt(self.store, path.split("/")[1])
        except FileNotFoundError:
            return None
        return next((file for file in receipt.files if file.path == path), None)

    def _is_sound(self, file: StoredFile) -> bool:
        try:
            self.read(file.path)
        except IncompleteError:  # the store is away
            raise
        except UserError:
            return False
        return True


def run_store(workspace: str, name: str, what: str = "") -> Store:
    """The folder of a run, whether it is there or not; `what` says where the name comes from, for the error.

    Raises:
        UserError: if the name is no folder name, and so might lead out of the workspace's runs.
    """
    folder = require_folder_name(what or f"run {name!r}", name)
    return Store(workspace).child(f"runs/{folder}")


def find_run(workspace: str, name: str, what: str = "") -> FinishedRun | None:
    """A run of the workspace, or None where it is not trained to its end; `what` as in `run_store`.

    Raises:
        UserError: if its manifest is damaged, or the name is not a folder's.
    """
    store = run_store(workspace, name, what)
    manifest = read_manifest(store, TrainManifest)
    return FinishedRun(name, store, manifest, workspace) if manifest else None


def refuse_other_classes(run: FinishedRun, classes: tuple[str, ...]) -> None:
    """See that a run was trained for these classes in this order.

    A run stores the fingerprint of its classes. One of 0.1.0 stores a hash of its shards only; where the workspace's
    train split is that one, its classes are the run's.

    Raises:
        MismatchError: if the classes are others, or nothing here says which the run was trained for.
    """
    if has_classes(run, classes):
        return
    split = read_manifest(Store(run.workspace).child("shards/train"), ShardManifest)
    if split is None:
        raise MismatchError(
            f"{run.store}: the train split that it was trained on is not sharded here, so the order of its classes is "
            "not known; run `deit-pipeline shard` with that run's source"
        )
    if split.content != run.manifest.made_from.get("shards"):
        raise MismatchError(
            f"{run.store}: was trained on another train split than this workspace's, so the order of its "
            "classes is not known here; use the workspace in which it was trained"
        )
    if split.classes != classes:
        raise MismatchError(
            f"{run.store}: was trained for {len(split.classes)} classes ({_first(split.classes)}), the images have "
            f"{len(classes)} ({_first(classes)}), or these in another order; name images of its classes"
        )


def has_classes(run: FinishedRun, classes: tuple[str, ...]) -> bool:
    """Whether a run says that it was trained for these classes in this order; False = it does not say.

    Raises:
        MismatchError: if it says that its classes are others.
    """
    stored = run.manifest.classes
    if stored is None or stored == fingerprint(list(classes)):
        return stored is not None
    raise MismatchError(
        f"{run.store}: was trained for other classes than these {len(classes)} ({_first(classes)}), or for these in "
        "another order; use images of its classes in its order (source.classes), or train again"
    )


def warning_of_classes(key: str, checkpoint: str, workspace: str, classes: tuple[str, ...], shards: str = "") -> str:
    """A warning where nothing says for which classes `run:NAME` was trained; "" of a file, and where it is proved.

    Args:
        key: the run file's key, for messages.
        checkpoint: as in the run file.
        workspace: with the runs.
        classes: that the run must have, in this order.
        shards: `content` of the train split whose classes these are.

    Raises:
        MismatchError: if the run was trained for others.
    """
    name = checkpoint.removeprefix(RUN_PREFIX)
    run = find_run(workspace, name, key) if name != checkpoint else None
    if run is None or has_classes(run, classes) or run.manifest.made_from.get("shards") == shards:
        return ""
    return (
        f"warning: {key} = {checkpoint} was trained on another train split than this workspace's; its classes must be "
        f"these, in this order: {_first(classes)}: compare them, and see how often it agrees with the truth"
    )


def _first(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:3]) + (", …" if len(classes) > 3 else "")


def open_run(workspace: str, name: str) -> FinishedRun:
    """A run of the workspace that is trained to its end.

    Raises:
        UserError: if it is not, its manifest is damaged, or the name is not a folder's.
    """
    found = find_run(workspace, name)
    if found is None:
        store = run_store(workspace, name)
        if not store.exists(RUN_FILE) and not store.files():
            there = ", ".join(Store(workspace).folders("runs")) or "none"
            raise UserError(
                f"{store}: no such run (there are: {there}), and so it is not trained to its end; "
                "run `deit-pipeline train` first"
            )
        raise UserError(f"{store}: is not trained to its end; run `deit-pipeline train` first")
    return found


def stored_run(today: RunFile, name: str) -> RunFile:
    """The run file that was stored with a run, in today's workspace and with today's evaluation and cluster.

    Raises:
        UserError: if there is no such run, or its run file is damaged or not that of its manifest.
    """
    run = find_run(today.workspace, name)
    if run is not None:
        return run.config(today)
    store = run_store(today.workspace, name)
    if not store.exists(RUN_FILE):
        there = ", ".join(Store(today.workspace).folders("runs")) or "none"
        raise UserError(f"{store}: no such run; there are: {there}")
    return _as_today(_read_run_file(store), today)


def store_run_file(store: Store, config: RunFile) -> None:
    """Put a run's run file, without secrets, beside what it makes."""
    store.put(RUN_FILE, hide_secrets(toml_text(config)).encode())


def _as_today(stored: RunFile, today: RunFile) -> RunFile:
    keep = {"workspace": today.workspace, "evaluate": today.evaluate, "cluster": today.cluster}
    return stored.model_copy(update=keep)


def _read_run_file(store: Store) -> RunFile:
    path = store.display_path(RUN_FILE)
    try:
        return parse_run(tomllib.loads(store.read(RUN_FILE).decode()), path)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {_FIX}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: is damaged ({error}); {_FIX}") from None
    except IncompleteError:
        raise
    except UserError as error:
        raise UserError(f"{error}; {_FIX}") from None


def _undeclared(stored: RunFile, made_from: dict[str, Any]) -> list[str]:
    """The keys of a stored run file that are not what its run was made from, as `key: then -> now`."""
    found = []
    now = {
        "views": ("recipe", stored.views.identity()),
        "student": ("student", stored.student.model_dump(mode="json")),
        "train": ("train", stored.train.model_dump(mode="json")),
    }
    for table, (name, values) in now.items():
        then = made_from.get(name, {})
        found += differences(then, {key: values.get(key) for key in then}, table)
    return found
