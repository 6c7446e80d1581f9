"""The house stands: imports point down only, and each heavy library stays on its floors.

`violations` judges one file's source, so that it can be fed broken houses too.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"schemas": 0, "stages": 1, "pipeline": 2, "cli": 3, "tests": 4, "benchmarks": 4}
ROOMS = ("schemas", "stages", "pipeline", "cli")
LIVES_IN = {"ray": ("pipeline",), "torch": ("stages", "pipeline"), "typer": ("cli",)}


def violations(path: str, source: str) -> list[str]:
    """What a file (its path below the root, with /) does against the rules of the house; one line each."""
    room = path.removesuffix(".py").split("/")[0]
    found = [f"{path}: no file is named utils.py"] if path.endswith("utils.py") else []
    for line, module in imports(path, source):
        root = module.split(".")[0]
        if root in FLOORS and FLOORS[root] > FLOORS[room]:
            found.append(f"{path}:{line}: {room} imports {root}, which is above it")
        if root in LIVES_IN and room not in LIVES_IN[root]:
            found.append(f"{path}:{line}: {root} is imported in {' and '.join(LIVES_IN[root])} only")
    return found


def imports(path: str, source: str) -> list[tuple[int, str]]:
    """Line and absolute name of every module imported, at whatever depth of the file."""
    package = path.split("/")[:-1]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            found += [
                (node.lineno, ".".join([*above, *filter(None, [node.module]), alias.name])) for alias in node.names
            ]
    return found


def house() -> dict[str, str]:
    """Path below the root → source, of every Python file of the house."""
    files = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


def test_the_house_breaks_none_of_its_rules():
    files = house()
    assert {f"{room}/__init__.py" for room in ("schemas", "stages", "pipeline")} <= files.keys()
    assert [line for path, source in files.items() for line in violations(path, source)] == []


def test_no_file_of_tests_and_benchmarks_is_named_utils():
    assert [file for room in ("tests", "benchmarks") for file in (ROOT / room).rglob("utils.py")] == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("schemas/a.py", "import stages.shard.writer", "schemas/a.py:1: schemas imports stages, which is above it"),
        ("schemas/a.py", "import os, stages", "schemas/a.py:1: schemas imports stages, which is above it"),
        (
            "stages/a.py",
            "from pipeline.execution import stage_dir as work",
            "stages/a.py:1: stages imports pipeline, which is above it",
        ),
        ("stages/replay/a.py", "from cli import x", "stages/replay/a.py:1: stages imports cli, which is above it"),
        ("stages/replay/a.py", "from ...cli import x", "stages/replay/a.py:1: stages imports cli, which is above it"),
        ("stages/a.py", "from .. import pipeline", "stages/a.py:1: stages imports pipeline, which is above it"),
        ("pipeline/a.py", "\nimport cli", "pipeline/a.py:2: pipeline imports cli, which is above it"),
        ("pipeline/a.py", "import tests.data", "pipeline/a.py:1: pipeline imports tests, which is above it"),
        ("cli.py", "import benchmarks.speed", "cli.py:1: cli imports benchmarks, which is above it"),
        ("stages/a.py", "def f():\n    import ray", "stages/a.py:2: ray is imported in pipeline only"),
        ("stages/a.py", "from ray.train import report", "stages/a.py:1: ray is imported in pipeline only"),
        ("cli.py", "import ray", "cli.py:1: ray is imported in pipeline only"),
        ("schemas/a.py", "from torch import nn", "schemas/a.py:1: torch is imported in stages and pipeline only"),
        ("pipeline/a.py", "import typer", "pipeline/a.py:1: typer is imported in cli only"),
        ("stages/utils.py", "", "stages/utils.py: no file is named utils.py"),
    ],
)
def test_a_planted_violation_is_found(path, source, complaint):
    assert violations(path, source) == [complaint]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli.py", "import typer\nfrom pipeline import run\nfrom schemas.config import RunFile"),
        ("pipeline/a.py", "import ray, torch\nfrom stages.replay import draws\nfrom . import store"),
        ("stages/replay/a.py", "from .draws import Draws\nfrom ..shard import pack\nimport torch, rayon"),
        ("schemas/a.py", "import json\nfrom schemas.errors import PipelineError\nx = 'import torch'"),
    ],
)
def test_what_the_rules_allow_is_not_complained_of(path, source):
    assert violations(path, source) == []
