"""docs/method.md names functions that exist, and each cites the equation it stands beside."""

import pkgutil
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(petomo\.[\w.]+)`", TEXT)))


def equations(text):
    """Numbers in `Eq. 3`, `Eq. 3, 4` and `Eq. 6-10`."""
    found = set()
    for numbers in re.findall(r"Eq\. (\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*)", text):
        for part in numbers.split(", "):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found


def rows():
    """(equations, function) of every table with a column of functions."""
    found, column = [], None
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if "function" in cells:
            column = cells.index("function")
        elif not cells:
            column = None
        elif column is not None and (wanted := equations(cells[0])):
            found += [(wanted, name) for name in re.findall(r"`(petomo\.[\w.]+)`", cells[column])]
    return found


def test_equations_are_read():
    assert equations("Eq. 6-10 and Eq. 3, 4; Eq. 12, 14-15 (Eq. 1)") == {1, 3, 4, 6, 7, 8, 9, 10, 12, 14, 15}
    assert len(rows()) >= 14


@pytest.mark.parametrize("name", NAMES)
def test_what_the_document_names_exists(name):
    assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize(("wanted", "name"), rows(), ids=lambda value: str(value))
def test_functions_cite_their_equations(wanted, name):
    docstring = pkgutil.resolve_name(name).__doc__
    assert equations(docstring) & wanted, f"{name} should cite one of the paper's equations {sorted(wanted)}"


def test_every_equation_is_cited_by_a_function():
    cited = {n for wanted, name in rows() for n in equations(pkgutil.resolve_name(name).__doc__) & wanted}
    assert cited == set(range(1, 20)) - {2}, "all but the formal solution are computed"


def test_every_equation_has_a_row():
    assert equations(TEXT) == set(range(1, 20))
    assert all(f"Algorithm {n}" in TEXT for n in (1, 2, 3))
