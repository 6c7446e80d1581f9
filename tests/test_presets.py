"""Presets: the text parses to the preset, says everything, and is what a person wants to read."""

import re
import tomllib

import pytest
import timm

from schemas.config import RunFile, load_run_file, parse_run
from schemas.errors import PipelineError
from schemas.presets import PRESETS, TEACHERS, _toml, run_file_text

TOP1 = {
    "deit-ti": 72.2,
    "deit-ti-distilled": 74.5,
    "deit-s": 79.8,
    "deit-s-distilled": 81.2,
    "deit-b": 81.8,
    "deit-b-distilled": 83.4,
}
every_preset = pytest.mark.parametrize("preset", PRESETS)


def test_the_presets_are_the_papers_students_with_the_papers_accuracies():
    assert {name: preset.top1 for name, preset in PRESETS.items()} == TOP1


@every_preset
def test_the_text_parses_to_exactly_the_presets_values(preset, tmp_path):
    path = tmp_path / "deit.toml"
    path.write_text(run_file_text(preset), encoding="utf-8")
    assert load_run_file(str(path), []) == PRESETS[preset].run_file()


@every_preset
def test_a_preset_differs_from_the_defaults_only_in_model_name_and_distillation(preset):
    run, default = PRESETS[preset].run_file().model_dump(), RunFile().model_dump()
    keys = {(table, key) for table in run if table != "workspace" for key in run[table]}
    changed = {(table, key) for table, key in keys if run[table][key] != default[table][key]}
    assert changed <= {("student", "model"), ("train", "name"), ("train", "distillation")}
    assert run["workspace"] == default["workspace"]


@every_preset
def test_a_preset_distils_if_and_only_if_its_model_has_a_distillation_token(preset):
    run = PRESETS[preset].run_file()
    assert timm.is_model(run.student.model)
    assert ("distilled" in run.student.model) == (run.train.distillation == "hard") == preset.endswith("-distilled")


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
    assert f"{TOP1[preset]}% top-1" in head
    stages = ["shard", "label-teacher", "train", "evaluate"]
    if not preset.endswith("distilled"):
        stages.remove("label-teacher")
    assert re.findall(r"^#     deit-pipeline (\S+)", head, re.MULTILINE) == stages


def test_keys_that_everybody_must_change_come_with_an_example():
    text = run_file_text("deit-ti")
    for key in ("workspace", "train", "val"):
        assert re.search(rf'^{key} = ".*such as "', text, re.MULTILINE)


def test_choices_are_listed_beside_their_key():
    assert 'erasing_mode = "pixel"                     # "pixel" | "const": ' in run_file_text("deit-ti")


def test_an_unknown_preset_is_refused_naming_those_there_are():
    with pytest.raises(PipelineError) as caught:
        run_file_text("deit-xl")
    assert str(caught.value) == f"unknown preset deit-xl; allowed: {', '.join(TOP1)}"


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
        ("deit-s", "deit-b", "preset deit-s: has no teacher; choose deit-s-distilled"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(preset, teacher, line, refused):
    assert refused(run_file_text, preset, teacher) == line
