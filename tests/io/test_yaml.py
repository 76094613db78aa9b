from typing import Annotated, Literal

import pytest
from pydantic import Field

from petomo.core.errors import UserError
from petomo.io.settings import Section
from petomo.io.yaml import apply_overrides, dump_yaml, parse_yaml, read_yaml, validate


class Leaf(Section):
    step_size: float = Field(default=1.0, gt=0, description="relative step")
    start: int = 0


class Square(Section):
    type: Literal["square"]
    side: float


class Circle(Section):
    type: Literal["circle"]
    radius: float


class Root(Section):
    name: str = ""
    leaf: Leaf = Leaf(step_size=0.5, start=3)
    sizes: list[int] = Field(default=[], description="pixels")
    pair: tuple[float, float] = (0.0, 0.0)
    mode: Literal["fast", "slow"] = "fast"
    shapes: list[Annotated[Square | Circle, Field(discriminator="type")]] = Field(default=[])


def load(text, *overrides, names=None):
    return validate(apply_overrides(parse_yaml(text, "f.yaml"), overrides), Root, names)


def complaint(text, *overrides, names=None):
    with pytest.raises(UserError) as error:
        load(text, *overrides, names=names)
    return str(error.value)


def test_numbers_follow_yaml_1_2():
    values = parse_yaml("a: 1e-3\nb: on\nc: 012\nd: 0x10\ne: ~\nf: [1, 2.5]\n", "f").values
    assert values == {"a": 1e-3, "b": "on", "c": 12, "d": 16, "e": None, "f": [1, 2.5]}
    assert type(values["a"]) is float
    assert type(values["f"]) is list


def test_partial_group_keeps_the_other_defaults_of_its_place():
    assert load("leaf: {start: 9}").leaf == Leaf(step_size=0.5, start=9)
    assert load("name: x\nleaf:\n").leaf == Leaf(step_size=0.5, start=3)


def test_message_names_file_line_key_and_remedy():
    assert complaint("name: a\nleaf:\n  step_size: -1\n") == (
        "f.yaml line 3: `leaf.step_size` is -1, but should be greater than 0.0 (relative step)"
    )
    assert complaint("sizes: 3") == "f.yaml line 1: `sizes` is 3, but should be a list (pixels)"
    assert complaint("sizes:\n- 1\n- x") == "f.yaml line 3: `sizes.1` is 'x', but should be a whole number"
    assert complaint("mode: quick") == "f.yaml line 1: `mode` is 'quick', but should be one of 'fast', 'slow'"
    assert complaint("leaf: 4") == "f.yaml line 1: `leaf` is 4, but should be a group of keys"
    assert "`pair` is [1], but should be a longer list" in complaint("pair: [1]")
    assert "a list of at most 2 items" in complaint("pair: [1, 2, 3]")


def test_every_mistake_has_its_own_sentence_in_file_order():
    lines = complaint("mode: x\nsizes: 1\nleaf:\n  begin: 2\n").splitlines()
    assert [line.split(":")[0] for line in lines] == ["f.yaml line 1", "f.yaml line 2", "f.yaml line 4"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("leaf: {lr: 1}", "did you mean `step_size`?"),
        ("leaf: {stepsize: 1}", "did you mean `step_size`?"),
        ("step_size: 1", "did you mean `step_size` in `leaf`?"),
        ("leaf: {zzz: 1}", "known here: start, step_size"),
        ("shapes: [{type: square, side: 1, radius: 2}]", "it does not go with this `type`"),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(text, hint):
    message = complaint(text, names={"lr": "step_size"})
    assert "is not a known key" in message
    assert hint in message


def test_unions_are_told_by_type():
    assert "`shapes.0` is {'type': 'oval'}, but should be a group whose `type` is one of" in complaint(
        "shapes: [{type: oval}]"
    )
    assert complaint("shapes:\n- type: circle\n") == "f.yaml line 2: `shapes.0.radius` is missing"


def test_overrides_reach_into_groups_and_lists():
    root = load(
        "sizes: [1, 2]\nshapes: [{type: circle, radius: 1}]",
        "sizes.1=7",
        "leaf.start=4",
        "shapes.0.radius=2e0",
    )
    assert root.sizes == [1, 7]
    assert root.leaf.start == 4
    assert root.shapes[0].radius == 2.0
    assert load("name: x", "sizes=[4, 5]").sizes == [4, 5]
    assert load("name: x", "name=*.h5").name == "*.h5", "a glob is no alias"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("leaf", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("name.x=3", "not inside a group"),
        ("sizes.4=1", "not inside a group"),
        ("sizes=[1", "not valid YAML"),
        ("leaf.start=soon", "--set leaf.start=soon: `leaf.start` is 'soon', but should be a whole number"),
    ],
)
def test_bad_overrides_are_sentences(override, words):
    assert words in complaint("name: x\nsizes: [1]", override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2", "f.yaml line 2: this is not valid YAML"),
        ("a: 1\na: 2", "f.yaml line 2: this is not valid YAML: found duplicate key"),
        ("- 1", "should hold groups of"),
        ("", "the file is empty"),
        ("a: *b", "line 1: this is not valid YAML"),
    ],
)
def test_broken_yaml_is_a_sentence(text, words):
    assert words in complaint(text)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_yaml(tmp_path / "no.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(UserError, match="not a text file"):
        read_yaml(tmp_path)


def test_dump_comes_back():
    values = {"b": 1, "a": {"x": [1.5, None, True], "y": "1e3", "z": "on"}, "c": []}
    text = dump_yaml(values)
    assert parse_yaml(text, "f").values == values
    assert text.index("b:") < text.index("a:")
