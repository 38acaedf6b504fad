"""The profile of a table on the terminal."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Group
from rich.table import Table
from rich.text import Text

from batchnorm.study.data import Dataset
from batchnorm.study.tables.profile import Profile, column_notes, kind_in_words
from batchnorm.study.tables.recipe import Column

MOST_ROWS = 40  # of the table: beyond it, columns in a row that are alike share a line


def profile_text(profile: Profile | Dataset) -> Group:
    """Return what each column is read as and what is done to it, then the warnings, then the problems."""
    columns = profile.columns if isinstance(profile, Profile) else profile.profile
    lines = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("column", "read as", "missing", "what is done"):
        lines.add_column(heading, justify="right" if heading == "missing" else "left", overflow="fold")
    for names, column in _rows(columns):
        lines.add_row(Text(names), kind_in_words(column), str(column.gaps or ""), Text(column.note))
    if isinstance(profile, Profile):
        warnings, problems = profile.warnings, profile.problems
    else:
        own = set(column_notes(columns))
        warnings, problems = [note for note in profile.notes if note not in own], ()
    marked = [Text(f"! {warning}") for warning in warnings] + [Text(f"✗ {problem}", "red") for problem in problems]
    return Group(lines, *([Text()] if marked else []), *marked)


def _rows(columns: Sequence[Column]) -> list[tuple[str, Column]]:
    """Return a row a column; of many columns, those in a row to which the same is done share one."""
    if len(columns) <= MOST_ROWS:
        return [(column.name, column) for column in columns]
    rows: list[tuple[str, Column]] = []
    for _, run in groupby(columns, key=lambda column: (column.kind, column.note, len(column.categories))):
        alike = list(run)
        many = f"{alike[0].name} … {alike[-1].name} ({len(alike)} columns)"
        rows.append((many if len(alike) > 1 else alike[0].name, alike[0]))
    return rows
