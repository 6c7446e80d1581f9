"""A split holds each shard's receipt against its manifest before it reads a byte by it."""

import shutil
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from schemas.errors import MismatchError, UserError
from stages.data.split import Split
from tests.support.stored import edit_state
from tests.support.world import silent


def read_all(workspace: str) -> None:
    split = Split.open(workspace, "train")
    for shard, rows in enumerate(split.rows):
        for row in range(rows):
            split.image(shard, row)


@pytest.mark.parametrize("other", ["shard-000000", "another workspace", "the same made_by"])
def test_a_shard_of_another_place_is_refused_and_made_again_when_its_receipt_is_deleted(copied, fresh, tmp_path, other):
    run, workspace = copied(), Path(copied().workspace)
    folder, receipt = workspace / "shards/train", workspace / "shards/train/receipts/shard-000001.json"
    if other == "shard-000000":
        shutil.copyfile(folder / "receipts/shard-000000.json", receipt)
        says, kind = "is the receipt of shard-000000", UserError
    else:
        strange = fresh({"shards": {"seed": 1}}).model_copy(update={"workspace": str(tmp_path / "strange")})
        stages.shard(strange, silent)
        for name in ("shard-000001.tar", "shard-000001.parquet", "receipts/shard-000001.json"):
            shutil.copyfile(tmp_path / "strange/shards/train" / name, folder / name)
        says, kind = "is of another split (made_by)", MismatchError
        if other == "the same made_by":
            made_by = Split.open(run.workspace, "train")._made_by
            text = receipt.read_text()
            receipt.write_text(text.replace(text.partition('"made_by":"')[2][:64], made_by))
            says, kind = "has other rows or files than the manifest lists", UserError
    with pytest.raises(kind, match=r"shard-000001\.json: .*; delete it and rerun") as caught:
        read_all(run.workspace)
    assert says in str(caught.value) and caught.value.exit_code == (4 if kind is MismatchError else 1)
    receipt.unlink()
    stages.shard(run, silent)
    read_all(run.workspace)


def test_a_manifest_whose_shards_have_gaps_is_refused(copied, refused):
    file = Path(copied().workspace, "shards/train/manifest.json")
    edit_state(file, lambda fields: fields.update(parts=[], content="0" * 64))
    assert "is damaged" in refused(Split.open, str(file.parents[2]), "train")
