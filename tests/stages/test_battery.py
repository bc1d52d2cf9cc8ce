"""Every stage in the table keeps the contract; a stage without a case breaks collection."""

import pytest

from stages import STAGES
from stages.testing import battery


@pytest.mark.parametrize("check", [check for name in STAGES for check in battery(name)], ids=str)
def test_stage(check, tmp_path):
    check(tmp_path)
