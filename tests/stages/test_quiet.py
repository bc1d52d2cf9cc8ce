import logging
import warnings

import pytest

from stages.quiet import quiet


def test_only_what_is_named_is_silent_and_only_inside(caplog):
    chatty, other = logging.getLogger("chatty"), logging.getLogger("other")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet(["chatty"], [r"it is \w+"]):
            chatty.critical("one")
            other.warning("two")
            warnings.warn("it is old", stacklevel=1)
            warnings.warn("it was new", stacklevel=1)
        chatty.warning("three")
        warnings.warn("it is old", stacklevel=1)
    assert [record.message for record in caplog.records] == ["two", "three"]
    assert [str(warning.message) for warning in heard] == ["it was new", "it is old"]


def test_levels_come_back_after_a_failure():
    logger = logging.getLogger("chatty")
    logger.setLevel(logging.INFO)
    with pytest.raises(ZeroDivisionError), quiet(["chatty"]):
        1 / 0  # noqa: B018
    assert logger.level == logging.INFO
