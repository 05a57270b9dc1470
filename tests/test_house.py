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


def test_what_scripts_imported_before_the_folders_were_divided_is_still_there() -> None:
    from milkshake_mbp.experiment.results import write_tensors
    from milkshake_mbp.experiment.settings import Pruning
    from milkshake_mbp.experiment.weights import chain_from_state
    from milkshake_mbp.runs import files, settings, weights

    assert (write_tensors, Pruning, chain_from_state) == (
        files.write_tensors,
        settings.Pruning,
        weights.chain_from_state,
    )
