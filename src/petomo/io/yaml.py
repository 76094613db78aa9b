"""YAML 1.2 documents that remember their line numbers, validated into pydantic models.

Every mistake becomes one sentence: the file, the line, the key, what is wrong,
and what would be right.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from petomo.core.errors import UserError
from petomo.io.yaml_errors import sentences

MAX_LENGTH, MAX_NODES, MAX_DEPTH = 200_000, 10**5, 50
"""Beyond these a file is a mistake, or meant to exhaust the memory."""

MAX_LENGTH, MAX_NODES, MAX_DEPTH = 200_000, 10**5, 50
"""Beyond these a file is a mistake, or meant to exhaust the memory."""

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """Plain values of a YAML file and where each key stands.

    Parameters
    ----------
    source : str
        Name for messages, usually the file's path.
    values : dict
        Plain dictionaries, lists, numbers and strings.
    places : dict
        From a key's location to the text put before a message, as
        ``("data", "root") -> "run.yaml line 3"``.
    """

    source: str
    values: dict[str, Any]
    places: dict[Location, str]

    def place(self, location: Location) -> str:
        """Where the key, or the nearest group around it, stands."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.places:
                return self.places[location[:end]]
        return next(
            (text for at, text in self.places.items() if at[: len(location)] == location), self.source
        )


def _plain(node: Any, budget: list[int] | None = None, depth: int = 0) -> Any:
    """Built-in types in place of ruamel's round-trip ones; repeated aliases are counted every time."""
    budget = [MAX_NODES] if budget is None else budget
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_DEPTH:
        raise ValueError("it unfolds to more groups and values than any configuration needs")
    if isinstance(node, Mapping):
        return {
            _plain(key, budget, depth + 1): _plain(value, budget, depth + 1) for key, value in node.items()
        }
    if isinstance(node, Sequence) and not isinstance(node, (str, bytes)):
        return [_plain(value, budget, depth + 1) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return _scalar(kind(node))
    return None if node is None else _scalar(str(node))


def _scalar(value: bool | int | float | str) -> bool | int | float | str:
    """The value, if it can be calculated with and written to a file again."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a number has too many digits")
    if isinstance(value, str):
        value.encode()
    return value


def _load(text: str) -> tuple[Any, Any]:
    """Nodes of ruamel, which know their lines, and the same as plain values."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"it is longer than the {MAX_LENGTH} characters that any configuration needs")
    steps = (1 if c in "[{" else -1 for c in text if c in "[]{}")
    if max(itertools.accumulate(steps), default=0) > MAX_DEPTH:  # ruamel takes minutes to find this out
        raise ValueError("it is nested too deeply")
    try:
        node = YAML(typ="rt").load(text)
        return node, _plain(node)
    except (YAMLError, ValueError):
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # ruamel fails in many ways on tags, dates and keys that do not fit
        raise ValueError(f"{type(error).__name__}: {str(error).split(chr(10))[0]}") from error


def _places(node: Any, source: str, at: Location = ()) -> dict[Location, str]:
    """Line of every key and list item below ``node``."""
    if not isinstance(node, (CommentedMap, CommentedSeq)):
        return {}
    found: dict[Location, str] = {}
    for key in node if isinstance(node, CommentedMap) else range(len(node)):
        line = (node.lc.data or {}).get(key, (node.lc.line,))[0]
        found[*at, key] = f"{source} line {line + 1}"
        found |= _places(node[key], source, (*at, key))
    return found


def parse_yaml(text: str, source: str) -> Document:
    """Parse YAML text whose top level is a group of keys.

    Raises
    ------
    UserError
        If the text is not YAML or not a group of keys.
    """
    try:
        node, values = _load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source} line {mark.line + 1}" if mark else source
        problem = (error.problem or "cannot be read").split("\n")[0]
        raise UserError(f"{place}: this is not valid YAML: {problem}") from error
    except (YAMLError, ValueError) as error:
        reason = (str(error).splitlines() or ["cannot be read"])[0]
        raise UserError(f"{source}: this is not valid YAML: {reason}") from error
    if node is None:
        raise UserError(f"{source}: the file is empty; `petomo init` writes one to start from")
    if not isinstance(node, Mapping):
        raise UserError(
            f"{source}: the file should hold groups of `key: value`, not a list or a single value"
        )
    return Document(source, values, _places(node, source))


def read_yaml(path: str | Path) -> Document:
    """Read a YAML file; see `parse_yaml`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give the path of a YAML configuration") from None
    except (IsADirectoryError, UnicodeDecodeError):
        raise UserError(f"{path}: this is not a text file; give the path of a YAML configuration") from None
    return parse_yaml(text, str(path))


def _parse_value(text: str, override: str) -> Any:
    try:
        return _load(text)[1]
    except (YAMLError, ValueError) as error:
        if text[0] not in "[{\"'":  # a glob such as *.h5 is an alias to YAML, a text to everybody else
            return text
        raise UserError(f"--set {override}: this is not valid YAML; close its brackets and quotes") from error


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """Set ``a.b.0.c=value`` in a copy of the document, the value read as YAML.

    Raises
    ------
    UserError
        If an override has no ``=``, or its path goes through something that is no group.
    """
    values, places = _plain(document.values), dict(document.places)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"--set {override}: write it as key=value, for example compute.seed=1")
        path: Location = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        target: Any = values
        for part in path[:-1]:
            if isinstance(target, dict):
                if target.get(part) is None:
                    target[part] = {}
                target = target[part]
            elif isinstance(target, list) and isinstance(part, int) and part < len(target):
                target = target[part]
            else:
                raise UserError(
                    f"--set {override}: `{part}` is not inside a group of keys or a list that has it"
                )
        if not isinstance(target, dict) and not (isinstance(target, list) and path[-1] in range(len(target))):
            raise UserError(
                f"--set {override}: `{path[-1]}` is not inside a group of keys or a list that has it"
            )
        target[path[-1]] = _parse_value(text, override)  # pyright: ignore[reportArgumentType, reportCallIssue]
        places = {at: place for at, place in places.items() if at[: len(path)] != path}
        places[path] = f"--set {override}"
    return Document(document.source, values, places)


def validate(document: Document, model: type[Model], other_names: Mapping[str, str] | None = None) -> Model:
    """Validate a document into a pydantic model.

    Parameters
    ----------
    document : Document
        What was read.
    model : type
        A pydantic model whose groups forbid unknown keys.
    other_names : mapping, optional
        Names used elsewhere for our keys, for suggestions.

    Raises
    ------
    UserError
        One sentence per mistake, one per line.
    """
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        raise UserError("\n".join(sentences(error, document, model, other_names or {}))) from None


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML 1.2 text, short lists on one line."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = None, 110
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    stream = io.StringIO()
    yaml.dump(dict(values), stream)
    return stream.getvalue()
