"""Lists of digests have one form, and no name in them leads elsewhere."""

import pytest

from targets.errors import InputError
from targets.sha256sums import parsed, render

ZERO = "0" * 64


def test_what_is_written_is_read():
    files = {"b": ZERO, "a c": "1" * 64, "warmup/one": ZERO}
    assert render(files, deep=True).decode() == f"{'1' * 64}  a c\n{ZERO}  b\n{ZERO}  warmup/one\n"
    assert parsed(render(files, deep=True), deep=True) == files
    assert parsed(render(files, deep=True)) is None, "a list of one folder's files"
    assert parsed(b"") == {}


def test_contents_are_listed_by_their_digest():
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert render({"a": b"hello", "b": ZERO}).decode() == f"{digest}  a\n{ZERO}  b\n"


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\0b", "a\x1b[2J", "", ".", "..", "a\ud800"])
def test_names_that_the_format_would_escape_are_refused(name):
    for deep, file in ((False, name), (True, name), (True, f"below/{name}"), (True, f"{name}/file")):
        with pytest.raises(InputError, match="cannot be the name of an artifact's file"):
            render({file: ZERO}, deep=deep)


@pytest.mark.parametrize("name", ["/etc/passwd", "a/b"])
def test_a_folder_of_an_artifact_has_no_folders_in_it(name):
    with pytest.raises(InputError, match=f"'{name}' cannot be"):
        render({name: ZERO})


@pytest.mark.parametrize(
    "text",
    [
        f"{ZERO}  a",
        f"{ZERO} *a\n",
        f"{ZERO}  b\n{ZERO}  a\n",
        f"{ZERO}  a\n{ZERO}  a\n",
        f"{ZERO}  a\n\n",
        f"{ZERO}  ../a\n",
        f"{ZERO}  below/../../a\n",
        f"{ZERO}  /a\n",
        f"{ZERO}  a//b\n",
        f"{ZERO[1:]}  a\n",
        "\xff\n",
    ],
)
def test_a_list_is_taken_to_the_letter(text):
    assert parsed(text.encode("latin-1"), deep=True) is None
