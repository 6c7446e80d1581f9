"""What version 0.1.0 stored is read, proven as far as it proves itself, and resumed to the same bytes."""

from pathlib import Path

from pipeline.commands import run as stages
from pipeline.commands.status import status
from pipeline.commands.verify import verify
from tests.support.stored import as_of_first_version, edit_state
from tests.support.world import silent, stored


def test_a_workspace_of_version_0_1_0_is_complete_as_it_is(copied):
    run = copied()
    as_of_first_version(run.workspace)
    before = stored(Path(run.workspace))
    assert not any("/manifest/" in name for name in before)
    assert verify(run.workspace)["ok"]
    assert {one["state"] for one in status(run.workspace)["stages"]} == {"done"}
    result = stages.everything(run, silent)["stages"]
    assert result[0]["splits"]["train"]["new_parts"] == result[1]["new_parts"] == 0
    assert result[2]["resumed_from_step"] == 12
    after = stored(Path(run.workspace))
    changed = {name for name in after if after[name] != before.get(name)}
    assert all(name.startswith("predictions/") for name in changed)  # whose manifest each evaluation writes anew


def test_stages_that_version_0_1_0_began_end_with_the_same_bytes(copied, whole):
    run = copied()
    as_of_first_version(run.workspace)
    workspace = Path(run.workspace)
    for name in ("shards/train/manifest.json", "labels/teacher/manifest.json", "runs/student/manifest.json",
                 "shards/train/receipts/shard-000001.json", "runs/student/model.safetensors",
                 "labels/teacher/receipts/shard-000001.passes-00000-00002.json"):  # fmt: skip
        (workspace / name).unlink()
    stages.everything(run, silent)
    made, truth = stored(workspace), stored(Path(whole.workspace))
    for folder in ("shards/train", "labels/teacher", "runs/student"):
        names = [
            name for name in truth if name.startswith(folder) and not name.endswith(("evaluation.json", "run.toml"))
        ]
        assert {name for name in names if made.get(name) != truth[name] and not name.endswith(".jsonl")} == set()


def test_a_part_removed_from_a_manifest_of_version_0_1_0_is_refused_by_training_and_verify(copied, refused):
    run = copied({"train": {"name": "new"}})
    as_of_first_version(run.workspace)
    file = Path(run.workspace, "labels/teacher/manifest.json")
    edit_state(file, lambda fields: fields["parts"].pop())
    line = refused(stages.train, run, silent)
    assert line == (
        f"{file}: is damaged (content is not that of its parts); delete it and rerun `deit-pipeline label-teacher`"
    )
    assert [one["path"] for one in verify(run.workspace)["problems"]] == [str(file)]
    file.unlink()
    stages.label(run, silent)
    assert stages.train(run, silent)["steps"] == 12
