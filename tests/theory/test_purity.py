import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import milkshake_mbp.theory

FOLDER = Path(milkshake_mbp.theory.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
ALLOWED = {"torch", "numpy", "scipy"}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            names.add(node.module or "")
    return names


def test_there_is_something_to_check() -> None:
    assert {"bounds", "margins", "norms", "perturbation", "pruning", "sketching"} <= set(MODULES)


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_theory_imports_only_numbers_and_itself(module: str) -> None:
    for name in imported_modules(FOLDER / f"{module}.py"):
        root = name.split(".")[0]
        itself = name == "milkshake_mbp.theory" or name.startswith("milkshake_mbp.theory.")
        assert itself or root in ALLOWED or root in sys.stdlib_module_names, f"{module} imports {name}"


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
    assert doctest.testmod(importlib.import_module(f"milkshake_mbp.theory.{module}")).failed == 0
