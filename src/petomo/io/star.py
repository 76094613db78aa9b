"""STAR files as RELION writes them: named blocks of single values and tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from petomo.core.errors import UserError
from petomo.io.text import read_text

Block = dict[str, list[str]]
"""Column name without its underscore to its values; a single value is a column of one."""


def read_star(path: Path) -> dict[str, Block]:
    """Blocks of a STAR file by name.

    Raises
    ------
    UserError
        If it is missing or is not STAR.
    """
    blocks: dict[str, Block] = {}
    columns: list[str] = []
    loop = False
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = line.split()
        if not words:
            continue
        if words[0].startswith("data_"):
            blocks[words[0].removeprefix("data_")] = {}
            columns, loop = [], False
            continue
        if not blocks:
            raise UserError(f"{path} line {number}: a STAR file starts with a data_ block, but this does not")
        block = next(reversed(blocks.values()))
        if words[0] == "loop_":
            columns, loop = [], True
        elif words[0].startswith("_") and words[0].removeprefix("_") in block:
            raise UserError(
                f"{path} line {number}: this block has {words[0]} twice, but each column once is right"
            )
        elif words[0].startswith("_") and loop and not any(block[name] for name in columns):
            columns.append(words[0].removeprefix("_"))
            block[columns[-1]] = []
        elif words[0].startswith("_") and len(words) == 2:
            block[words[0].removeprefix("_")] = [words[1]]
        elif loop and len(words) == len(columns):
            for name, word in zip(columns, words, strict=True):
                block[name].append(word)
        else:
            raise UserError(
                f"{path} line {number}: this row has {len(words)} values for the {len(columns)} columns"
            )
    return blocks


def find_block(path: Path, blocks: Mapping[str, Block], columns: Sequence[str]) -> Block:
    """The one block that has all these columns.

    Raises
    ------
    UserError
        If there is none, or several.
    """
    fit = [block for block in blocks.values() if all(block.get(name) for name in columns)]
    if len(fit) == 1:
        return fit[0]
    hint = ""
    if any("rlnTomoTiltSeriesStarFile" in block for block in blocks.values()):
        hint = "; this is a list of tilt series, so give the STAR file of one of them"
    raise UserError(
        f"{path}: {len(fit)} blocks have the columns {', '.join(columns)}, but exactly one should{hint}"
    )


def format_star(name: str, columns: Mapping[str, Sequence[str]]) -> str:
    """One table as STAR text."""
    head = [f"_{column} #{number}" for number, column in enumerate(columns, 1)]
    rows = [" ".join(_quoted(value) for value in row) for row in zip(*columns.values(), strict=True)]
    return "\n".join(["", "# version 50001", "", f"data_{name}", "", "loop_", *head, *rows, "", ""])


def _quoted(value: str) -> str:
    return f'"{value}"' if not value or any(c.isspace() or c in "#'" for c in value) else value
