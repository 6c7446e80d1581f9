"""What many tests look at, made once: pictures, and a workspace in which every stage has run undisturbed."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.config import RunFile
from schemas.errors import UserError
from tests.support.world import CLASSES, TEACHER, run_file, silent, write_images

# Before torch is loaded: its threads otherwise spin while they wait, which on a busy machine costs 20 times the work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also the tests marked thorough, and 30 kills for each 1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How many random moments a command is killed at."""
    return 30 if request.config.getoption("--thorough") else 1


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: 61 pictures to train, 20 to evaluate."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", {name: 16 if name == "red" else 15 for name in CLASSES})
    write_images(root / "val", dict.fromkeys(CLASSES, 5), seed=1)
    return root


@pytest.fixture(scope="session")
def many_images(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder large enough for a command to be caught in the middle: 244 pictures to train."""
    root = tmp_path_factory.mktemp("many")
    for copy in range(4):
        for file in (images / "train").rglob("*.*"):
            target = root / "train" / file.parent.name / f"{copy:02d}-{file.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)
    return root


@pytest.fixture(scope="session")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFile:
    """A run file whose every stage has run inline and undisturbed; nobody changes its workspace."""
    from pipeline.commands import run as stages

    workspace = tmp_path_factory.mktemp("whole") / "workspace"
    stages.shard(run_file(workspace, images), silent)
    stages.train(run_file(workspace, images, TEACHER), silent)
    stages.everything(run_file(workspace, images), silent)
    return run_file(workspace, images)


@pytest.fixture
def fresh(images: Path, tmp_path: Path) -> Callable[..., RunFile]:
    """Run files for an empty workspace."""
    return lambda *changes: run_file(tmp_path / "workspace", images, *changes)


@pytest.fixture
def copied(whole: RunFile, images: Path, tmp_path: Path) -> Callable[..., RunFile]:
    """Run files for a copy of the whole workspace, one for each test, which it may do anything to."""
    shutil.copytree(whole.workspace, tmp_path / "workspace")
    return lambda *changes: run_file(tmp_path / "workspace", images, *changes)


@pytest.fixture
def refused() -> Callable[..., str]:
    """Call something that must be refused; the line that says so."""

    def call(do: Callable[..., Any], *arguments: Any, code: int = 1, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            do(*arguments, **options)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == code
        return str(caught.value)

    return call


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Host and port of a real S3 server (moto) on loopback."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server], which the dev extra brings")
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
        server.stop()


@pytest.fixture
def bucket(endpoint: str, request: pytest.FixtureRequest) -> Callable[..., str]:
    """A bucket of its own for each test; URIs of folders in it, through the server or a proxy."""
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
    name = f"b{abs(hash(request.node.nodeid)):x}"
    client.create_bucket(Bucket=name)
    return lambda folder, at=endpoint: f"s3://{name}/{folder}?scheme=http&endpoint_override={at}&region=us-east-1"
