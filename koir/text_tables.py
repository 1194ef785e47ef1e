"""Tables of texts: lined up for a terminal, or in Markdown."""

import unicodedata
from collections.abc import Container, Sequence


def width(text: str) -> int:
    """How many terminal columns a text takes; Hangul takes two a syllable."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table, first column to the left and the rest to the right, that lines up with Korean text in it."""
    columns = [max(map(width, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, ["-" * size for size in columns], *rows]:
        (first, *rest), blanks = row, [" " * (size - width(cell)) for cell, size in zip(row, columns, strict=True)]
        cells = [first + blanks[0], *(blank + cell for blank, cell in zip(blanks[1:], rest, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int] = ()) -> str:
    """A Markdown table. right: positions of the columns that are set to the right, as numbers are."""
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---:" if place in right else "---" for place in range(len(header))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
