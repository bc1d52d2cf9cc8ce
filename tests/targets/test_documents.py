import re
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from targets.documents import Frozen, parse, read, show_key, validate
from targets.errors import InputError


class Part(Frozen):
    keep: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="share that stays")
    kind: Literal["l2", "taylor"] = "l2"


class Recipe(Frozen):
    name: str
    epochs: Annotated[int, Field(ge=1, le=100)] = Field(10, description="passes over the data")
    rate: Annotated[float, Field(gt=0)] = 0.1
    quick: bool = False
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    by_name: dict[str, Part] = Field(default_factory=dict)
    weights: dict[str, Annotated[float, Field(ge=0, le=5)]] = Field(default_factory=dict, description="by pattern")
    either: Part | int = 0
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)

    @model_validator(mode="after")
    def _quick_is_short(self):
        if self.quick and self.epochs > 50:
            raise ValueError("a quick run has at most 50 epochs")
        return self


def faults(text, model=Recipe, **options):
    with pytest.raises(InputError) as caught:
        validate(parse(text, "f.yaml"), model, **options)
    return [str(fault) for fault in caught.value.faults]


def syntax(text):
    with pytest.raises(InputError) as caught:
        parse(text, "f.yaml")
    return [str(fault) for fault in caught.value.faults]


def test_a_good_file():
    found = validate(parse("name: a\nparts: [{keep: 0.5}, {}]\nrate: 1e-3\n", "f.yaml"), Recipe)
    assert found == Recipe(name="a", parts=(Part(keep=0.5), Part()), rate=0.001)


def test_out_of_range_shows_the_value_the_range_and_the_line():
    text = "name: a\nparts:\n  - {keep: 0.5}\n  - {keep: 1.3}\n"
    assert faults(text, command="attar stages show prune") == [
        "f.yaml:4: parts[1].keep: 1.3 must be above 0 and at most 1\n"
        "    4 |   - {keep: 1.3}\n"
        "   help: share that stays; see `attar stages show prune`"
    ]


def test_unknown_key_with_a_suggestion():
    assert faults("name: a\nepoch: 3\n", command="attar schema") == [
        "f.yaml:2: epoch: unknown key\n    2 | epoch: 3\n   help: did you mean 'epochs'? See `attar schema`"
    ]


def test_unknown_key_of_a_part_is_compared_with_the_keys_of_that_part():
    assert faults("name: a\npart: {kepe: 1}\nby_name: {x: {kid: 1}}\nparts: [{zzz: 1}]") == [
        "f.yaml:2: part.kepe: unknown key\n    2 | part: {kepe: 1}\n   help: did you mean 'keep'?",
        "f.yaml:3: by_name.x.kid: unknown key\n    3 | by_name: {x: {kid: 1}}\n   help: did you mean 'kind'?",
        "f.yaml:4: parts[0].zzz: unknown key\n    4 | parts: [{zzz: 1}]\n   help: known: keep, kind.",
    ]


def test_missing():
    assert faults("epochs: 3\n") == ["f.yaml: name: is required and missing"]


def test_missing_in_a_part_points_at_the_part():
    class Outer(Frozen):
        inner: tuple[Recipe, ...]

    assert faults("inner:\n  - epochs: 3\n", Outer) == [
        "f.yaml:2: inner[0].name: is required and missing\n    2 |   - epochs: 3"
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("epochs: ten", "epochs: 'ten' must be a whole number"),
        ("epochs: 2.5", "epochs: 2.5 must be a whole number"),
        ("epochs: true", "epochs: true must be a whole number"),
        ('epochs: "3"', "epochs: '3' must be a whole number"),
        ("epochs:", "epochs: null must be a whole number"),
        ("epochs: [1, 2]", "epochs: [1, 2] must be a whole number"),
        ("rate: yes", "rate: 'yes' must be a number"),
        ("rate: .inf", "rate: inf must be a finite number"),
        ("rate: .nan", "rate: nan must be a finite number"),
        ("quick: 1", "quick: 1 must be true or false"),
        ("quick: no", "quick: 'no' must be true or false"),
        ("part: 5", "part: 5 must be a mapping of keys to values"),
        ("part: {kind: l3}", "part.kind: 'l3' must be one of 'l2' or 'taylor'"),
        ("parts: {keep: 1}", 'parts: {"keep": 1} must be a list'),
        ("weights: [a]", 'weights: ["a"] must be a mapping of keys to values'),
        ("weights: {layer*: 7}", "weights.layer*: 7 must be at least 0 and at most 5"),
        ("std: [1, 0]", "std[1]: 0 must be above 0"),
        ("rate: " + "x" * 100, "rate: '" + "x" * 56 + "... must be a number"),
    ],
)
def test_wrong_type_or_value(line, what):
    (found,) = faults(f"name: a\n{line}\n")
    assert found.startswith(f"f.yaml:2: {what}\n    2 | {line.strip()}")


def test_text_is_not_taken_from_numbers():
    (found,) = faults("name: 5\n")
    assert found.startswith("f.yaml:1: name: 5 must be text")


def test_a_rule_over_several_keys():
    assert faults("name: a\nquick: true\nepochs: 60\n") == ["f.yaml: a quick run has at most 50 epochs"]


def test_arms_of_a_union_are_not_shown_as_keys():
    found = faults("name: a\neither: {keep: 3}\n")
    assert found[0].startswith("f.yaml:2: either.keep: 3 must be above 0 and at most 1\n")
    assert found[1].startswith('f.yaml:2: either: {"keep": 3} must be a whole number\n')


def test_five_faults_at_once_in_the_files_order():
    text = """\
epochs: 0
part:
  keep: 2
  kinds: l2
parts:
  - {kind: l1}
"""
    with pytest.raises(InputError) as caught:
        validate(parse(text, "f.yaml"), Recipe)
    assert [(f.line, f.key) for f in caught.value.faults] == [
        (0, "name"),
        (1, "epochs"),
        (3, "part.keep"),
        (4, "part.kinds"),
        (6, "parts[0].kind"),
    ]
    assert str(caught.value).count("f.yaml") == 5
    assert caught.value.exit_code == 2


def test_a_part_of_a_document_is_checked_where_it_stands():
    doc = parse("stages:\n  - prune:\n      keep: 3\n", "f.yaml")
    with pytest.raises(InputError, match=r"^f\.yaml:3: stages\[0\]\.prune\.keep: 3 must be above 0"):
        validate(doc, Part, doc.value["stages"][0]["prune"], ("stages", 0, "prune"))


def test_null_is_a_value_and_not_the_whole_document():
    doc = parse("stages:\n  - prune:\nkeep: 0.5\n", "f.yaml")
    with pytest.raises(InputError, match=r"^f\.yaml:2: stages\[0\]\.prune: null must be a mapping of keys to values"):
        validate(doc, Part, None, ("stages", 0, "prune"))


# ---- what is no document


def test_a_duplicate_key_names_both_lines():
    assert syntax("a: {x: 1}\nb: 2\na: {x: 1}\n") == [
        "f.yaml:1: a: is given twice (also at line 3)\n    1 | a: {x: 1}\n   help: keep one of the two"
    ]


def test_duplicates_in_a_list_item():
    assert syntax("s:\n  - p: 1\n    p: 2\n")[0].startswith("f.yaml:2: s[0].p: is given twice (also at line 3)")


def test_keys_are_text():
    assert syntax("name: a\n1: b\ntrue: c\n") == [
        "f.yaml:2: 1: is no text, as keys must be\n    2 | 1: b\n   help: put the key in quotes",
        "f.yaml:3: true: is no text, as keys must be\n    3 | true: c\n   help: put the key in quotes",
    ]
    assert "is no text" in syntax("{a: b}: c\n")[0]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [echo]", "!!binary aGk=", "!!set {a}", "!mine x"])
def test_tags_that_build_objects_are_refused(tag):
    (found,) = syntax(f"ok: 1\na: {tag}\n")
    assert found.startswith(f"f.yaml:2: a: has the tag {tag.split()[0]}\n")
    assert found.endswith("help: only plain text, numbers, lists and keys are read")


def test_no_yaml_points_at_the_line():
    assert syntax("a: [1, 2\nb: 3\n") == [
        "f.yaml:2: is not YAML: expected ',' or ']', but got ':'\n"
        "    2 | b: 3\n"
        "   help: check indentation, colons and quotes"
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "f.yaml: is empty"),
        ("# only a comment\n", "f.yaml: is empty"),
        ("[1, 2]", "f.yaml: holds a list, where keys are expected"),
        ("just words", "f.yaml: holds text, where keys are expected"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: is not YAML: expected a single document in the stream, but found another"),
        ("a: \x01", "f.yaml: is not YAML: the character 0x1 at position 3 is not allowed"),
        ("a: !!int x", "f.yaml: is not YAML: invalid literal for int"),
        ("a: " + "[" * 1500, "f.yaml: is not YAML: nested too deep"),
        ("a: &x [*x]", "f.yaml: is not YAML: nested more than 50 levels deep, or an alias that holds itself"),
        ("a: *nowhere", "f.yaml:1: is not YAML: found undefined alias 'nowhere'"),
    ],
)
def test_unusable_text(text, what):
    (found,) = syntax(text)
    assert found.startswith(what)


def test_aliases_that_multiply_are_stopped():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (found,) = syntax("\n".join(lines))
    assert found.startswith("f.yaml: is not YAML: more than 100000 values")


def test_anchors_and_merges_work():
    doc = parse("base: &b {keep: 0.5}\nparts:\n  - {<<: *b, kind: taylor}\n", "f.yaml")
    assert doc.value["parts"] == [{"keep": 0.5, "kind": "taylor"}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E4", 50000.0),
        (".5", 0.5),
        ("-1.", -1.0),
        ("12", 12),
        ("-3", -3),
        ("007", "007"),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-02", "2024-01-02"),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = parse(f"a: {text}\n", "f.yaml").value["a"]
    assert found == value
    assert type(found) is type(value)


# ---- reading files


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "digits.yaml").write_text("a: 1")
    with pytest.raises(InputError, match=r"digit\.yaml: no such file\n   help: did you mean 'digits.yaml'\?"):
        read(tmp_path / "digit.yaml")


def test_a_missing_file_where_nothing_is_near(tmp_path):
    with pytest.raises(
        InputError, match="help: give the path of a recipe file; `attar new NAME` writes a recipe to start from"
    ):
        read(tmp_path / "no" / "a.yaml")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"a: \xff\xfe", "is no UTF-8 text: byte 3 is 0xff"), (None, "cannot be read: Is a directory")],
)
def test_an_unreadable_file(tmp_path, content, what):
    path = tmp_path / "a.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: {what}\n   help: give the path of a recipe file")):
        read(path)


def test_a_name_that_no_file_can_have():
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        read("a\0b.yaml")


# ---- --set


def overridden(text, **assignments):
    return parse(text, "f.yaml").override({key.replace("__", "."): value for key, value in assignments.items()})


def test_set_replaces_and_adds_and_leaves_the_original_alone():
    doc = parse("name: a\nparts: [{keep: 0.5}]\n", "f.yaml")
    changed = doc.override({"parts.0.keep": "0.25", "part.kind": "taylor", "weights": "{a: 1}"})
    assert changed.value == {
        "name": "a",
        "parts": [{"keep": 0.25}],
        "part": {"kind": "taylor"},
        "weights": {"a": 1},
    }
    assert doc.value == {"name": "a", "parts": [{"keep": 0.5}]}


def test_set_of_one_alias_leaves_the_other():
    doc = parse("a: &x {n: 1}\nb: *x\n", "f.yaml").override({"a.n": "2"})
    assert doc.value == {"a": {"n": 2}, "b": {"n": 1}}


def test_a_bad_value_given_by_set_is_told_as_such():
    doc = overridden("name: a\npart: {keep: 0.5}\n", part__keep="1.3")
    with pytest.raises(InputError) as caught:
        validate(doc, Recipe)
    assert str(caught.value) == "--set: part.keep: 1.3 must be above 0 and at most 1\n   help: share that stays"


def test_a_bad_value_inside_what_set_gave():
    with pytest.raises(InputError, match=r"^--set: parts\[0\]\.kepe: unknown key\n   help: did you mean 'keep'\?"):
        validate(overridden("name: a\nparts: []\n", parts="[{kepe: 1}]"), Recipe)


def test_faults_beside_an_override_still_point_at_the_file():
    with pytest.raises(InputError, match=r"^f\.yaml:1: epochs: 0 must be"):
        validate(overridden("epochs: 0\nname: a\n", part__keep="0.5"), Recipe)


def test_all_faults_of_set_at_once():
    with pytest.raises(InputError) as caught:
        overridden("name: a\nparts: [{}]\n", parts__1__keep="1", name__x="2", parts__keep="1", rate="[", **{"": "1"})
    help = "\n   help: paths look like stages.0.distill.epochs"
    assert [str(fault) for fault in caught.value.faults] == [
        "--set: parts.1.keep: no place for '1': parts is a list of 1" + help,
        "--set: name.x: no place for 'x': name is 'a'" + help,
        "--set: parts.keep: no place for 'keep': parts is a list of 1" + help,
        "--set: rate: '[' is not YAML: expected the node content, but found '<stream end>'",
        "--set: no place for '': the top is a mapping" + help,
    ]


@pytest.mark.parametrize("raw", ["!!python/name:os.system ''", "!!int x", "\x01", "[" * 1500, "{a: 1, a: 2}"])
def test_set_takes_plain_values_only(raw):
    with pytest.raises(InputError, match=r"^--set: name: .* is not YAML: "):
        overridden("name: a\n", name=raw)


def test_set_to_nothing_is_null():
    assert overridden("name: a\n", name="").value == {"name": None}


# ---- whatever comes


@settings(max_examples=200, deadline=None, database=None)
@given(st.text(alphabet=st.sampled_from("ab:-[]{},#&*!'\"\n 01.~<|>%@?\t\x00é"), max_size=40))
def test_any_text_is_a_fault_or_a_document_with_a_fault(text):
    with pytest.raises(InputError, match=r"^f\.yaml"):  # no such text holds a name
        validate(parse(text, "f.yaml"), Recipe)


def test_show_key():
    assert show_key(("stages", 1, "prune", "keep")) == "stages[1].prune.keep"
    assert show_key((0, "a")) == "[0].a"
    assert show_key(()) == ""
