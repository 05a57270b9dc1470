"""Tables for a terminal of any width."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["Fitted"]

# Narrower than that a cell of text is hard to read.
_READABLE = 20
# Columns of the terminal beside each column of the table, and at its edge.
_BESIDE, _EDGE = 3, 1


@dataclass(frozen=True)
class Fitted:
    """A table that breaks no word: where the terminal is too narrow it leaves columns out, and says which.

    Attributes:
        heads: of the columns.
        rows: their cells.
        numbers: heads of the columns that are aligned to the right and never broken.
        whole: heads of other columns whose cells are never broken.
        spare: heads of columns that can be left out, the first to go first.
        title: above the table.
        elsewhere: where the columns that were left out are, for the line that names them.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    numbers: Sequence[str] = ()
    whole: Sequence[str] = ()
    spare: Sequence[str] = ()
    title: str = ""
    elsewhere: str = ""

    @property
    def texts(self) -> list[list[str]]:
        """The cells as text, for a table elsewhere."""
        return [[str(cell) for cell in row] for row in self.rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw what fits."""
        kept, gone = list(range(len(self.heads))), []
        for head in [head for head in self.spare if head in self.heads]:
            if self._room(kept, options.max_width) >= 0:
                break
            kept.remove(self.heads.index(head))
            gone.append(head)
        if self.title:
            yield Text(self.title, style="bold")
        table, room = Table(box=box.SIMPLE_HEAD), max(0, self._room(kept, options.max_width))
        for place in kept:
            least, widest = self._widths(place)
            width = min(widest, least + room)
            room -= width - least
            number = self.heads[place] in self.numbers
            table.add_column(self.heads[place], width=width, overflow="fold", justify="right" if number else "left")
        for cells in self.rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in (cells[p] for p in kept)))
        yield table
        if gone:
            where = f" ({self.elsewhere})" if self.elsewhere else ""
            yield Text(f"Too narrow for {', '.join(gone)}{where}.", style="dim")

    def _room(self, places: Sequence[int], width: int) -> int:
        """What is left of a terminal's width when each column has its least, negative if that is too much."""
        return width - sum(self._widths(place)[0] + _BESIDE for place in places) - _EDGE

    def _widths(self, place: int) -> tuple[int, int]:
        """A column's least width, that of its longest word, or cell if it is whole or short; and its greatest."""
        head, cells = self.heads[place], [str(row[place]) for row in self.rows]
        longest = max(map(cell_len, [*cells, ""]))
        least = longest if head in (*self.numbers, *self.whole) else min(longest, _READABLE)
        words = [cell_len(word) for text in [head, *cells] for word in text.split()]
        return max([least, *words]), max(longest, cell_len(head))
