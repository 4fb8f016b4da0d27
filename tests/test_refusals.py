"""What is refused, and in which words: the table of ``tests/refusals.py``."""

import re

import pytest

from funcprop import LayerError
from tests.refusals import TABLE

pytestmark = pytest.mark.usefixtures("strict")


def named(family, call, message, error=LayerError):
    words = " ".join(re.findall(r"\w+", message)[:5])
    return pytest.param(family, call, message, error, id=f"{family}: {words}")


@pytest.mark.parametrize(("family", "call", "message", "error"), [named(*row) for row in TABLE])
def test_what_is_refused(family, call, message, error):
    """One sentence that helps, never another library's words or a dump of numbers."""
    with pytest.raises(error, match=message) as found:
        call()
    assert len(str(found.value)) < (200 if family == "slips" else 700)
