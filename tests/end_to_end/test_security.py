"""What comes from outside stays data: no pickle is read, no value reaches a shell, no secret is repeated."""

import ast
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from pipeline.commands import run as stages
from pipeline.execution.ray_compat import LOOPBACK
from schemas.errors import UserError
from schemas.receipts import truncate_json
from schemas.secrets import bare_uri, hide_secrets
from stages.storage.store import Store
from tests.support.command_line import complaint, written
from tests.support.listeners import listeners
from tests.support.nodes import below
from tests.support.project import project_sources
from tests.support.sources import files, write_tar
from tests.support.world import ROOT, command, run_file, silent, start, stored


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


def evil_files(mark: Path) -> dict[str, bytes]:
    """Files of the kinds that careless readers unpickle."""
    array, weights = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    torch.save({"w": Evil(mark)}, weights)
    plain = pickle.dumps(Evil(mark))
    return {"pickle": plain, "pkl": plain, "pyd": plain, "npy": array.getvalue(), "pth": weights.getvalue()}


def test_the_files_here_are_evil(tmp_path):
    for suffix, read in (
        ("pkl", pickle.load),
        ("npy", lambda file: np.load(file, allow_pickle=True)),
        ("pth", lambda file: torch.load(file, weights_only=False)),
    ):
        read(io.BytesIO(evil_files(tmp_path / suffix)[suffix]))
        assert (tmp_path / suffix).is_dir()


def test_pickles_in_a_source_do_nothing_from_shards_to_a_model(images, tmp_path):
    members = {}
    for number, (name, data) in enumerate(files(images / "train").items()):
        stem, suffix = name.replace("/", "-").rsplit(".", 1)
        members |= {f"{stem}.{suffix}": data, f"{stem}.cls": name.split("/")[0].encode()}
        if number < 5:
            members |= {f"{stem}.{kind}": evil for kind, evil in evil_files(tmp_path / "mark").items()}
    write_tar(tmp_path / "wds-0000.tar", members)
    source = {"source": {"train": str(tmp_path / "wds-0000.tar"), "val": ""}}
    short = {"train": {"distillation": "none", "max_steps": 2}}
    for settings in ({"shards": {"samples_per_shard": 21}}, {"shards": {"adopt": True}}):
        run = run_file(tmp_path / str(len(str(settings))), images, source, settings, short)
        stages.shard(run, silent)
        stages.train(run, silent)
        assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("suffix", ["pth", "npy", "pickle"])
@pytest.mark.parametrize("key", ["teacher.checkpoint", "student.init_checkpoint"])
def test_a_pickle_in_a_checkpoint_is_refused_and_does_nothing(copied, tmp_path, suffix, key):
    file = tmp_path / f"evil.{suffix}"
    file.write_bytes(evil_files(tmp_path / "mark")[suffix])
    table, name = key.split(".")
    run = copied({table: {name: str(file)}, "train": {"name": "new"}})
    shutil.rmtree(Path(run.workspace, "labels" if table == "teacher" else "runs"))
    with pytest.raises(UserError, match=f"evil.{suffix}"):
        (stages.label if table == "teacher" else stages.train)(run, silent)
    assert not (tmp_path / "mark").exists()


READERS = ("pickle.load", "np.load", "numpy.load", "joblib.load", "pd.read_pickle", "marshal.loads", "dill.loads")
SHELLS = ("os.system", "os.popen", "subprocess.", "eval", "exec", "os.exec", "os.spawn")

PROGRAMS = {
    "stages/trackers/about.py": "subprocess.run(['git', '-c', 'core.fsmonitor=false', *arguments], ",
    "pipeline/commands/estimate.py": "subprocess.run([sys.executable, '-c', 'import pipeline.commands.shard'], ",
}
"""What modules start, without a shell and without a word of a user."""


def calls(source: str) -> list[tuple[str, str]]:
    """Each call's function, as it is written, and the whole call."""
    found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [(ast.unparse(node.func), ast.unparse(node)) for node in found]


def dangers(path: str, source: str) -> list[str]:
    """Calls that unpickle, but for what our own processes hand each other, or start a program not in `PROGRAMS`."""
    found = []
    for name, call in calls(source):
        unpickles = name.startswith(READERS) or (name == "torch.load" and "weights_only=True" not in call)
        if unpickles and (path, name) != ("stages/data/loader.py", "pickle.loads"):
            found.append(f"{path}: {call}")
        if not call.startswith(PROGRAMS.get(path, "-")) and any(
            name == one or (one.endswith((".", "exec", "spawn")) and name.startswith(one)) for one in SHELLS
        ):
            found.append(f"{path}: {call}")
    return found


def test_the_house_calls_nothing_that_unpickles_or_runs_programs():
    assert [danger for path, source in project_sources().items() for danger in dangers(path, source)] == []


@pytest.mark.parametrize(
    "source",
    ["pickle.load(f)", "np.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "os.system(x)",
     "subprocess.run(x, shell=True)", "eval(x)", "subprocess.Popen([x])", "os.execvp(x, [])"],
)  # fmt: skip
def test_a_planted_danger_is_found(source):
    assert dangers("stages/a.py", source) == [f"stages/a.py: {source}"]


def test_values_of_a_run_file_reach_no_shell(images, tmp_path):
    name = "a$(touch mark1)`touch mark2`;touch mark3 #"
    run = run_file(tmp_path / name, images, {"train": {"max_steps": 2, "distillation": "none"}})
    process = start(command("run", config=run, folder=tmp_path))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert (tmp_path / name / "runs/student/model.safetensors").exists()
    assert not [path for root in (tmp_path, ROOT, Path.cwd()) for path in root.glob("mark*")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:se/cr@et@bucket/a?endpoint_override=x&token=t: why", "s3://bucket/a: why"),
        ("'s3://key:secret@bucket/a' and gs://anonymous@b/c.", "'s3://bucket/a' and gs://b/c."),
        ('workspace = "s3://k:s@b/w?x=y"\n', 'workspace = "s3://b/w"\n'),
        ("ray://host:10001 s3://bucket/user@home/x /plain/a@b", "ray://host:10001 s3://bucket/user@home/x /plain/a@b"),
        ("(s3://k:s@b/w?x=y)", "(s3://b/w)"),
        ("s3:/k:s@b/w, folded", "s3:/b/w, folded"),
        ("Cannot parse URI: 's3://k:s[e?c@b/w'", "Cannot parse URI: 's3://b/w'"),
        ("s3://b?endpoint_override=http://u:p@h/z", "s3://b"),
        ("s3://b/w?token=a@c", "s3://b/w"),
    ],
)
def test_secrets_are_cut_out_of_uris(text, shown):
    assert hide_secrets(text) == shown


def test_a_secret_is_hidden_before_a_value_is_cut_short():
    assert "hunter2" not in truncate_json(f"s3://key:{'hunter2' * 20}@bucket/x")
    assert bare_uri("s3://key:hunter2' \"x@bucket/a b") == "s3://bucket/a b"


@pytest.mark.parametrize("odd", '[]?#/@ <>"%')
def test_a_secret_that_is_not_percent_encoded_is_refused_without_it_and_encoded_it_is_taken(refused, odd):
    line = refused(Store, f"s3://key:hunter2{odd}x@bucket/a")
    assert line.startswith("s3://bucket/a: its key or secret holds a character") and "hunter2" not in line
    taken = Store(f"s3://key:hunter2{quote(odd, safe='')}x@bucket/a?region=us-east-1")
    assert (str(taken), taken.display_path("x")) == ("s3://bucket/a", "s3://bucket/a/x")


def test_a_uri_without_a_bucket_is_refused(refused):
    for uri in ("s3://", "s3:///", "s3://key:hunter2@", "s3://?region=x"):
        line = refused(Store, uri)
        assert "names no bucket" in line and "hunter2" not in line


@pytest.mark.parametrize(
    "key",
    ["student.init_checkpoint", "teacher.checkpoint", "evaluate.checkpoint", "source.classes", "cache.folder",
     "cache.decoded_folder"],
)  # fmt: skip
def test_a_uri_where_a_path_on_a_disk_is_meant_is_refused_without_its_secret(tmp_path, key):
    (tmp_path / "deit.toml").write_text("")
    line = complaint(1, "status", "-c", str(tmp_path / "deit.toml"), "--set", f"{key}=s3://KEY:hunter2@bucket/x.pth")
    assert f'{key} = "s3://bucket/x.pth": is a URI' in line and "hunter2" not in line


def test_options_that_name_a_path_refuse_a_uri_without_its_secret(copied, tmp_path):
    config = ("-c", written(copied(), tmp_path))
    uri = "s3://KEY:hunter2@bucket/x.png"
    for arguments in (
        ("export", "--format", "safetensors", "--out", uri, *config),
        ("inspect", "views", "--sample", "0", "--out", uri, *config),
        ("inspect", "labels", "--out", uri, *config),
        ("init", uri),
        ("demo", "--folder", uri),
        ("status", "-c", uri),
    ):
        line = complaint(1, *arguments)
        assert "s3://bucket/x.png: is a URI; name a path" in line and "hunter2" not in line
    assert not Path("s3:").exists()


def test_a_fault_of_ours_shows_no_secret_either(tmp_path):
    program = "import cli, cli_inspect as c; c._say = lambda _: 1 / 0 if _ is None else (lambda l: int('s3://k:hunter2@b'));cli.main()"
    arguments = command("status", config=run_file(tmp_path / "ws", tmp_path), folder=tmp_path)[3:]
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "hunter2" not in done.stderr


def test_a_uri_that_cannot_be_opened_is_named_without_its_secrets(refused):
    assert "hunter2" not in refused(Store, "nonsense://key:hunter2@bucket/x?token=hunter2")
    assert "hunter2" not in refused(Store, "s3://key:hunter2@bucket/x?nonsense=hunter2")


EMBEDDED = """
import json, os, sys
from pathlib import Path
from pipeline.execution.ray_session import ray_session
from schemas.config import ClusterConfig

before = dict(os.environ)
with ray_session(ClusterConfig(address="local")) as ray:
    folder = ray._private.worker.global_worker.node.get_temp_dir_path()
    dashboard = ray._private.worker.global_worker.node.address_info.get("webui_url")
    address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
    print(json.dumps([address, folder, dashboard, token]), file=sys.__stdout__, flush=True)
    sys.stdin.readline()
print(json.dumps([os.environ == before, Path(folder).exists()]), flush=True)
"""


def answers(port: int) -> bool:
    """Whether a port answers a plain request that brings no token."""
    for path in ("", "metrics", "api/version"):
        try:
            with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
                if answer.status == 200:
                    return True
        except (OSError, HTTPException):
            continue
    return False


JOIN = "import ray; ray.init(address={!r}, logging_level='ERROR'); print(ray.cluster_resources())"


def test_an_embedded_ray_answers_nobody_without_its_token_and_leaves_nothing_behind(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    python = dict(text=True, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", EMBEDDED], **python)
    try:
        address, folder, dashboard, token = json.loads(process.stdout.readline())
        assert not dashboard and re.fullmatch("[0-9a-f]{64}", token)
        listening = listeners(below(process.pid) | {process.pid})
        assert len(listening) > 3 and {host for host, _, _ in listening} == {"127.0.0.1"}
        assert [port for _, port, _ in listening if answers(port)] == []
        assert Path(folder).parent.stat().st_mode & 0o777 == 0o700
        daemons = [pid for pid in below(process.pid) if os.getpgid(pid) == os.getpgid(process.pid)]
        assert daemons == []
        joined = [
            subprocess.Popen(
                [sys.executable, "-c", JOIN.format(address)], **(python | {"env": environment | LOOPBACK | secret})
            )
            for secret in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
        ]
        for other in joined:
            out, err = other.communicate(timeout=120)
            assert other.returncode != 0 and "CPU" not in out and token not in err
        logs = [file for file in Path(folder).rglob("*") if file.is_file()]
        assert logs and not [file for file in logs if token.encode() in file.read_bytes()]
        out, _ = process.communicate("\n", timeout=60)
        assert json.loads(out) == [True, False]
        assert not (tmp_path / ".ray").exists()
    finally:
        process.kill()


def test_a_run_file_with_a_secret_in_a_path_is_stored_without_it(copied, tmp_path):
    run = copied({"source": {"train": "s3://key:hunter2@bucket/x?token=hunter2"}, "train": {"name": "new"}})
    stages.train(run, silent)
    data = stored(Path(run.workspace, "runs/new"))
    assert b"s3://bucket/x" in data["run.toml"]
    assert not [name for name, content in data.items() if b"hunter2" in content]
