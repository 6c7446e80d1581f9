"""Inspect shows what the trainer's own batches hold, as pictures and as numbers."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import cli
from schemas.recipe import Recipe
from schemas.toml_text import toml_text
from stages.data.split import Split
from stages.data.views import stack_mixes
from stages.inspect.views import as_json, find_sample, inspect_views, readable, verdict
from stages.label.label_set import LabelSet
from stages.replay.apply import Renderer
from stages.replay.decide import Box, DecidedMix, DecidedView, Erase, Op
from stages.replay.decode import decode
from stages.replay.mix import mix, normalise
from stages.replay.order import Stream, pairing
from stages.train.dataset import TrainDataset

AS_LEVELS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def opened(whole):
    split = Split.open(whole.workspace, "train")
    return split, whole.views, LabelSet.open(whole, split)


def out_of_the_pass(recipe, split, shard, pass_):
    rows = split.rows[shard]
    return sorted(set(range(rows)) - set(pairing(recipe.seed, shard, pass_, rows).ravel().tolist()))


def test_views_partners_mixes_and_decisions_are_those_of_the_trainers_batches(opened):
    split, recipe, labels = opened
    stream = Stream(split.rows, repeats=recipe.repeats, window=2, recipe_seed=recipe.seed, seed=5)
    steps = TrainDataset(split, recipe, stream, labels, batch=8, rank=0, world=1)
    for step in (0, 9, 17):
        batch = steps[step]
        mixed = mix(normalise(batch.views, *AS_LEVELS), batch.mix).permute(0, 2, 3, 1)
        for slot, unit in enumerate(unit for unit in steps.units(step) for _ in range(2)):
            row, other = (unit.row_a, unit.row_b) if slot % 2 == 0 else (unit.row_b, unit.row_a)
            sample, views = inspect_views(split, recipe, labels, (unit.shard, row), unit.view + 1)
            view = views[unit.view]
            assert (sample.label, view.partner.row) == (batch.classes[slot], other)
            assert view.partner.label == batch.classes[slot ^ 1]
            assert np.array_equal(view.alone, batch.views[slot])
            assert np.array_equal(view.partner.view, batch.views[slot ^ 1])
            assert view.mix.lam == pytest.approx(batch.mix.lam[slot // 2].item())
            assert np.array_equal(view.seen, (255 * mixed[slot]).round().byte())
            assert view.decision == batch.decisions[slot]


def test_the_odd_sample_sits_out_its_passes_and_only_those(opened):
    split, recipe, labels = opened
    shard = next(number for number, rows in enumerate(split.rows) if rows % 2)
    (row,) = out_of_the_pass(recipe, split, shard, pass_=1)
    _, views = inspect_views(split, recipe, labels, (shard, row), 6)
    assert [view.partner is None for view in views] == [
        row in out_of_the_pass(recipe, split, shard, number // recipe.repeats) for number in range(6)
    ]
    for view in views[2:4]:
        assert (view.mix, view.seen, view.decision) == (None, None, None)
        assert view.alone.shape == (32, 32, 3)


def test_views_beyond_the_labelled_ones_have_no_decision(opened):
    split, recipe, labels = opened
    row = next(
        row for row in range(split.rows[0]) if all(row not in out_of_the_pass(recipe, split, 0, p) for p in range(5))
    )
    _, views = inspect_views(split, recipe, labels, (0, row), 10)
    assert [view.decision is not None for view in views] == [True] * 6 + [False] * 4
    _, views = inspect_views(split, recipe, None, (0, row), 2)
    assert [view.decision for view in views] == [None, None]


def test_the_numbers_alone_make_view_and_mix_again(opened):
    split, recipe, _ = opened
    recipe = recipe.model_copy(update={"erasing_prob": 1.0})
    sample, views = inspect_views(split, recipe, None, (1, 4), 8)
    told = json.loads(json.dumps(as_json(sample, views, split.classes)))
    image = decode(split.image(told["sample"]["shard"], told["sample"]["row"]))
    assert image.shape[:2] == (told["sample"]["height"], told["sample"]["width"])
    for view, numbers in zip(views, told["views"], strict=True):
        ops = tuple(Op(**op) for op in numbers["ops"])
        erase = Erase(Box(**numbers["erase"]["box"]), tuple(numbers["erase"]["noise"]))
        again = np.empty_like(view.alone)
        Renderer(32).render(image, DecidedView(Box(**numbers["crop"]), numbers["flip"], ops, erase), again)
        assert np.array_equal(again, view.alone)
        how = DecidedMix(numbers["lam"], Box(**numbers["box"]) if numbers["box"] else None)
        pair = normalise(torch.from_numpy(np.stack([view.alone, view.partner.view])), *AS_LEVELS)
        assert np.array_equal((255 * mix(pair, stack_mixes([how]))[0].permute(1, 2, 0)).round().byte(), view.seen)


def test_the_verdict_says_whose_class_was_named(opened):
    split, recipe, labels = opened
    judged = set()
    for row in range(split.rows[0]):
        sample, views = inspect_views(split, recipe, labels, (0, row), 4)
        told = as_json(sample, views, split.classes)["views"]
        for view, numbers in zip(views, told, strict=True):
            named = numbers["decision"] and numbers["decision"]["class"]
            other = numbers["partner"] and numbers["partner"]["class"]
            expected = (
                None
                if named is None
                else "own"
                if named == sample.label
                else "partner"
                if named == other
                else "neither"
            )
            assert numbers["verdict"] == verdict(sample.label, view) == expected
            judged.add(expected)
    assert judged >= {"own", "partner"}


@pytest.mark.parametrize(
    ("text", "address"), [("0", (0, 0)), ("20", (0, 20)), ("21", (1, 0)), ("60", (2, 19)), ("2:19", (2, 19))]
)
def test_a_sample_is_named_by_its_number_or_its_address(opened, text, address):
    split = opened[0]
    assert split.rows == (21, 20, 20)
    assert find_sample(split, text) == address


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("61", "samples are numbered 0 to 60"), ("3:0", "shards are numbered 0 to 2"), ("0:99", "rows of shard 0 are"),
        ("-1", "must be a number"), ("1:", "must be a number"), ("cat", "must be a number"), ("", "must be a number"),
    ],
)  # fmt: skip
def test_a_sample_that_is_not_there_is_refused(opened, refused, text, cause):
    assert cause in refused(find_sample, opened[0], text)


def test_synsets_are_shown_by_their_first_word_and_all_else_as_it_is():
    assert readable(["n01440764", "n02123045", "n00000001", "cat"]) == ["tench", "tabby", "n00000001", "cat"]
    assert readable(["n02012849", "n03126707"]) == ["crane (n02012849)", "crane (n03126707)"]
    assert readable(["cat", "dog, old"]) == ["cat", "dog, old"]


def called(folder, run, *arguments):
    (folder / "deit.toml").write_text(toml_text(run))
    return CliRunner().invoke(cli.app, ["inspect", "views", "-c", str(folder / "deit.toml"), *arguments])


def test_the_command_draws_and_prints_the_same_as_numbers(opened, whole, tmp_path):
    out = tmp_path / "sheet.png"
    result = called(tmp_path, whole, "--sample", "1:3", "--views", "5", "--out", str(out), "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    split, recipe, labels = opened
    expected = as_json(*inspect_views(split, recipe, labels, (1, 3), 5), split.classes)
    told = json.loads(line)
    assert {key: told[key] for key in ("inspect", "out", "labels")} == {
        "inspect": "views", "out": str(out), "labels": whole.labels.name,
    }  # fmt: skip
    assert {key: told[key] for key in expected} == json.loads(json.dumps(expected))
    assert out.read_bytes().startswith(b"\x89PNG")


def test_other_views_than_the_labelled_are_drawn_without_decisions_and_say_so(whole, tmp_path):
    arguments = ("--sample", "0", "--views", "2", "--out", str(tmp_path / "sheet.png"), "--json")
    result = called(tmp_path, whole, *arguments, "--set", "views.seed=1")
    assert result.exit_code == 0
    assert "without the teacher's decisions" in result.stderr
    assert "recipe.seed: 0 -> 1" in result.stderr
    told = json.loads(result.stdout)
    assert told["labels"] is None
    assert [view["decision"] for view in told["views"]] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("--sample", "61"), "--sample 61: the split's samples are numbered 0 to 60"),
        (("--sample", "0", "--out", "no/such/folder.png"), "--out no/such/folder.png: cannot be written"),
        (("--sample", "0", "--out", "sheet.text"), "--out sheet.text: cannot be written"),
        (("--sample", "0", "--set", "workspace=empty"), "is not sharded yet; run `deit-pipeline shard -c "),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(whole, tmp_path, monkeypatch, arguments, cause):
    monkeypatch.chdir(tmp_path)
    result = called(tmp_path, whole, *arguments)
    assert result.exit_code == 1
    assert cause in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"deit.toml"}


@pytest.mark.parametrize("count", ["0", "61"])
def test_too_few_and_too_many_views_are_a_wrong_use(whole, tmp_path, count):
    assert called(tmp_path, whole, "--sample", "0", "--views", count).exit_code == 2


def test_unmixed_recipes_show_the_view_itself(opened):
    split = opened[0]
    recipe = Recipe(image_size=24, mixup_alpha=0, cutmix_alpha=0)
    _, views = inspect_views(split, recipe, None, (1, 0), 3)
    assert all(np.array_equal(view.seen, view.alone) for view in views if view.partner)
    assert any(view.partner for view in views)
