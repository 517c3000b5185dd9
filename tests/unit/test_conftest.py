from __future__ import annotations

import sys


def test_the_run_has_one_token():
    # imported under a second name it would draw another, and clusters and their jobs would no longer meet
    assert "tests.conftest" not in sys.modules
