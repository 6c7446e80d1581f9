"""`verify --deep`: replay and teacher run again on a few parts, whose decisions are compared with the stored ones.

That every byte agrees with its receipt proves storage; that the same views still get the same decisions proves the
complete process that made them, on this machine with its libraries.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.commands.label import label_identity
from pipeline.execution.devices import compiled, run_device, settled
from pipeline.execution.progress import Progress
from schemas.config import RunFile
from schemas.errors import UserError
from schemas.receipts import Receipt, require_unchanged
from stages.data.split import Split
from stages.label.label_file import read_labels
from stages.label.label_set import LabelSpec
from stages.label.labeller import Labeller
from stages.label.margins import flips
from stages.replay.signature import differs
from stages.storage.commit import read_checked, read_plan, valid_receipts
from stages.storage.store import Store


class _Compared(NamedTuple):
    """A part as stored and as made now, over its N decisions; and its signatures, 1 where they differ."""

    stored: np.ndarray
    now: np.ndarray
    margins: np.ndarray
    near_ties: np.ndarray
    signatures: np.ndarray


def verify_deep(config: RunFile, parts: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Label a few of the run file's parts again and compare with what is stored.

    Args:
        config: the run file.
        parts: how many, spread over the label set.
        say: gets a line.

    Returns:
        `parts`, `stages.label.margins.flips` over all of them, how many `signatures` there were and how many
        `other_signatures`, and `ok`: no signature differs, and every flipped decision was within rounding of a tie.

    Raises:
        UserError: if nothing is labelled yet, or the teacher cannot be had.
        MismatchError: if the label set is of another teacher, recipe or split.
    """
    config, split = compiled(settled(config)), Split.open(config.workspace, "train")
    store = Store(config.workspace).child(f"labels/{config.labels.name}")
    receipts = list(valid_receipts(store).values())
    if not receipts:
        raise UserError(f"{store}: nothing is labelled yet; run `deit-pipeline label-teacher`")
    plan = read_plan(store)
    require_unchanged(
        str(store), plan and plan.made_from, label_identity(config, split).to_json(), "restore the run file"
    )
    chosen = [receipts[nth] for nth in sorted({round(at) for at in np.linspace(0, len(receipts) - 1, parts)})]
    labeller = Labeller(config, split, run_device(config))
    compared = []
    with Progress("verify --deep", total=len(chosen), unit="parts") as progress:
        for receipt in chosen:
            compared.append(_compare(labeller, store, receipt))
            progress.advance()
    whole = _Compared(*(np.concatenate(column) for column in zip(*compared, strict=True)))
    found = flips(whole.now, whole.stored, whole.margins)
    signed, other = len(whole.signatures), int(whole.signatures.sum())
    say(
        f"labels {config.labels.name}: {len(chosen)} of {len(receipts)} parts again: {found['flipped']} of "
        f"{found['decisions']} decisions differ, {other} of {signed} signatures"
    )
    ok = not other and bool(whole.near_ties[whole.stored != whole.now].all())
    names = [receipt.part for receipt in chosen]
    return {"ok": ok, "parts": names, **found, "signatures": signed, "other_signatures": other}


def _compare(labeller: Labeller, store: Store, receipt: Receipt) -> _Compared:
    columns, kept = read_labels(read_checked(store, receipt.files[0]))
    said = labeller.decide(LabelSpec.parse(receipt.part))
    order = np.lexsort((said.columns["view"], said.columns["row"]))
    pairs = [(np.frombuffer(kept[at], np.uint8), np.frombuffer(one, np.uint8)) for at, one in said.signatures.items()]
    return _Compared(
        stored=columns["decision"],
        now=said.columns["decision"][order],
        margins=said.margins[order],
        near_ties=said.near_ties[order],
        signatures=np.array([differs(*pair) for pair in pairs], np.int64),
    )
