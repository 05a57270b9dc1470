import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import milkshake_mbp.theory

FOLDER = Path(milkshake_mbp.theory.__file__).parent
PATHS = sorted(FOLDER.rglob("*.py"))
ALLOWED = {"torch", "numpy", "scipy"}


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(("milkshake_mbp.theory", *(part for part in parts if part != "__init__")))


MODULES = [dotted(path) for path in PATHS]


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names.add(node.module or "")
    return names


def test_there_is_something_to_check() -> None:
    inside = {module.removeprefix("milkshake_mbp.theory.") for module in MODULES}
    assert {"bounds", "margins", "norms", "perturbation", "pruning", "sketching"} <= inside
    folders = {path.parent for path in PATHS} - {FOLDER}
    assert FOLDER / "rows" in folders and {"rows", "rows.peers", "rows.rigorous", "rows.row"} <= inside
    # A folder that is no package would be imported from wherever its name is found first.
    assert all((folder / "__init__.py").exists() for folder in folders)


@pytest.mark.parametrize("path", PATHS, ids=dotted)
def test_theory_imports_only_numbers_and_itself(path: Path) -> None:
    for name in imported_modules(path):
        root = name.split(".")[0]
        itself = name == "milkshake_mbp.theory" or name.startswith("milkshake_mbp.theory.")
        assert itself or root in ALLOWED or root in sys.stdlib_module_names, f"{path} imports {name}"


def test_bounds_load_nothing_heavy() -> None:
    heavy = [
        "pytorch_lightning",
        "lightning",
        "wandb",
        "torchvision",
        "matplotlib",
        "torchmetrics",
        "sklearn",
        "yaml",
    ]
    program = (
        "import sys, torch; before = set(sys.modules); import milkshake_mbp.theory.bounds; "
        f"print(sorted((set(sys.modules) - before) & set({heavy})), sorted(set({heavy[:5]}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[] []"


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_examples_were_found_to_run() -> None:
    finder = doctest.DocTestFinder()
    with_examples = [
        module
        for module in MODULES
        if any(test.examples for test in finder.find(importlib.import_module(module), module))
    ]
    assert {"milkshake_mbp.theory.occam", "milkshake_mbp.theory.norms"} <= set(with_examples)
