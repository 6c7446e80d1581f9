"""The project's own source files."""

from tests.support.world import ROOT

PACKAGES = ("schemas", "stages", "pipeline")


def project_sources() -> dict[str, str]:
    """Path below the root → source, of every Python file of the project."""
    files = [*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}
