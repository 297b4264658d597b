"""Tables as text: a header and rows of cells, in Markdown or aligned for a terminal; shares as they stand in them."""
from collections.abc import Collection, Sequence

Table = Sequence[Sequence[str]]


def in_markdown(table: Table) -> list[str]:
    """Lines of a table, a rule under the header."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return [lines[0], "|" + " --- |" * len(table[0]), *lines[1:]]


def aligned(table: Table, *, words: Collection[str] = ("verdict",), rule: bool = True) -> list[str]:
    """Lines of a table: the first column and those under `words` to the left, others to the right; a rule if asked."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    left = {i for i, header in enumerate(table[0]) if i == 0 or header in words}
    lines = ["  ".join(cell.ljust(width) if i in left else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in table]
    return [lines[0], *(["-" * max(map(len, lines))] if rule else ()), *lines[1:]]


def percent(value: float | None) -> str:
    """`12.3` of a share; empty when there is none."""
    return "" if value is None else f"{100 * value:.1f}"


def points(difference: float | None, interval: tuple[float, float] | None) -> str:
    """`+1.2 [-0.3 +2.7]` of shares, in points; without an interval `+1.2`; empty when there is neither."""
    if difference is None:
        return ""
    within = "" if interval is None else f" [{100 * interval[0]:+.1f} {100 * interval[1]:+.1f}]"
    return f"{100 * difference:+.1f}{within}"
