"""Tables for a terminal of any width."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["Fitted"]

# Narrower than that a cell of text is hard to read.
_READABLE = 20


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
        spare = [head for head in self.spare if head in self.heads]
        unlimited = options.update(max_width=10_000)
        table, gone = self._table([]), 0
        while gone < len(spare) and Measurement.get(console, unlimited, table).minimum > options.max_width:
            gone += 1
            table = self._table(spare[:gone])
        if self.title:
            yield Text(self.title, style="bold")
        yield table
        if gone:
            where = f" ({self.elsewhere})" if self.elsewhere else ""
            yield Text(f"Too narrow for {', '.join(spare[:gone])}{where}.", style="dim")

    def _table(self, without: Sequence[str]) -> Table:
        table = Table(box=box.SIMPLE_HEAD)
        kept = [place for place, head in enumerate(self.heads) if head not in without]
        for place in kept:
            number = self.heads[place] in self.numbers
            table.add_column(
                self.heads[place],
                justify="right" if number else "left",
                overflow="fold",
                min_width=self._least_width(place),
            )
        for cells in self.rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in (cells[p] for p in kept)))
        return table

    def _least_width(self, place: int) -> int:
        """A column's longest word, or its longest cell if it is whole or not too long to be."""
        head, cells = self.heads[place], [str(row[place]) for row in self.rows]
        longest = max(map(cell_len, [*cells, ""]))
        if head not in (*self.numbers, *self.whole):
            longest = min(longest, _READABLE)
        return max([longest, *(cell_len(word) for text in [head, *cells] for word in text.split())])
