"""Plans and manifests of a stage's folder: read, checked and written here only.

A manifest is a small JSON file. Its parts are beside it in a Parquet file, which is named by its checksum, so whoever
reads a manifest while another is written still finds the parts of the one it has. A manifest of version 0.1.0 lists its
parts itself; its `content` proves them.
"""

import contextlib
import hashlib
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from schemas.errors import MismatchError, UserError
from schemas.manifests import Manifest, PartsFile, PartsManifest, parse_manifest
from schemas.parts import Parts
from schemas.plan import Plan
from schemas.receipts import StoredFile
from stages.storage.commit import (
    MANIFEST,
    PLAN,
    put_state,
    put_unless_there,
    read_checked,
    read_plan,
    read_receipt,
    read_state,
    receipt_names,
)
from stages.storage.store import Store

FOLDER = "manifest"
"""Where the parts of a stage's manifest lie."""

M = TypeVar("M", bound=PartsManifest)
AnyManifest = TypeVar("AnyManifest", bound=Manifest)


@dataclass(frozen=True)
class CompleteStage(Generic[M]):
    """A stage's folder that is complete: its manifest, and the parts this lists."""

    manifest: M
    parts: Parts


def binding_plan(store: Store) -> Plan | None:
    """The plan that binds: from the first part on, so that what was refused holds nobody who corrects the run file.

    Raises:
        UserError: if it is damaged.
    """
    plan = read_plan(store)
    return plan if plan and (receipt_names(store) or store.exists(MANIFEST)) else None


def read_manifest(store: Store, kind: type[AnyManifest]) -> AnyManifest | None:
    """A stage's manifest without its parts, or None where it is not written yet.

    Raises:
        UserError: if it is damaged.
        MismatchError: if it is of something else than the folder's plan.
    """
    manifest = read_state(store, MANIFEST, kind.from_json)
    plan = read_plan(store) if manifest else None
    if manifest and plan and plan.made_by != manifest.made_by:
        foreign = PLAN if first_made_by(store) == manifest.made_by else MANIFEST
        raise MismatchError(
            f"{store.display_path(foreign)}: is of something else than this folder's parts; delete it and "
            f"rerun {kind.VERB}"
        )
    return manifest


def read_any_manifest(store: Store) -> Manifest | None:
    """The manifest of a folder of any stage, as `read_manifest`, without a look at the plan."""
    return read_state(store, MANIFEST, parse_manifest)


def open_manifest(store: Store, kind: type[M]) -> CompleteStage[M] | None:
    """A stage's manifest with its parts, or None where it is not written yet.

    Raises:
        UserError: if manifest or parts are damaged.
        MismatchError: if it is of something else than the folder's plan.
    """
    manifest = read_manifest(store, kind)
    while manifest is not None:
        try:
            return CompleteStage(manifest, _parts(store, manifest))
        except UserError:
            newer = read_manifest(store, kind)  # a command may have written another, and removed the parts of this one
            if newer == manifest:
                raise
            manifest = newer
    return None


def put_manifest(store: Store, kind: type[M], parts: Parts, **fields: Any) -> CompleteStage[M]:
    """Put a manifest and its parts, unless they are there already; parts of an earlier one are deleted.

    Args:
        store: the stage's folder.
        kind: the manifest's type.
        parts: what it lists.
        fields: all fields of the manifest but `content` and `parts`.
    """
    digest = hashlib.sha256(parts.data).hexdigest()
    file = StoredFile(path=f"{FOLDER}/{digest[:16]}.parquet", bytes=len(parts.data), sha256=digest)
    manifest = kind(**fields, content=parts.content(), parts=PartsFile(count=len(parts), file=file))
    put_unless_there(store, file.path, parts.data)
    put_state(store, MANIFEST, manifest)
    for name in store.files(FOLDER):
        if f"{FOLDER}/{name}" != file.path:
            store.delete(f"{FOLDER}/{name}")
    return CompleteStage(manifest, parts)


def _parts(store: Store, manifest: PartsManifest) -> Parts:
    """The parts of a manifest, proven; those of version 0.1.0 by its `content`."""
    if isinstance(manifest.parts, PartsFile):
        fix = f"delete {store.display_path(MANIFEST)} and rerun {manifest.VERB}"
        file = manifest.parts.file
        return Parts(read_checked(store, file, proof="manifest", fix=fix))
    parts = Parts.of(manifest.parts)
    if parts.content() != manifest.content:
        raise UserError(
            f"{store.display_path(MANIFEST)}: is damaged (content is not that of its parts); {manifest.FIX}"
        )
    return parts


def first_made_by(store: Store) -> str:
    """What made the folder's parts, from the first readable receipt; "" where there is none."""
    for part in receipt_names(store):
        with contextlib.suppress(UserError, FileNotFoundError):
            return read_receipt(store, part).made_by
    return ""
