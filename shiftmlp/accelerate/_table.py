"""One table, as aligned text or, on a terminal that has rich, in colour."""

import importlib.util
import sys


def plain_table(title: str, headers: list[str], rows: list[list[str]], notes=()) -> str:
    """Columns that are empty in every row are left out."""
    headers, rows = _drop_empty(headers, rows)
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [title] if title else []
    for row in [headers, *rows] if rows else []:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *notes])


def print_table(title: str, headers: list[str], rows: list[list[str]], notes=()) -> None:
    if not (sys.stdout.isatty() and importlib.util.find_spec("rich")):
        print(plain_table(title, headers, rows, notes))
        return
    from rich.console import Console
    from rich.table import Table

    headers, rows = _drop_empty(headers, rows)
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="bold"
    )
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)


def _drop_empty(headers: list[str], rows: list[list[str]]):
    used = [any(row[index] for row in rows) for index in range(len(headers))]
    keep = [index for index, is_used in enumerate(used) if is_used]
    return [headers[i] for i in keep], [[row[i] for i in keep] for row in rows]
