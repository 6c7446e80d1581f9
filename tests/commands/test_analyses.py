"""The paper's analyses: disagreement, tokens, throughput and runs side by side, each traced to stored files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands import run as stages
from pipeline.commands.analyses import disagreement, tokens
from pipeline.commands.compare import compare, lines_of
from pipeline.commands.evaluate import predict_images
from pipeline.commands.throughput import throughput
from schemas import paper
from schemas.config import Member, RunFile
from schemas.paper import TABLE_5
from stages.data.center_crop import centre_crops
from stages.data.image_set import open_image_set
from stages.evaluate.disagreement import TITLES
from stages.evaluate.evaluated_model import ModelRef, open_evaluated_model
from stages.evaluate.throughput import largest_batch
from stages.evaluate.throughput import throughput as measure
from stages.plotting.charts import Series, chart, heat_map
from stages.replay.mix import normalise
from tests.support.command_line import complaint, typed, written
from tests.support.world import TEACHER, TINY_VIT, silent, stored


def with_(config: RunFile, **changes: dict) -> RunFile:
    return config.model_copy(
        update={table: getattr(config, table).model_copy(update=new) for table, new in changes.items()}
    )


def test_disagreement_is_counted_as_by_hand_from_the_answers_it_names(copied):
    run = copied({"evaluate": {"baseline": "teacher"}})
    result = disagreement(run, silent)
    image_set = open_image_set(run)
    student, teacher = (
        predict_images(run, ModelRef(run=name), image_set, silent).predictions for name in ("student", "teacher")
    )
    by_hand = {
        "truth": student.classes.tolist(),
        "teacher": teacher.top["class"][:, 0].tolist(),
        "baseline": teacher.top["class"][:, 0].tolist(),  # here one and the same model
        **{head: student.top[head][:, 0].tolist() for head in ("class", "distillation", "fused")},
    }
    assert list(result["rates"]) == list(by_hand)
    for one, mine in by_hand.items():
        for other, theirs in by_hand.items():
            rate = sum(a != b for a, b in zip(mine, theirs, strict=True)) / 20
            assert result["rates"][one][other] == pytest.approx(rate)
    assert result["rates"]["teacher"]["baseline"] == 0
    assert result["rates"]["truth"]["class"] == pytest.approx(1 - stages.evaluate(run, silent)["class"]["top1"])
    for one in result["asked"].values():
        assert list(Path(run.workspace, one["predictions"]).glob("*.parquet"))
    folder, name = Path(run.workspace, "runs/student"), "disagreement-baseline-teacher"
    assert json.loads((folder / f"{name}.json").read_text()) == result
    text = (folder / f"{name}.md").read_text()
    assert all(title in text for title in TITLES.values())
    assert "| 0.171 |" in text and "The paper's" in text
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.width > 600


def test_without_a_baseline_its_row_is_left_out_and_that_is_said(copied):
    said: list[str] = []
    result = disagreement(copied(), said.append)
    assert "baseline" not in result["rates"]
    assert any("--baseline" in line for line in said)


def test_tokens_are_compared_behind_every_block_over_every_image(copied):
    run = copied()
    result = tokens(run, silent)
    assert result["samples"] == 20
    assert len(result["layers"]) == len(result["deviation"]) == TINY_VIT["depth"] + 1
    assert all(-1 <= one <= 1 for one in [*result["layers"], result["learned"], result["normed"]])
    image_set = open_image_set(run)
    model = open_evaluated_model(run, ModelRef(run="student"), image_set, torch.device("cpu")).network
    crops = next(centre_crops(image_set, 0, image_size=32, crop_pct=0.875, batch=20, threads=1))
    with torch.inference_mode():
        images = normalise(crops.views, model.mean, model.std)
        _, middle = model.model.forward_intermediates(images, return_prefix_tokens=True, norm=False)
        tokens_BD = [one[1] for one in middle]  # prefix tokens of each block
        by_hand = [torch.cosine_similarity(one[:, 0], one[:, 1], dim=1).mean().item() for one in tokens_BD]
        last = model.model.forward_features(images)
    assert result["layers"][1:] == pytest.approx(by_hand, abs=1e-5)
    assert result["normed"] == pytest.approx(
        torch.cosine_similarity(last[:, 0], last[:, 1], dim=1).mean().item(), abs=1e-5
    )
    first, second = model.model.cls_token.flatten(), model.model.dist_token.flatten()
    assert result["learned"] == pytest.approx(float(first @ second / first.norm() / second.norm()), abs=1e-6)
    folder = Path(run.workspace, "runs/student")
    assert json.loads((folder / "tokens.json").read_text()) == result
    assert "block 2" in (folder / "tokens.md").read_text() and "0.93" in (folder / "tokens.md").read_text()
    assert (folder / "tokens.png").exists()


def test_a_batch_grows_to_the_limit_or_until_memory_ends(monkeypatch):
    sizes: list[int] = []

    def model(images: torch.Tensor) -> None:
        sizes.append(len(images))
        if len(images) > 12:
            raise torch.OutOfMemoryError("out of memory")

    cpu = torch.device("cpu")
    assert largest_batch(model, 4, cpu, 6) == (6, "max_batch")
    assert sizes == [1, 2, 4, 6]
    assert largest_batch(model, 4, cpu, 100) == (8, "memory")
    monkeypatch.setattr("stages.evaluate.throughput._peak_bytes", lambda: 100)
    monkeypatch.setattr("stages.evaluate.throughput._free_bytes", lambda: 500)
    sizes.clear()
    assert largest_batch(model, 4, cpu, 0) == (8, "memory")
    monkeypatch.setattr("stages.evaluate.throughput._free_bytes", lambda: 300)
    sizes.clear()
    assert largest_batch(model, 4, cpu, 0) == (1, "memory")
    assert sizes == [1]


def test_other_faults_of_a_model_are_not_taken_for_memory(refused):
    def broken(images: torch.Tensor) -> None:
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        largest_batch(broken, 4, torch.device("cpu"), 2)

    def too_large(images: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory")

    assert "not even one image" in refused(largest_batch, too_large, 4, torch.device("cpu"), 2)


def test_images_a_second_are_those_of_the_runs_that_are_stored():
    found = measure(
        Member("resnet10t", "", {}, 0), image_size=32, device=torch.device("cpu"), max_batch=3, runs=4, precision="fp32"
    )
    assert (found["batch_size"], found["limited_by"], len(found["seconds"])) == (3, "max_batch", 4)
    assert found["images_per_second"] == pytest.approx(12 / sum(found["seconds"]))


def test_models_side_by_side_with_the_accuracies_of_the_workspace(copied):
    run = copied({"evaluate": {"max_batch": 2, "runs": 2}})
    evaluation = stages.evaluate(run, silent)
    alone = throughput(run, silent)
    (row,) = alone["rows"]
    assert (row["model"], row["name"], row["image_size"]) == ("deit_tiny_distilled_patch16_224", "student", 32)
    assert row["accuracies"]["top1"] == {"top1": evaluation["fused"]["top1"], "file": "runs/student/evaluation.json"}
    store = Path(run.workspace, "evaluations")
    (picture,) = store.glob("throughput-*.png")
    assert picture.stat().st_size > 1000
    both = with_(
        run,
        evaluate={"model": ("resnet10t", "deit_tiny_distilled_patch16_224"), "extra": ({}, TINY_VIT), "image_size": 32},
    )
    rows = throughput(both, silent)["rows"]
    assert [(one["model"], one["name"]) for one in rows] == [("resnet10t", None), (row["model"], "student")]
    for one in rows:
        measured = json.loads(Path(run.workspace, one["throughput_file"]).read_text())
        assert measured["images_per_second"] == one["images_per_second"]


def test_the_papers_figures_stand_beside_models_it_measured(copied):
    run = copied({"evaluate": {"model": "deit_tiny_distilled_patch16_224", "max_batch": 1, "runs": 1}})
    throughput(run, silent)
    (text,) = Path(run.workspace, "evaluations").glob("throughput-*.md")
    assert "The paper's (Touvron et al. 2021, Table 5)" in text.read_text()
    assert "| 2,529.5 | 74.5% | 82.1% | 62.9% |" in text.read_text()


def test_rows_of_the_papers_table_take_its_size_and_no_row_is_omitted(copied, monkeypatch):
    sizes = {}

    def speed(member, *, image_size, **more):
        sizes[member.model] = image_size
        found = {"model": member.model, "extra": {}, "image_size": image_size, "parameters": 1, "batch_size": 1}
        return found | {"limited_by": "memory", "runs": 1, "seconds": [1.0], "images_per_second": 1.0}

    monkeypatch.setattr("pipeline.commands.throughput.measure", speed)
    run, said = copied({"evaluate": {"model": ("tf_efficientnet_b1.ns_jft_in1k", "regnety_160", "resnet10t")}}), []
    throughput(run, said.append)
    assert sizes == {"tf_efficientnet_b1.ns_jft_in1k": 240, "regnety_160": 224, "resnet10t": 0}
    text = said[-2]
    assert "| 334.7 | 82.9% |" in text and "| 1,662.5 |" in text
    named = text.partition("that were not measured: ")[2]
    assert named.count(";") + 1 == len(TABLE_5) - 2 and "KDforAA-B8 (efficientnet_b8, 800 px)" in named


def test_runs_side_by_side_show_what_differs_and_every_figure_is_in_the_files_they_name(copied):
    run = copied()
    teacher = copied_teacher(run)
    stages.evaluate(teacher, silent)
    stages.evaluate(run, silent)
    said: list[str] = []
    result = compare(run, ["student", "teacher"], said.append)
    student, other = result["runs"]
    assert student["differs"]["student.model"] == "deit_tiny_distilled_patch16_224"
    assert other["differs"]["student.model"] == "deit_tiny_patch16_224"
    assert student["differs"]["train.distillation"] == "hard" and other["differs"]["train.distillation"] == "none"
    assert "views.image_size" not in student["differs"] and "workspace" not in student["differs"]
    for row in result["runs"]:
        evaluation = json.loads(Path(run.workspace, row["files"][2]).read_text())
        manifest = json.loads(Path(run.workspace, row["files"][1]).read_text())
        assert row["class"] == evaluation["class"] and row["fused"] == evaluation["fused"]
        assert (row["steps"], row["loss"]) == (manifest["steps"], manifest["loss"])
        assert row["epochs"] == pytest.approx(manifest["steps"] * 16 / 61)
    folder = Path(run.workspace, "comparisons/student-teacher")
    assert stored(folder).keys() == {"compare.json", "compare.md", "compare.png"}
    assert json.loads((folder / "compare.json").read_text()) == result
    assert "| student |" in (folder / "compare.md").read_text()


def copied_teacher(config: RunFile) -> RunFile:
    return with_(config, student=TEACHER["student"], train=TEACHER["train"])


def test_what_no_run_can_show_is_refused_in_one_line(copied, refused):
    run = copied()
    assert "has one head; name a run with a distillation token" in refused(disagreement, copied_teacher(run), silent)
    assert "has no distillation token" in refused(tokens, copied_teacher(run), silent)
    assert 'was trained with train.distillation = "hard"' in refused(
        disagreement, with_(run, evaluate={"baseline": "student"}), silent, code=4
    )
    assert "no such run; there are: student, teacher" in refused(
        disagreement, with_(run, evaluate={"baseline": "nobody"}), silent
    )
    assert "one true class" in refused(disagreement, with_(run, evaluate={"labels": "imagenet-real"}), silent, code=4)
    for analysis in (disagreement, tokens):
        assert "remove evaluate.model" in refused(analysis, with_(run, evaluate={"model": "resnet10t"}), silent)
    assert "timm knows no model resnet10x" in refused(throughput, with_(run, evaluate={"model": "resnet10x"}), silent)
    assert "no such run" in refused(compare, run, ["student", "nobody"], silent)
    assert "named twice" in refused(compare, run, ["student", "student"], silent)
    assert "is not evaluated; run `deit-pipeline evaluate --set train.name=teacher`" in refused(
        compare, run, ["teacher"], silent
    )
    Path(run.workspace, "runs/teacher/manifest.json").unlink()
    assert "is not trained to its end" in refused(compare, run, ["teacher"], silent)


def test_the_command_line_knows_every_analysis(copied, tmp_path, images):
    file = written(copied(), tmp_path)
    for option, kind in (("--disagreement", "disagreement"), ("--tokens", "tokens")):
        code, out, _ = typed("evaluate", option, "-c", file, "--json")
        assert (code, json.loads(out.splitlines()[-1])["analysis"]) == (0, kind)
    more = ("--set", "evaluate.max_batch=2", "--set", "evaluate.runs=1", "--image-size", "32")
    code, out, _ = typed(
        "evaluate", "--throughput", "--model", "resnet10t", "--model", "resnet18", "-c", file, "--json", *more
    )
    assert (code, len(json.loads(out)["rows"])) == (0, 2)
    code, out, _ = typed("evaluate", "--source", str(images / "val"), "--crop-pct", "1.0", "-c", file, "--json")
    assert (code, json.loads(out)["crop_pct"], json.loads(out)["samples"]) == (0, 1.0, 20)
    assert typed("evaluate", "-c", file)[0] == 0
    assert typed("compare", "student", "-c", file)[0] == 0
    assert typed("evaluate", "--tokens", "--throughput", "-c", file)[0] == 2
    assert "imagenet-real" in complaint(4, "evaluate", "--real", "-c", file)
    assert "class_folders" in complaint(1, "evaluate", "--class-folders", "indices", "-c", file)
    assert "evaluate.model" in complaint(1, "evaluate", "--checkpoint", "run:student", "-c", file)


def test_the_papers_table_4_is_symmetric_and_complete():
    rates = np.array(list(paper.TABLE_4.values()))
    assert list(paper.TABLE_4) == list(TITLES)
    assert np.array_equal(rates, rates.T) and not rates.diagonal().any()


def test_figures_can_be_drawn_of_one_point_of_equal_points_and_of_names_in_any_script():
    for points in ([(1.0, 2.0)], [(1.0, 2.0), (3.0, 2.0)], [(1e-3, -1.0), (1e4, 1e6)]):
        picture = chart("Título", "about", [Series("名", points)], x="x", y="y", log_x=True)
        assert len(set(picture.get_flattened_data())) > 3
    assert heat_map("t", "a", ["one", "two"], np.zeros((2, 2))).width > 500


def test_lines_of_figure_3_join_runs_that_differ_in_length_only(copied):
    run = copied()
    stages.evaluate(run, silent)
    short = with_(run, train={"name": "short", "max_steps": 6})
    stages.train(short, silent)
    stages.evaluate(short, silent)
    stages.evaluate(copied_teacher(run), silent)
    rows = compare(run, ["student", "short", "teacher"], silent)["runs"]
    assert [row["steps"] for row in rows[:2]] == [12, 6]
    lines = lines_of(rows)
    assert sorted(map(len, lines.values())) == [1, 2]
    (pair,) = [of_line for of_line in lines.values() if len(of_line) == 2]
    assert [row["epochs"] for row in pair] == pytest.approx([6 * 16 / 61, 12 * 16 / 61])
