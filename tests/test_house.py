"""Imports go down only."""

import ast
from pathlib import Path

import pytest

import milkshake_mbp

PACKAGE = Path(milkshake_mbp.__file__).parent
# What each folder may import, beside itself, the package's own files and theory.
BELOW = {
    "theory": set(),
    "codec": set(),
    "reading": set(),
    "framework": set(),
    "callbacks": {"codec", "reading"},
    "runs": {"callbacks", "codec", "framework", "reading"},
}
BELOW["reporting"] = BELOW["runs"] | {"runs"}
BELOW["experiment"] = BELOW["reporting"] | {"reporting"}
BELOW["sweep"] = BELOW["experiment"] | {"experiment"}


def folders_imported(path: Path) -> set[str]:
    """The folders of this package that a file imports from, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = (name.split(".") for name in names if name.startswith("milkshake_mbp."))
    return {part[1] for part in parts if (PACKAGE / part[1]).is_dir()}


def test_every_folder_has_its_place() -> None:
    assert BELOW.keys() == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("folder", BELOW)
def test_imports_go_down_only(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        up = folders_imported(path) - BELOW[folder] - {folder, "theory"}
        assert not up, f"{path} imports {', '.join(sorted(up))}"
