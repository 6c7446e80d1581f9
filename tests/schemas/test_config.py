"""The run file: what it defaults to, what it refuses and in which words, and how --set changes it."""

import pytest

from schemas.config import RunFile
from schemas.errors import UserError
from schemas.receipts import fingerprint
from schemas.recipe import Recipe, Table
from schemas.run_file import load_run_file, parse_run


def loaded(tmp_path, text="", overrides=()):
    path = tmp_path / "deit.toml"
    path.write_text(text, encoding="utf-8")
    return load_run_file(str(path), list(overrides))


def refusal(tmp_path, text="", overrides=()):
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, text, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 1
    return message.removeprefix(f"{tmp_path / 'deit.toml'}: ")


def test_defaults_train_as_the_authors_did():
    run = RunFile()
    train, views = run.train, run.views
    assert (run.student.model, run.student.drop_path) == ("deit_base_distilled_patch16_224", 0.1)
    assert (train.optimizer, train.lr, train.weight_decay) == ("adamw", 5e-4, 0.05)
    assert (train.epochs, train.batch_size) == (300, 1024)
    assert (train.warmup_epochs, train.warmup_lr, train.min_lr) == (5, 1e-6, 1e-5)
    assert (train.label_smoothing, train.ema_decay) == (0.1, 0.99996)
    assert (train.distillation, train.alpha) == ("hard", 0.5)
    assert run.teacher.model == "regnety_160.deit_in1k"
    assert run.evaluate.crop_pct == 0.875
    assert (views.image_size, views.repeats) == (224, 3)


def test_defaults_augment_as_the_authors_did():
    views = RunFile().views
    assert (views.scale, views.ratio, views.flip_prob) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (views.rand_augment, views.auto_augment, views.color_jitter) == ("rand-m9-mstd0.5-inc1", "", 0.3)
    assert (views.erasing_prob, views.erasing_mode, views.erasing_area) == (0.25, "pixel", (0.02, 1 / 3))
    assert (views.mixup_alpha, views.cutmix_alpha, views.mix_prob, views.switch_prob) == (0.8, 1.0, 1.0, 0.5)


def test_default_labels_are_exactly_the_views_that_300_epochs_read():
    run = RunFile()
    passes = run.train.epochs / run.views.repeats  # an epoch is a third of a pass
    assert run.labels.views == passes * run.views.repeats


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrkspace = 'x'", "unknown key wrkspace; allowed here: workspace, source, shards, views, teacher,"),
        ("[trian]", "unknown key trian; allowed here: workspace, source,"),
        ("[train]\nepoch = 1", "unknown key train.epoch; allowed here: name, epochs, max_steps,"),
        ("[shards]\nsize = 1", "unknown key shards.size; allowed here: samples_per_shard, seed, on_bad_image"),
        ("shards = 5", "shards = 5: must be a table"),
        ("workspace = ''", 'workspace = "": must not be empty'),
        ("[teacher]\nmodel = ''", 'teacher.model = "": must not be empty'),
        ("[student]\nmodel = ''", 'student.model = "": must not be empty'),
        ("workspace = 2020-01-01", 'workspace = "2020-01-01": must be a string'),
        ("[source]\ntrain = ['a']", 'source.train = ["a"]: must be a string'),
        ("[train]\nepochs = '9'", 'train.epochs = "9": must be a whole number'),
        ("[train]\nepochs = 1.5", "train.epochs = 1.5: must be a whole number"),
        ("[train]\nepochs = true", "train.epochs = true: must be a whole number"),
        ("[train]\nepochs = 0", "train.epochs = 0: must be greater than or equal to 1"),
        ("[train]\nlr = '5e-4'", 'train.lr = "5e-4": must be a number'),
        ("[train]\nlr = 0", "train.lr = 0: must be greater than 0"),
        ("[train]\nlr = nan", "train.lr = NaN: must be a finite number"),
        ("[train]\nlabel_smoothing = 1", "train.label_smoothing = 1: must be less than 1"),
        ("[train]\ncompile = 1", 'train.compile = 1: must be "auto", true or false'),
        ("[train]\ndistillation = 'medium'", "train.distillation = \"medium\": must be 'none'"),
        ("[train]\nname = '../x'", 'train.name = "../x": must be a folder name: letters, digits,'),
        ("[shards]\non_bad_image = 'ask'", "shards.on_bad_image = \"ask\": must be 'fail' or 'skip'"),
        ("[student]\nextra = 1", "student.extra = 1: must be a table"),
        ("[student]\nextra = {drop_rate = nan}", "student.extra.drop_rate: must be a string, a finite number"),
        ("[teacher]\nbatch_size = 3", "teacher.batch_size: must be even"),
        ("[views]\nscale = 0.5", "views.scale = 0.5: must be two numbers, such as [0.5, 1.0]"),
        ("[views]\nscale = [0.5]", "views.scale = [0.5]: must be two numbers"),
        ("[views]\nscale = [0.1, 0.2, 0.3]", "views.scale = [0.1, 0.2, 0.3]: must be two numbers"),
        ("[views]\nscale = [0.5, 0.2]", "views.scale = [0.5, 0.2]: must be two positive numbers, the smaller first"),
        ("[views]\nscale = [0.5, 2.0]", "views.scale = [0.5, 2.0]: must be shares of an area, at most 1"),
        ("[views]\nflip_prob = 1.5", "views.flip_prob = 1.5: must be less than or equal to 1"),
        ("[views]\nrand_augment = 'm9'", 'views.rand_augment = "m9": must be "" or timm\'s form, such as'),
        ("[views]\nauto_augment = 'v0'", 'views.auto_augment: set rand_augment = "" to use AutoAugment'),
        ("[student]\nnew_head = true", "student.new_head: without student.init_checkpoint all weights are fresh"),
        ("[labels]\nviews = 100", "labels.views: 100 is not a multiple of views.repeats = 3"),
        ("[labels]\nsamples = 0", "labels.samples = 0: must be greater than or equal to 1"),
        ("[train]\nmin_margin = 1.0\ndistillation = 'none'", "train.min_margin: selects decisions, which only"),
        ("[train]\nmin_margin = 1.0", 'train.min_margin: labels.store = "hard" keeps no margins'),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_key_and_what_is_allowed(tmp_path, text, message):
    assert refusal(tmp_path, text).startswith(message)


def test_of_several_bad_values_the_first_is_explained_and_the_others_are_counted(tmp_path):
    message = refusal(tmp_path, "workspace = 1\nx = 2\n[train]\nepochs = 0")
    assert message == "workspace = 1: must be a string (and 2 more)"


def test_a_long_value_is_cut_in_the_message(tmp_path):
    assert len(refusal(tmp_path, f"[train]\nname = '{'x' * 5000}'")) < 250


@pytest.mark.parametrize("text", ["a = 1\na = 2", "[train", "epochs 5"])
def test_a_file_that_is_not_toml_is_refused_in_one_line(tmp_path, text):
    assert refusal(tmp_path, text).startswith("not a TOML file (")


def test_a_file_that_is_not_text_is_refused_in_one_line(tmp_path):
    (tmp_path / "deit.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a TOML file"):
        load_run_file(str(tmp_path / "deit.toml"), [])


def test_a_missing_run_file_names_the_command_that_writes_one(tmp_path):
    path = str(tmp_path / "none.toml")
    with pytest.raises(UserError) as caught:
        load_run_file(path, [])
    assert str(caught.value) == f"{path}: no such run file; write one with `deit-pipeline init {path}`"


def test_an_empty_run_file_has_the_defaults(tmp_path):
    assert loaded(tmp_path) == RunFile(workspace=f"{tmp_path}/runs/deit")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.epochs=100", lambda run: run.train.epochs == 100),
        (" train.epochs = 100", lambda run: run.train.epochs == 100),
        ("train.lr=1e-3", lambda run: run.train.lr == 1e-3),
        ("train.lr=1", lambda run: run.train.lr == 1.0),
        ("train.compile=true", lambda run: run.train.compile is True),
        ("views.scale=[0.5, 1]", lambda run: run.views.scale == (0.5, 1.0)),
        ("teacher.model=regnety_160.deit_in1k", lambda run: run.teacher.model == "regnety_160.deit_in1k"),
        ('teacher.model="quoted"', lambda run: run.teacher.model == "quoted"),
        ("workspace=s3://bucket/a=b", lambda run: run.workspace == "s3://bucket/a=b"),
        ("source.train=", lambda run: run.source.train == ""),
        ("student.extra.depth=4", lambda run: run.student.extra == {"depth": 4}),
        ("student.extra={depth = 4}", lambda run: run.student.extra == {"depth": 4}),
    ],
)
def test_set_takes_dotted_keys_with_toml_values_or_bare_words(tmp_path, override, value):
    assert value(loaded(tmp_path, "[train]\nname = 'x'", [override]))


def test_set_overrides_the_file_and_a_later_set_the_earlier(tmp_path):
    run = loaded(tmp_path, "[train]\nepochs = 5\nname = 'kept'", ["train.epochs=6", "train.epochs=7"])
    assert (run.train.epochs, run.train.name) == (7, "kept")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "--set train.epochs: must be key=value, such as --set train.epochs=100"),
        ("=3", "--set =3: must be key=value"),
        ("train..epochs=3", "--set train..epochs=3: must be key=value"),
        ("workspace.x=3", "--set workspace.x=3: workspace is a value, not a table"),
        ("train.epochs=1\nseed=2", r'--set "train.epochs=1\nseed=2": must be one key=value'),
        ("train.epochs=1OO", 'train.epochs = "1OO": must be a whole number'),
        ("epochs=3", "unknown key epochs; allowed here: workspace,"),
    ],
)
def test_a_bad_set_is_refused_in_one_line(tmp_path, override, message):
    assert refusal(tmp_path, "workspace = 'x'", [override]).startswith(message)


def test_every_key_says_what_it_is_for():
    tables = {name: type(value) for name, value in dict(RunFile()).items() if isinstance(value, Table)}
    fields = {f"{table}.{key}": field for table in tables for key, field in tables[table].model_fields.items()}
    assert len(fields) > 50
    assert [key for key, field in fields.items() if not field.description] == []


def test_a_recipes_identity_changes_with_every_field_and_not_with_the_spelling():
    def made(**views):
        return fingerprint(parse_run({"views": views}, "test").views.identity())

    assert made(scale=[0.08, 1]) == made(scale=(0.08, 1.0)) == made()
    changed = {
        "image_size": 32, "repeats": 1, "scale": [0.1, 1], "ratio": [1, 1], "flip_prob": 0, "rand_augment": "",
        "color_jitter": 0, "erasing_prob": 0, "erasing_mode": "const", "erasing_area": [0.1, 0.2],
        "erasing_ratio": [1, 1], "mixup_alpha": 0, "cutmix_alpha": 0, "mix_prob": 0, "switch_prob": 0, "seed": 1,
    }  # fmt: skip
    digests = [made(**{key: value}) for key, value in changed.items()] + [made(auto_augment="v0", rand_augment="")]
    assert {*changed, "auto_augment"} == set(Recipe.model_fields)
    assert len({made(), *digests}) == len(digests) + 1
