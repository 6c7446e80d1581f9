"""Imports follow the contracts in pyproject.toml, and a broken contract is found.

`make lint` checks the same. The contracts do not see `cli.py`, which is checked here.
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import PACKAGES, project_sources
from tests.support.world import ROOT

COMMAND_LINE = [file.name for file in ROOT.glob("cli*.py")]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of a checkout."""
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    arguments = ["--config", str(folder / "pyproject.toml"), "--no-cache"]
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project's packages, to break."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*COMMAND_LINE, "pyproject.toml"):
        shutil.copy(ROOT / file, folder)
    return folder


def test_the_contracts_hold(checkout):
    done = lint(checkout)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("schemas/errors.py", "import stages.storage.store", "Imports point down"),
        ("stages/replay/draws.py", "from pipeline.execution import lease", "Imports point down"),
        ("stages/data/split.py", "from stages.label import label_set", "Packages of stages"),
        ("stages/storage/locks.py", "def f():\n    from stages.sources import reader", "Packages of stages"),
        ("stages/helpers.py", "", "Packages of stages"),
        ("pipeline/execution/lease.py", "from pipeline.commands import run", "Commands use execution"),
        ("pipeline/helpers.py", "", "Commands use execution"),
        ("stages/train/optim.py", "from stages.train import trainer", "No cycles between modules"),
        ("pipeline/execution/lease.py", "import cli", "imported by nothing below"),
        ("pipeline/execution/lease.py", "import typer", "imported by nothing below"),
        ("stages/train/optim.py", "def f():\n    import ray", "Ray is used in pipeline only"),
        ("schemas/errors.py", "from torch import nn", "No torch in schemas"),
    ],
)
def test_a_broken_contract_is_found(checkout, file, line, contract):
    path = checkout / file
    kept = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text((kept or "") + f"\n{line}\n", encoding="utf-8")
    try:
        done = lint(checkout)
    finally:
        path.unlink() if kept is None else path.write_text(kept, encoding="utf-8")
    assert done.returncode == 1
    broken = [one for one in done.stdout.splitlines() if one.endswith("BROKEN") or "BROKEN" in one]
    assert any(contract in one for one in broken), done.stdout


def test_the_command_line_imports_schemas_and_commands_only():
    nodes = [node for file in COMMAND_LINE for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))]
    found = [one.module for one in nodes if isinstance(one, ast.ImportFrom)]
    found += [alias.name for one in nodes if isinstance(one, ast.Import) for alias in one.names]
    own = [name for name in found if name.split(".")[0] in (*PACKAGES, "tests", "benchmarks", "ray", "torch")]
    assert own and [name for name in own if not name.startswith(("schemas.", "pipeline.commands."))] == []


def test_packages_hold_a_docstring_only():
    for path, source in project_sources().items():
        if path.endswith("__init__.py"):
            tree = ast.parse(source)
            assert ast.get_docstring(tree) and len(tree.body) == 1, path


def test_no_file_is_named_utils():
    folders = (*PACKAGES, "tests", "benchmarks")
    assert [file for folder in folders for file in (ROOT / folder).rglob("utils.py")] == []
