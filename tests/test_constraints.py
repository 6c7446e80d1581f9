"""constraints.txt names a version of every package that is depended on directly, and these fit together."""

import re
import tomllib

from packaging.requirements import Requirement

from tests.support.world import ROOT


def test_every_direct_dependency_has_an_exact_version_that_it_allows_and_any_index_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (one for extra in project["optional-dependencies"].values() for one in extra)
    wanted = [Requirement(text) for text in (*project["dependencies"], *extras)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    exact = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[0-9.]+", version) for version in exact.values())
    named = {one.name.lower(): one for one in wanted if one.name != "deit-pipeline"}
    assert exact.keys() == named.keys()
    assert [
        name for one in wanted if (name := one.name.lower()) in exact and not one.specifier.contains(exact[name])
    ] == []


def test_libraries_of_which_private_parts_are_used_have_upper_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounded = {Requirement(text).name for text in project["dependencies"] if "<" in text}
    assert {"pyarrow", "ray", "timm", "torch"} <= bounded
