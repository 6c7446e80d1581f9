"""The command line: exit codes, one line for each mistake, one JSON object on stdout, and nothing done by halves.

Typed in this process, except where signals are meant.
"""

import importlib.metadata
import json
import shutil
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from pipeline.commands import run as stages
from stages.models.teacher import Teacher
from tests.support.command_line import complaint, typed, written
from tests.support.world import TINY_VIT, flip_byte, run_file, stored


@pytest.fixture
def shards(fresh, whole, tmp_path) -> str:
    """A run file whose split is sharded and nothing else."""
    shutil.copytree(Path(whole.workspace, "shards"), Path(fresh().workspace, "shards"))
    return written(fresh(), tmp_path)


@pytest.fixture
def done(copied, tmp_path) -> str:
    """A run file of which everything is done."""
    return written(copied(), tmp_path)


def last_json(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def test_every_stage_prints_one_json_object_as_the_last_line_of_stdout(done):
    printed = {}
    for verb in ("shard", "label-teacher", "train", "evaluate", "run", "status", "verify"):
        code, out, _ = typed(verb, "-c", done, "--json")
        assert (code, len(out.splitlines())) == (0, 1)
        printed[verb] = last_json(out)
    train = printed["shard"]["splits"]["train"]
    assert train.keys() >= {"samples", "skipped", "parts", "new_parts", "bytes"}
    assert (train["samples"], train["new_parts"]) == (61, 0)
    label = {"stage", "decisions", "parts", "new_parts", "views", "agreement", "bytes_per_view"}
    assert printed["label-teacher"].keys() >= label
    assert printed["train"].keys() >= {"stage", "run", "steps", "resumed_from_step", "loss"}
    heads = {"class", "distillation", "fused"}
    assert printed["evaluate"].keys() >= {"samples"} | heads
    assert all(0 <= printed["evaluate"][head][top] <= 1 for head in heads for top in ("top1", "top5"))
    assert [one["stage"] for one in printed["run"]["stages"]] == ["shard", "label-teacher", "train", "evaluate"]
    assert printed["verify"] == {"ok": True, "checked": printed["verify"]["checked"], "problems": []}
    assert printed["verify"]["checked"] == 31 + 4  # and the lists of parts


def test_without_json_people_are_told_on_stdout(done):
    code, out, _ = typed("evaluate", "-c", done)
    assert code == 0
    assert "fused" in out and "top-1" in out and "{" not in out


def test_init_writes_a_run_file_once(tmp_path):
    file = str(tmp_path / "new.toml")
    assert typed("init", file, "--preset", "deit-s")[0] == 0
    before = Path(file).read_text()
    assert "is there already" in complaint(1, "init", file)
    assert Path(file).read_text() == before
    assert typed("init", file, "--force")[0] == 0
    assert Path(file).read_text() != before
    assert "deit-x" in complaint(1, "init", str(tmp_path / "x.toml"), "--preset", "deit-x")
    assert "; name another" in complaint(1, "init", str(tmp_path / "no/such/folder/x.toml"))


@pytest.mark.parametrize("arguments", [["nonsense"], ["shard", "--nonsense"], ["train", "--config"]])
def test_wrong_usage_exits_2(arguments):
    assert typed(*arguments)[0] == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rubbish", "must be key=value"),
        ("train.epoch=3", "unknown key train.epoch; allowed here: "),
        ("nothing.x=3", "unknown key nothing; allowed here: "),
        ("train.epochs=many", "train.epochs = "),
        ("train.batch_size=-2", "train.batch_size = -2: "),
        ("train.micro_batch=3", "train.micro_batch: must be even"),
        ("teacher.batch_size=3", "teacher.batch_size: must be even"),
        ("labels.views=5", "labels.views: 5 is not a multiple of views.repeats = 2"),
    ],
)
def test_a_bad_value_is_refused_with_its_key(done, override, says):
    before = stored(Path(done).parent / "workspace")
    assert says in complaint(1, "train", "-c", done, "--set", override)
    assert stored(Path(done).parent / "workspace") == before


def test_a_missing_or_broken_run_file_is_refused(tmp_path):
    assert "no such run file; write one with `deit-pipeline init " in complaint(1, "train", "-c", str(tmp_path / "no"))
    (tmp_path / "x.toml").write_text("[train\n")
    assert "not a TOML file (" in complaint(1, "train", "-c", str(tmp_path / "x.toml"))


def empty_class(root: Path) -> None:
    (root / "train/purple").mkdir()


def text_for_image(root: Path) -> None:
    (root / "train/red/text.jpg").write_text("no image")


SOURCES = {
    "is missing": (lambda root: shutil.rmtree(root / "train"), "no such folder"),
    "is empty": (lambda root: [shutil.rmtree(one) for one in (root / "train").iterdir()], "holds no images"),
    "has a class without images": (empty_class, "class purple has no images"),
    "has an unreadable image": (text_for_image, "red/text.jpg is not an image"),
    "has other classes in val": (
        lambda root: shutil.rmtree(root / "val/red"),
        "source.val: has no image of class red",
    ),
}


@pytest.mark.parametrize("what", SOURCES)
def test_a_source_that(images, tmp_path, what):
    spoil, says = SOURCES[what]
    shutil.copytree(images, tmp_path / "images")
    spoil(tmp_path / "images")
    run = run_file(tmp_path / "workspace", tmp_path / "images", {"shards": {"samples_per_shard": 100}})
    assert says in complaint(1, "shard", "-c", written(run, tmp_path))
    assert stored(tmp_path / "workspace").keys() <= {"shards/train/plan.json"}
    file = written(run, tmp_path)
    assert f"is not sharded yet; run `deit-pipeline shard -c {file}`" in complaint(1, "label-teacher", "-c", file)


def test_a_source_that_is_not_set_is_asked_for(tmp_path, fresh):
    assert "source.train is not set; give " in complaint(
        1, "shard", "-c", written(fresh({"source": {"train": ""}}), tmp_path)
    )


def weights_file(folder: Path, classes: int = 4, **extra) -> str:
    model = timm.create_model("deit_tiny_patch16_224", num_classes=classes, img_size=32, **(TINY_VIT | extra))
    save_file(model.state_dict(), folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


TEACHERS = {
    "there is none": (lambda folder: str(folder / "no.safetensors"), "no such weights file"),
    "of no run": (lambda folder: "run:nobody", "train that run first"),
    "of another width": (lambda folder: weights_file(folder, embed_dim=24), "does not fit deit_tiny_patch16_224: "),
    "of another depth": (lambda folder: weights_file(folder, depth=1), "is missing"),
    "of other classes": (lambda folder: weights_file(folder, classes=7), "head.weight is (7, 48), expected (4, 48)"),
    "damaged": (lambda folder: (folder / "x.pth").write_bytes(b"PK rubbish") and str(folder / "x.pth"), "damaged, "),
    "of another kind": (lambda folder: str(folder / "deit.toml"), "not a weights file"),
}  # fmt: skip


@pytest.mark.parametrize("what", TEACHERS)
def test_a_teachers_checkpoint_is_refused_when(shards, tmp_path, what):
    make, says = TEACHERS[what]
    line = complaint(1, "label-teacher", "-c", shards, "--set", f"teacher.checkpoint={make(tmp_path)}")
    assert says in line
    assert not (tmp_path / "workspace/labels").exists()


TRAININGS = {
    "batch not divisible over workers": (["train.batch_size=18", "cluster.devices=4", "cluster.address=local"], 1,
        "train.batch_size = 18: must be a multiple of 8"),
    "batch larger than the split": (["train.batch_size=62"], 1, "the split has only 61 samples"),
    "more views wanted than labelled": (["train.epochs=300", "train.name=x"], 1, "6 are labelled; raise labels.views"),
    "no such labels": (["labels.name=others"], 1, "is not whole yet; run `deit-pipeline label-teacher -c "),
    "unknown student": (["student.model=deit_tinny_patch16_224"], 1, "timm knows no model deit_tinny_patch"),
    "student without stochastic depth": (["student.model=vgg11", "student.extra={}"], 1, "student.drop_path: vgg11"),
    "another size than the views": (["student.img_size=48"], 1, "views have views.image_size = 32"),
    "initial weights missing": (["student.init_checkpoint=run:nobody", "train.name=x"], 1, "train that run first"),
    "another recipe": (["views.seed=1"], 4, "recipe.seed: 0 -> 1"),
    "another teacher": (["teacher.model=deit_small_patch16_224"], 4, 'teacher.model: "deit_tiny'),
    "another learning rate": (["train.lr=0.5"], 4, "train.lr: 0.01 -> 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("what", TRAININGS)
def test_a_training_is_refused_with(done, tmp_path, what):
    overrides, code, says = TRAININGS[what]
    before = stored(tmp_path / "workspace")
    assert says in complaint(code, "train", "-c", done, *(word for one in overrides for word in ("--set", one)))
    assert stored(tmp_path / "workspace") == before


def test_a_stage_before_its_time_says_which_comes_first(shards, fresh, tmp_path):
    assert f"is not whole yet; run `deit-pipeline label-teacher -c {shards}`" in complaint(1, "train", "-c", shards)
    line = complaint(1, "evaluate", "-c", shards)
    assert f"it is not trained to its end; run `deit-pipeline train -c {shards}` first" in line
    nothing = written(run_file(tmp_path / "nothing", Path(fresh().source.train).parent), tmp_path)
    assert f"is not sharded yet; run `deit-pipeline shard -c {nothing}`" in complaint(1, "train", "-c", nothing)
    assert f"holds nothing; run `deit-pipeline shard -c {nothing}` first" in complaint(1, "verify", "-c", nothing)
    assert typed("status", "-c", nothing)[0] == 0


RELABELLINGS = {
    "another recipe": (["views.flip_prob=0.25"], "recipe.flip_prob: 0.5 -> 0.25"),
    "another batch": (["teacher.batch_size=8"], "teacher.batch_size: 16 -> 8"),
    "another precision": (["teacher.precision=bf16"], 'teacher.precision: "fp32" -> "bf16"'),
    "other weights": (["teacher.checkpoint=OTHER"], "teacher.weights_sha256: "),
    "other shards": ([], "shards: "),
}


@pytest.mark.parametrize("what", RELABELLINGS)
def test_labels_there_are_not_mixed_with_those_of(done, copied, tmp_path, what):
    overrides, says = RELABELLINGS[what]
    overrides = [one.replace("OTHER", weights_file(tmp_path)) if "OTHER" in one else one for one in overrides]
    if what == "other shards":
        shutil.rmtree(tmp_path / "workspace/shards")
        stages.shard(copied({"shards": {"seed": 1}}), print)
    before = stored(tmp_path / "workspace")
    for verb in ("label-teacher", "train") if "weights" not in what else ("label-teacher",):
        line = complaint(4, verb, "-c", done, *(word for one in overrides for word in ("--set", one)))
        assert line.startswith(f"{tmp_path}/workspace/labels/teacher was made differently (")
        assert says in line
    assert stored(tmp_path / "workspace") == before


def test_torn_receipts_and_manifests_are_refused_with_their_names(done, tmp_path):
    manifest, receipt = (
        tmp_path / "workspace" / path
        for path in ("labels/teacher/manifest.json", "shards/train/receipts/shard-000001.json")
    )
    whole_manifest = manifest.read_bytes()
    manifest.write_bytes(whole_manifest[:50])
    assert complaint(1, "run", "-c", done, "--json").startswith(f"{manifest}: is damaged (not ")
    manifest.write_bytes(whole_manifest)
    receipt.write_bytes(receipt.read_bytes()[:50])
    code, out, _ = typed("verify", "-c", done, "--json")
    assert (code, [problem["path"] for problem in last_json(out)["problems"]][:1]) == (1, [str(receipt)])
    (tmp_path / "workspace/shards/train/manifest.json").unlink()  # a whole stage's receipts are read when they are used
    assert complaint(1, "run", "-c", done, "--json").startswith(f"{receipt}: not ")


def test_damage_is_named_by_verify_which_exits_1(done, tmp_path):
    flip_byte(tmp_path / "workspace/shards/val/shard-000000.tar", 3000)
    code, out, err = typed("verify", "-c", done, "--json")
    assert code == 1
    tar = f"{tmp_path}/workspace/shards/val/shard-000000.tar"
    fix = f"delete {tmp_path}/workspace/shards/val/receipts/shard-000000.json and rerun `deit-pipeline shard`"
    what = "has other bytes than its receipt says"
    assert last_json(out)["problems"] == [{"path": tar, "what": what, "fix": fix}]
    assert f"{tar}: {what}; {fix.removesuffix('`')} -c {done}`" in err.splitlines()
    assert err.splitlines()[-1].startswith("deit-pipeline: verify: ")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:6379", "127.0.0.1:99999999"])
def test_no_cluster_at_the_address_is_one_line_and_soon(fresh, tmp_path, address):
    line = complaint(1, "shard", "-c", written(fresh(), tmp_path), "--address", address)
    assert line.startswith(f"cluster.address = {address}: no Ray there (")
    assert not Path(fresh().workspace, "shards/train/plan.json").exists()  # nothing was begun


def test_labels_are_looked_at_and_made_again_by_command(done, tmp_path):
    code, out, _ = typed("verify", "--deep", "--parts", "3", "-c", done, "--json")
    deep = last_json(out)["deep"]
    assert (code, deep["ok"], deep["flipped"], len(deep["parts"])) == (0, True, 0, 3)
    code, out, _ = typed("inspect", "labels", "-c", done, "--json", "--out", str(tmp_path / "labels.png"))
    assert (code, len(last_json(out)["classes"])) == (0, 4)
    code, out, _ = typed("inspect", "stability", "-c", done, "--json", "--views", "20")
    assert (code, {way["decisions"] for way in last_json(out)["ways"]}) == (0, {20})


def test_other_decisions_than_the_stored_ones_fail_deep_verification(done, monkeypatch):
    said = Teacher.queued
    monkeypatch.setattr(Teacher, "queued", lambda self, views, how: -said(self, views, how))
    code, _, err = typed("verify", "--deep", "-c", done, "--json")
    assert code == 1
    assert err.splitlines()[-1].startswith("deit-pipeline: verify --deep: teacher or views are not those")


def test_a_path_is_the_same_as_an_option_and_as_an_override(done, tmp_path):
    for name in ('🐶 "x"', "a\x7fb", "back\\slash", "猫"):
        path = f"{tmp_path}/{name}"
        line = complaint(1, "evaluate", "-c", done, "--source", path)
        assert line.startswith(f"evaluate.source = {path}: no such folder".replace("\x7f", "\\x7f"))
        assert complaint(1, "evaluate", "-c", done, "--set", f"evaluate.source={path}") == line


def test_a_source_to_evaluate_on_is_called_what_it_is(done, images):
    code, _, err = typed("evaluate", "-c", done, "--source", str(images))
    where = f"evaluate.source = {images}"
    assert code == 0
    assert f"{where}: in val/, an image folder, a folder a class, 4 names from the train split or source.classes" in err
    assert f"{where}: 1 folders or files beside that are left out: train" in err


def test_an_override_that_is_not_utf_8_is_refused_in_a_line(done):
    assert "is not UTF-8 text" in complaint(1, "shard", "-c", done, "--set", "source.train=/tmp/\udce9")


def test_a_source_that_is_a_file_of_another_kind_is_called_that(done):
    line = complaint(1, "shard", "-c", done, "--set", "source.train=/etc/hosts")
    assert line.startswith("source.train = /etc/hosts: is a file, and neither a tar nor Parquet by its name")


def test_labels_that_are_not_there_are_asked_for_with_those_that_are(done):
    line = complaint(1, "train", "-c", done, "--set", "labels.name=others")
    assert line.endswith("or name one that is there: labels.name = teacher")


def test_init_writes_another_teacher(tmp_path):
    file = str(tmp_path / "deit.toml")
    assert typed("init", file, "--teacher", "regnety-8gf")[0] == 0
    assert 'model = "regnety_080.pycls_in1k"' in Path(file).read_text()


def test_a_disk_that_refuses_is_one_line(fresh, tmp_path):
    run = fresh()
    Path(run.workspace).mkdir(exist_ok=True)
    Path(run.workspace, "shards").write_bytes(b"a file where a folder should be")
    line = complaint(1, "shard", "-c", written(run, tmp_path))
    assert "shards/train/plan.json: Not a directory; fix that" in line


def test_evaluating_tries_failed_parts_again_by_the_option_its_message_names(done):
    assert typed("evaluate", "--retry-failed", "-c", done)[0] == 0


def test_the_version_is_that_of_the_package():
    code, out, _ = typed("--version")
    assert (code, out) == (0, f"deit-pipeline {importlib.metadata.version('deit-pipeline')}\n")


def test_the_version_is_not_made_up_where_the_package_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert typed("--version")[:2] == (0, "deit-pipeline, not installed\n")
