"""Pydantic's complaints turned into sentences a microscopist can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from petomo.io.yaml import Document, Location

_KINDS = {
    "list": "a list",
    "tuple": "a list",
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "string": "a text",
    "dict": "a group of keys",
    "model": "a group of keys",
}


def _expected(error: Any) -> str | None:
    """What the value should have been, as far as the error's type says it."""
    kind, context = error["type"], error.get("ctx", {})
    comparison = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in comparison:
        key, words = comparison[kind]
        return f"{words} {context[key]}"
    if kind == "literal_error":
        return f"one of {context['expected']}".replace(" or ", ", ")
    if kind == "union_tag_invalid":
        return f"a group whose `type` is one of {context['expected_tags']}"
    if kind == "union_tag_not_found":
        return "a group with a `type`"
    if kind == "finite_number":
        return "a finite number"
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        return f"a list of {'at least' if kind == 'too_short' else 'at most'} {bound} items"
    return _KINDS.get(kind.split("_")[0])


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model named in a type, however deep in unions, lists and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _owners(model: type[BaseModel], location: Location) -> list[type[BaseModel]]:
    """Models that may own the last key of a location."""
    owners = [model]
    for part in location[:-1]:
        if isinstance(part, str):
            fields = [owner.model_fields[part] for owner in owners if part in owner.model_fields]
            owners = [found for field in fields for found in _models(field.annotation)]
    return owners


def _suggestion(key: str, location: Location, model: type[BaseModel], other_names: Mapping[str, str]) -> str:
    """``did you mean ...`` for an unknown key."""
    known = sorted({name for owner in _owners(model, location) for name in owner.model_fields})
    if key in known:
        return "it does not go with this `type`"
    if other_names.get(key.lower()) in known:
        return f"did you mean `{other_names[key.lower()]}`?"
    if close := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return f"did you mean `{close[0]}`?"
    name = other_names.get(key.lower(), key)
    for section, field in model.model_fields.items():
        if any(name in owner.model_fields for owner in _models(field.annotation)):
            return f"did you mean `{name}` in `{section}`?"
    return f"known here: {', '.join(known)}" if known else "remove it"


def _in_document(error: Any, values: Any) -> Location:
    """The error's location without the names pydantic adds for union members."""
    location: list[str | int] = []
    here, parts = values, error["loc"]
    for part in parts:
        inside = (isinstance(here, dict) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if inside:
            here = here[part]
            location.append(part)
    if error["type"] == "missing" and isinstance(here, dict):
        location.append(parts[-1])
    return tuple(location)


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _description(model: type[BaseModel], location: Location) -> str:
    for owner in _owners(model, location):
        field = owner.model_fields.get(str(location[-1])) if location else None
        if field is not None and field.description:
            return f" ({field.description})"
    return ""


def sentences(
    error: ValidationError, document: Document, model: type[BaseModel], other_names: Mapping[str, str]
) -> list[str]:
    """One sentence for each key that is wrong.

    Parameters
    ----------
    error : ValidationError
        Raised by ``model.model_validate(document.values)``.
    document : Document
        Gives the file and line of each key.
    model : type
        The pydantic model; its fields' descriptions say what would be right.
    other_names : mapping
        Names used elsewhere for our keys.
    """
    grouped: dict[Location, list[Any]] = {}
    for item in error.errors():
        grouped.setdefault(_in_document(item, document.values), []).append(item)
    order = {location: number for number, location in enumerate(document.places)}
    lines = []
    for location, items in sorted(grouped.items(), key=lambda entry: order.get(entry[0], 0)):
        place, key, first = document.place(location), _dotted(location), items[0]
        if first["type"] == "extra_forbidden":
            hint = _suggestion(str(location[-1]), location, model, other_names)
            lines.append(f"{place}: `{key}` is not a known key; {hint}")
        elif first["type"] == "missing" and not isinstance(first["loc"][-1], int):
            lines.append(f"{place}: `{key}` is missing{_description(model, location)}")
        elif first["type"] in ("value_error", "assertion_error"):
            problem = str(first["ctx"]["error"])
            lines.append(f"{place}: `{key}` {problem}" if key else f"{place}: {problem}")
        else:
            expected = dict.fromkeys(filter(None, map(_expected, items)))
            right = " or ".join(expected) or first["msg"].removeprefix("Input should be ")
            if first["type"] == "missing":
                right = "a longer list"
            wrong = f"`{key}` is {_shown(first['input'])}"
            lines.append(f"{place}: {wrong}, but should be {right}{_description(model, location)}")
    return lines
