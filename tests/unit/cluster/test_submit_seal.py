from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.submit.package import SEALED
from cluster.submit.seal import seal, unseal, wanted
from conf.entry import ROOT
from conf.errors import UserError

TOKEN = "0123456789abcdef0123456789abcdef"


def test_variables_are_read_with_the_token_and_without_it_not():
    sealed = seal({"HF_TOKEN": "hf_secret"}, TOKEN)
    assert b"hf_secret" not in sealed
    assert b"HF_TOKEN" not in sealed
    assert seal({"HF_TOKEN": "hf_secret"}, TOKEN) != sealed
    assert unseal(sealed, TOKEN) == {"HF_TOKEN": "hf_secret"}
    with pytest.raises(UserError, match="another token"):
        unseal(sealed, TOKEN[::-1])


def test_only_what_is_named_travels_and_it_must_be_set():
    environ = {"A": "1", "B": "2"}
    assert wanted(["B"], environ) == {"B": "2"}
    with pytest.raises(UserError, match=r"submit\.env: C is not set"):
        wanted(["A", "C"], environ)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_worker_opens_what_came_with_its_job(tmp_path: Path, is_there: bool):
    if is_there:
        (tmp_path / SEALED).parent.mkdir()
        (tmp_path / SEALED).write_bytes(seal({"HF_TOKEN": "hf_secret"}, TOKEN))
    code = "import os; from cluster.submit.seal import open_env; open_env(); print(os.environ.get('HF_TOKEN'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == ("hf_secret" if is_there else "None"), ran.stderr
