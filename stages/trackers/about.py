"""What a tracker is told of a run besides its metrics, and the id by which a resumed run continues its tracker's run.

    runs/<run>/trackers/run.json

The file belongs to one training: another training of the same name, made from other inputs, gets another id.
"""

import contextlib
import importlib.metadata
import json
import subprocess
import uuid
from dataclasses import dataclass
from typing import Any

from schemas.config import RunFile
from schemas.receipts import canonical_json
from schemas.run_file import flat
from schemas.secrets import without_secrets
from stages.storage.store import Store

FOLDER = "trackers"
_RUN = f"{FOLDER}/run.json"
_GIT_SECONDS = 10.0


@dataclass(frozen=True)
class About:
    """A training, as trackers name and describe it.

    Attributes:
        id: 32 hex digits, the same in every process that trains this run.
        name: of the run.
        config: the run file, dotted key → value, without secrets.
        identity: what the training is made from: fingerprints of run, train split and label set, version, git state.
    """

    id: str
    name: str
    config: dict[str, Any]
    identity: dict[str, str]


def about_run(config: RunFile, store: Store, made_by: str, identity: dict[str, str]) -> About:
    """Describe a run, and give it an id where it has none.

    Args:
        config: the run file.
        store: of the run's folder.
        made_by: fingerprint of what the training is made from.
        identity: further facts, by name; empty ones are left out.
    """
    facts = {"made_by": made_by, **identity, "version": importlib.metadata.version("deit-pipeline"), **git_state()}
    return About(
        id=_run_id(store, made_by),
        name=config.train.name,
        config=without_secrets(flat(config)),
        identity={name: value for name, value in facts.items() if value},
    )


def git_state() -> dict[str, str]:
    """The commit of the current folder's git repository, and whether files differ from it; empty without one."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    return {"git_commit": commit, "git_changed": str(bool(_git("status", "--porcelain", "-uno"))).lower()}


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
            errors="replace",
        )
        return done.stdout.strip()
    return ""


def _run_id(store: Store, made_by: str) -> str:
    """The stored id of this training, else a new one, which is stored first."""
    if found := _stored_id(store, made_by):
        return found
    store.put(_RUN, canonical_json({"id": uuid.uuid4().hex, "made_by": made_by}))
    return _stored_id(store, made_by) or ""  # another command may have put its own meanwhile


def _stored_id(store: Store, made_by: str) -> str | None:
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        found = json.loads(store.read(_RUN))
        return str(found["id"]) if found["made_by"] == made_by else None
    return None
