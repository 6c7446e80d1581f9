"""`ray job submit`: the driver lives on the head of a cluster of its own, and continues without the terminal.

Slow, since the cluster and its job server are real.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands import run as stages
from schemas.toml_text import toml_text
from tests.support.nodes import Nodes
from tests.support.stored import left, receipts
from tests.support.world import ROOT, run_file, silent, stored, wait_until

pytestmark = pytest.mark.cluster

pytest.importorskip("opencensus", reason="Ray's job server needs ray[default]; the dev extra brings it")
COMMAND = "import cli; cli.main()"
TINY_SHARDS = {"shards": {"samples_per_shard": 2}, "source": {"val": ""}}


@pytest.fixture(scope="module")
def nodes():
    with Nodes(count=1, takes_jobs=True) as nodes:
        yield nodes


def job(nodes: Nodes, *words: str) -> subprocess.Popen[str]:
    """`ray job WORDS`, typed where the package is not installed."""
    typed = [sys.executable, "-m", "ray.scripts.scripts", "job", words[0], "--address", nodes.jobs, *words[1:]]
    return subprocess.Popen(
        typed,
        env=nodes.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == code, out
    return out


def command(*words: str) -> list[str]:
    """The command line, installed on the head alone."""
    return [
        "--",
        "env",
        f"PYTHONPATH={ROOT}",
        sys.executable,
        "-c",
        "import cli; cli.main()",
        *words,
        "--address",
        "auto",
    ]


def renamed(copy: int) -> Callable[[str, str], None]:
    """Copies a file under a name of its own."""
    return lambda source, target: os.link(source, Path(target).with_name(f"{copy}-{Path(target).name}"))


def drivers(folder: Path) -> list[int]:
    """Ids of the processes that run the command line on a run file of the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if words[:3] == [sys.executable, "-c", COMMAND] and any(str(folder) in word for word in words):
            found.append(int(process.name))
    return found


def test_a_job_whose_driver_was_killed_is_submitted_again_and_makes_what_is_missing(nodes, images, tmp_path):
    for copy in range(2):
        shutil.copytree(images / "train", tmp_path / "images", dirs_exist_ok=True, copy_function=renamed(copy))
    source = {"source": {"train": str(tmp_path / "images")}}
    calm = run_file(tmp_path / "calm", images, TINY_SHARDS, source)
    (tmp_path / "deit.toml").write_text(toml_text(run_file(tmp_path / "ws", images, TINY_SHARDS, source)))
    folder, shard = tmp_path / "ws/shards/train", command("shard", "-c", str(tmp_path / "deit.toml"), "--json")
    first = job(nodes, "submit", *shard)
    wait_until(first, lambda: len(receipts(folder)) >= 5)
    (one,) = drivers(tmp_path)
    os.kill(one, signal.SIGKILL)
    assert "failed with exit code 137" in ended(first, 1)
    done = len(receipts(folder))
    assert 5 <= done < 61 and not (folder / "manifest.json").exists()
    assert f'"parts": 61, "new_parts": {61 - done}' in ended(job(nodes, "submit", *shard))
    stages.shard(calm, silent)
    assert left(folder) == stored(Path(calm.workspace, "shards/train"))


def test_a_workspace_in_the_folder_that_is_sent_with_a_job_is_refused(nodes, images, tmp_path):
    shutil.copytree(images / "train", tmp_path / "train")
    pairs = {"source": {"train": "train"}}
    (tmp_path / "deit.toml").write_text(toml_text(run_file("ws", images, TINY_SHARDS, pairs)))
    out = ended(job(nodes, "submit", "--working-dir", str(tmp_path), *command("shard")), 1)
    assert "deit-pipeline: ws/shards/train: lies in the copy of --working-dir that Ray deletes after the job" in out
