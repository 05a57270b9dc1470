"""The errata of the paper that a text cites."""

import re
from collections.abc import Iterable
from functools import cache

from milkshake_mbp.commands import folder, installed

__all__ = ["explained"]


def explained(texts: Iterable[str]) -> list[str]:
    """What each erratum is that the texts cite as "(erratum E14)" or "(E14)", and where it is explained."""
    cited = {int(number) for text in texts for number in re.findall(r"\((?:erratum )?E(\d+)\)", text)}
    where = str(folder("docs") / "errata.md") if installed() else "docs/errata.md"
    titles = _titles()
    return [f"E{number}: {titles[number]} ({where})." for number in sorted(cited) if number in titles]


@cache
def _titles() -> dict[int, str]:
    """The errata's headings, by number."""
    page = folder("docs") / "errata.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.findall(r"^### E(\d+)\n+\*\*(.+?)\.?\*\*", text, re.MULTILINE | re.DOTALL)
    return {int(number): " ".join(title.split()) for number, title in found}
