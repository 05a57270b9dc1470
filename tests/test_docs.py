"""The pages say what the code says."""

import json
import re
import runpy
from pathlib import Path

import pytest

from milkshake_mbp.theory.bounds import CONVENTIONS, ROWS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_bounds_page_has_every_row_and_no_other(convention):
    page = (ROOT / "docs" / "bounds.md").read_text(encoding="utf-8")
    section = page.split(f"## `{convention}`")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    described = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert described == {row.name for row in ROWS if row.convention == convention}


def test_every_erratum_that_is_cited_is_on_the_page():
    page = (ROOT / "docs" / "errata.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^### (E\d+)$", page, re.MULTILINE))
    sources = [*(ROOT / "milkshake_mbp").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    cited = {number for path in sources for number in re.findall(r"\bE\d+\b", path.read_text(encoding="utf-8"))}
    assert cited <= known
    assert {f"E{number}" for number in range(1, 22)} <= known


def test_links_between_pages_lead_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]*)(?:#[^)]*)?\)", text):
            assert not target or (path.parent / target).exists(), f"{path.name}: {target}"


def test_functions_named_on_the_bounds_page_exist():
    from importlib import import_module

    page = (ROOT / "docs" / "bounds.md").read_text(encoding="utf-8").split("## Not rows")[1]
    for cell in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE):
        names = re.findall(r"`([\w.]+)`", cell)
        module = import_module(f"milkshake_mbp.theory.{names[0].partition('.')[0]}")
        assert all(hasattr(module, name.rpartition(".")[2]) for name in names)


def test_the_readmes_picture_is_of_today():
    names = runpy.run_path(str(ROOT / "docs" / "images" / "front.py"))
    assert (ROOT / "docs" / "images" / "front.svg").read_text(encoding="utf-8") == names["draw"]()


def test_the_reference_has_every_module():
    pages = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    for folder in ("callbacks", "theory", "reading"):
        for path in (ROOT / "milkshake_mbp" / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            assert path.name == "__init__.py" or module in pages.split(), module
    for module in re.findall(r"^   (milkshake_mbp[\w.]+)$", pages, re.MULTILINE):
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py").exists(), module


def test_notebooks_show_what_they_print():
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert any(cell["outputs"] for cell in cells), f"{path.name}: run it and keep its outputs"
