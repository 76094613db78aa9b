"""docs/method.md names functions that exist."""

import pkgutil
import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(petomo\.[\w.]+)`", TEXT)))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_document_names_exists(name):
    assert pkgutil.resolve_name(name) is not None


def test_every_equation_has_a_row():
    named = set()
    for first, last in re.findall(r"Eq\. (\d+)(?:-(\d+))?", TEXT):
        named |= set(range(int(first), int(last or first) + 1))
    for more in re.findall(r"Eq\. \d+((?:, \d+)+)", TEXT):
        named |= {int(n) for n in re.findall(r"\d+", more)}
    assert named == set(range(1, 20))
    assert all(f"Algorithm {n}" in TEXT for n in (1, 2, 3))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([\w./]+)\)", TEXT):
        assert (Path(__file__).parents[1] / "docs" / target).exists(), target
