"""The configuration's keys as Markdown tables, written from the models so that they cannot go stale.

``python -m petomo.workflow.reference docs/configuration.md`` renews the page.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from petomo.io.atomic import write_text
from petomo.workflow.config import Config
from petomo.workflow.regularizer_settings import RegularizerSettings

BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"


def _kind(annotation: Any) -> str:
    """A type in a microscopist's words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(item) for item in inner))
    if origin is list:
        return "list" if get_origin(inner[0]) in (Union, Annotated) else f"list of {_kind(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(_kind(item) for item in inner)}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    names = {float: "number", int: "integer", bool: "true or false", str: "text", type(None): "null"}
    return names.get(annotation, "value")


def _row(name: str, field: FieldInfo) -> str:
    default = "required"
    if not field.is_required():
        default = (
            f"`{json.dumps(field.default, default=lambda part: part.model_dump(exclude_defaults=True))}`"
        )
    cells = (f"`{name}`", _kind(field.annotation), default, field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| key | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        yield _row(name, field)
    yield ""


def _groups(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Named groups below a model; schedules, which many keys share, are described once."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__name__ != "Schedule":
            yield f"{prefix}{name}", kind
            yield from _groups(kind, f"{prefix}{name}.")


def markdown() -> str:
    """Tables of every group, then of the schedule and the regularisers."""
    lines = [
        "### Top level",
        "",
        *_table({n: f for n, f in Config.model_fields.items() if n in ("version", "name")}),
    ]
    for name, model in _groups(Config):
        lines += [f"### `{name}`", "", (model.__doc__ or "").strip(), ""]
        nested = {key for key, _ in _groups(model)}
        lines += _table({key: field for key, field in model.model_fields.items() if key not in nested})
    union = get_args(RegularizerSettings)[0]
    for model in get_args(union):
        kind = get_args(model.model_fields["type"].annotation)[0]
        lines += [f"### regularizer `{kind}`", "", (model.__doc__ or "").strip(), ""]
        lines += _table({key: field for key, field in model.model_fields.items() if key != "type"})
    return "\n".join(lines)


def renew(page: str) -> str:
    """The page with its tables replaced by the present ones."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{markdown()}\n{END}", page, flags=re.DOTALL)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, renew(path.read_text(encoding="utf-8")))
