"""Presets: the text parses to the preset, says everything, and is what a person wants to read."""

import contextlib
import re
import tomllib
from pathlib import Path

import pytest
import timm

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.presets import PRESETS, TEACHERS, run_file_text
from schemas.run_file import load_run_file, parse_run
from schemas.toml_text import _toml, toml_text

TOP1 = {
    "deit-ti": 72.2, "deit-ti-hard": 74.3, "deit-ti-soft": 72.2,
    "deit-ti-soft-token": None, "deit-ti-label-token": None, "deit-ti-distilled": 74.5, "deit-ti-distilled-1000": 76.6,
    "deit-s": 79.8, "deit-s-hard": 80.9, "deit-s-soft": 79.8, "deit-s-soft-token": None, "deit-s-label-token": None,
    "deit-s-distilled": 81.2, "deit-s-distilled-1000": 82.6,
    "deit-b": 81.8, "deit-b-hard": 83.0, "deit-b-soft": 81.8, "deit-b-soft-token": None, "deit-b-label-token": None,
    "deit-b-distilled": 83.4, "deit-b-distilled-1000": 84.2,
    "deit-b-160": 79.9, "deit-b-320": 82.7, "deit-b-384": 83.1, "deit-b-384-sgd": 83.1,
    "deit-b-hard-384": 84.0, "deit-b-soft-384": 83.2,
    "deit-b-distilled-384": 84.5, "deit-b-distilled-1000-384": 85.2,
    "deit-b-sgd": 74.5, "deit-b-no-randaugment": 79.6, "deit-b-autoaugment": 81.2, "deit-b-no-mixup": 78.7,
    "deit-b-no-cutmix": 80.0, "deit-b-no-mixing": 75.8, "deit-b-no-erasing": 4.3, "deit-b-no-stochastic-depth": 3.4,
    "deit-b-no-repeats": 76.5, "deit-b-dropout": 81.3, "deit-b-ema": 81.9,
    "deit-b-sgd-384": 77.3, "deit-b-no-randaugment-384": 80.4, "deit-b-autoaugment-384": 81.9,
    "deit-b-no-mixup-384": 79.8, "deit-b-no-cutmix-384": 80.6, "deit-b-no-mixing-384": 76.7,
    "deit-b-no-repeats-384": 77.4, "deit-b-dropout-384": 83.1,
    "deit-b-cifar-10": 99.1, "deit-b-cifar-100": 90.8, "deit-b-flowers": 98.4, "deit-b-cars": 92.1,
    "deit-b-inat-18": 73.2, "deit-b-inat-19": 77.7,
    "deit-b-384-cifar-10": 99.1, "deit-b-384-cifar-100": 90.8, "deit-b-384-flowers": 98.5, "deit-b-384-cars": 93.3,
    "deit-b-384-inat-18": 79.5, "deit-b-384-inat-19": 81.4,
    "regnety-160": 82.9, "regnety-160-384": None,
}  # fmt: skip
NOT_IDENTITY = {"name", "model"}
CHANGES = {
    "deit-b-distilled": {},
    "deit-b-distilled-1000": {"train.epochs": 1000, "labels.views": 1002},
    "deit-b-distilled-384": {
        "views.image_size": 384, "student.init_checkpoint": "run:deit-b-distilled", "student.drop_path": 0.0,
        "train.epochs": 30,
        "train.batch_size": 512, "train.lr": 5e-6, "train.min_lr": 5e-6, "train.weight_decay": 1e-8, "labels.views": 30,
    },
    "deit-b-soft": {
        "labels.store": "full", "train.distillation": "soft", "train.tau": 3.0, "train.alpha": 0.1,
        "train.soft_reduction": "paper",
    },
    "deit-b-sgd": {"train.optimizer": "sgd", "train.distillation": "none"},
    "deit-b-autoaugment": {
        "views.rand_augment": "", "views.auto_augment": "original", "train.distillation": "none",
    },
    "deit-b-no-repeats": {"views.repeats": 1, "train.distillation": "none"},
    "deit-b-dropout": {"student.drop_rate": 0.1, "train.distillation": "none"},
    "deit-b-ema": {"evaluate.weights": "ema", "train.distillation": "none"},
    "deit-b-cars": {
        "workspace": "runs/cars", "student.init_checkpoint": "runs/deit/runs/deit-b/model.safetensors",
        "student.new_head": True, "student.drop_path": 0.0, "views.erasing_prob": 0.0, "train.optimizer": "sgd",
        "train.lr": 0.01, "train.scale_lr": False, "train.weight_decay": 1e-4, "train.batch_size": 768,
        "train.epochs": 1000, "train.distillation": "none",
    },
    "deit-b-sgd-384": {
        "views.image_size": 384, "student.init_checkpoint": "run:deit-b-sgd", "student.drop_path": 0.0,
        "train.epochs": 30,
        "train.batch_size": 512, "train.lr": 5e-6, "train.min_lr": 5e-6, "train.weight_decay": 1e-8, "labels.views": 30,
        "train.distillation": "none",
    },
    "deit-b-384-inat-19": {
        "workspace": "runs/inat-19-384", "student.init_checkpoint": "runs/deit/runs/deit-b-384/model.safetensors",
        "student.new_head": True, "views.image_size": 384, "views.erasing_prob": 0.1, "train.lr": 7.5e-5,
        "train.epochs": 360, "train.batch_size": 768, "train.scale_lr": False, "train.distillation": "none",
    },
    "deit-b-label-token": {"train.distillation": "label"},
    "deit-b-soft-token": {
        "labels.store": "full", "train.distillation": "soft", "train.tau": 3.0, "train.alpha": 0.1,
        "train.soft_reduction": "paper",
    },
    "regnety-160": {"train.distillation": "none"},
}  # fmt: skip
every_preset = pytest.mark.parametrize("preset", PRESETS)


def test_the_presets_are_the_papers_trainings_with_the_papers_accuracies():
    assert {name: preset.top1 for name, preset in PRESETS.items()} == TOP1


@every_preset
def test_the_text_parses_to_exactly_the_presets_values(preset, tmp_path):
    path = tmp_path / "deit.toml"
    path.write_text(run_file_text(preset), encoding="utf-8")
    with contextlib.chdir(tmp_path):
        assert load_run_file(str(path), []) == PRESETS[preset].run_file()


def flat(config: RunFile) -> dict[str, object]:
    """Dotted key → value, without names of models and folders."""
    tables = {name: value for name, value in config.model_dump().items() if isinstance(value, dict)}
    keys = {f"{name}.{key}": value for name, table in tables.items() for key, value in table.items()}
    return {key: value for key, value in keys.items() if key.rpartition(".")[2] not in NOT_IDENTITY} | {
        "workspace": config.workspace
    }


@pytest.mark.parametrize("preset", CHANGES)
def test_a_preset_differs_from_the_defaults_in_what_the_paper_says_and_nothing_else(preset):
    default = flat(RunFile())
    changed = {key: value for key, value in flat(PRESETS[preset].run_file()).items() if value != default[key]}
    assert changed == CHANGES[preset]


@every_preset
def test_a_preset_names_a_model_of_timm_and_one_with_a_distillation_token_is_taught(preset):
    run = PRESETS[preset].run_file()
    assert timm.is_model(run.student.model)
    assert ("distilled" in run.student.model) == ("-distilled" in preset or preset.endswith("-token"))
    assert (run.train.distillation == "hard") == ("-distilled" in preset or "-hard" in preset)
    assert (run.train.distillation == "soft") == ("-soft" in preset)
    assert (run.train.distillation == "label") == preset.endswith("-label-token")


@every_preset
def test_a_preset_that_starts_from_another_starts_from_the_model_that_one_leaves(preset):
    chosen = PRESETS[preset]
    start = chosen.run_file().student.init_checkpoint
    if not chosen.after:
        assert start == ""
        return
    before = PRESETS[chosen.after].run_file()
    places = {f"run:{before.train.name}", f"{before.workspace}/runs/{before.train.name}/model.safetensors"}
    assert start in places
    assert start.startswith("run:") == (before.workspace == chosen.run_file().workspace)


@pytest.mark.parametrize("side", [160, 320, 384])
def test_a_preset_at_another_resolution_labels_at_that_resolution(side):
    run = PRESETS[f"deit-b-{side}"].run_file()
    assert (run.views.image_size, run.labels.name) == (side, f"teacher-{side}")
    assert run.labels.views >= run.train.epochs


@every_preset
def test_the_text_holds_every_key_of_the_schema_in_its_order_each_with_its_description(preset):
    text = run_file_text(preset)
    parsed = tomllib.loads(text)
    assert sorted(parsed) == sorted(RunFile.model_fields)
    words = re.sub(r"\s+(# )?", " ", text)
    for name, value in dict(RunFile()).items():
        fields = type(value).model_fields if isinstance(parsed[name], dict) else {name: RunFile.model_fields[name]}
        assert list(fields) == (list(parsed[name]) if isinstance(parsed[name], dict) else [name])
        for field in fields.values():
            assert field.description in words


@every_preset
def test_the_lines_fit_110_columns_and_comments_of_a_table_stand_in_one_column(preset):
    text = run_file_text(preset)
    assert max(map(len, text.splitlines())) <= 110
    assert not any(line != line.rstrip() for line in text.splitlines())
    for table in text.split("\n\n")[1:]:
        rows = [line for line in table.splitlines() if not line.startswith(("#", "["))]
        assert len({row.index("  # ") for row in rows}) == 1


@every_preset
def test_the_head_names_the_aim_and_the_commands_in_order(preset):
    head = run_file_text(preset).partition("\n\n")[0]
    aim = f"Aims at {TOP1[preset]}% top-1" if TOP1[preset] else "The paper has no figure for it."
    assert aim in head
    stages = ["shard", "label-teacher", "train", "evaluate"]
    if PRESETS[preset].run_file().train.distillation not in ("hard", "soft"):
        stages.remove("label-teacher")
    assert re.findall(r"^#     deit-pipeline (\S+)", head, re.MULTILINE) == stages


def test_keys_that_everybody_must_change_come_with_an_example():
    text = run_file_text("deit-ti")
    for key in ("workspace", "train", "val"):
        assert re.search(rf'^{key} = ".*such as "', text, re.MULTILINE)


@every_preset
def test_the_head_says_which_preset_comes_first_and_what_the_paper_leaves_open(preset):
    head = re.sub(r"\s+(# )?", " ", run_file_text(preset).partition("\n\n")[0])
    chosen = PRESETS[preset]
    assert (f"the model of preset {chosen.after}: train that first" in head) == bool(chosen.after)
    assert chosen.note in head and (f"2021, Table {chosen.table})" in head) == bool(chosen.top1)


def test_the_documentation_lists_every_preset_as_it_is():
    text = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        after = f"`{preset.after}`" if preset.after else ""
        assert f"| `{name}` | {preset.title} | {preset.top1 or ''} | {preset.table or ''} | {after} |\n" in text


def test_choices_are_listed_beside_their_key():
    assert 'erasing_mode = "pixel"                     # "pixel" | "const": ' in run_file_text("deit-ti")


def test_an_unknown_preset_is_refused_naming_those_there_are():
    with pytest.raises(UserError) as caught:
        run_file_text("deit-xl")
    assert str(caught.value) == f"unknown preset deit-xl; allowed: {', '.join(PRESETS)} (did you mean deit-s?)"


def test_a_path_longer_than_a_line_is_written_and_read_again():
    run = parse_run({"student": {"init_checkpoint": "/data" * 50}}, "test")
    assert parse_run(tomllib.loads(toml_text(run)), "test") == run


def test_values_that_need_quoting_survive_the_text():
    value = {"a b": 'say "hi" \\ \n ü', "c": (1, 2.5e-7, True), "d": {"e": ()}}
    parsed = parse_run(tomllib.loads(f"[student]\nextra = {_toml(value)}"), "test")
    assert parsed.student.extra == value


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teacher_of_table_2_is_known_to_timm_with_its_tag_and_saw_imagenet_1k_alone(teacher):
    parsed = tomllib.loads(run_file_text("deit-s-distilled", teacher))
    model = parsed["teacher"]["model"]
    assert model in timm.list_pretrained()
    assert model.endswith("_in1k") and not any(word in model for word in ("12k", "21k", "22k"))
    assert parsed["labels"]["name"] == teacher  # each teacher's labels lie apart
    assert set(TEACHERS) == {"deit-b", *(f"regnety-{size}gf" for size in (4, 8, 12, 16))}


def test_another_teacher_is_named_at_the_head():
    assert "taught by regnety_040.pycls_in1k" in run_file_text("deit-s-distilled", "regnety-4gf")
    assert "this teacher's top-1 is 80.0% in Table 2" in run_file_text("deit-s-distilled", "regnety-4gf")
    assert "Table 2" not in run_file_text("deit-s-distilled", "regnety-16gf")


@pytest.mark.parametrize(
    ("preset", "teacher", "line"),
    [
        ("deit-s-distilled", "vgg", f"unknown teacher vgg; allowed: {', '.join(TEACHERS)}"),
        ("deit-s", "deit-b", "preset deit-s: has no teacher; choose a distilled one, such as deit-b-distilled"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(preset, teacher, line, refused):
    assert refused(run_file_text, preset, teacher) == line
