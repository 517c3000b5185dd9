"""Environment variables on their way to a cluster: sealed with its token, which both ends have.

Ray's own way, ``runtime_env={"env_vars": ...}``, writes them into logs of every node and shows them to whoever may list
jobs (seen with Ray 2.60: runtime_env_agent.log, the job's details).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from cluster.submit.package import SEALED
from conf.errors import UserError

HOOK = "cluster.submit.seal.open_env"
"""Ray calls it in each worker of the job before anything else."""
_ROUNDS = 100_000


def wanted(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that travel.

    Raises:
        UserError: for one that is not set.
    """
    missing = [name for name in names if name not in environ]
    if missing:
        raise UserError(f"submit.env: {missing[0]} is not set in this environment")
    return {name: environ[name] for name in names}


def seal(variables: Mapping[str, str], token: str) -> bytes:
    """Returns variables that only who has the token can read."""
    from cryptography.fernet import Fernet

    salt = os.urandom(16)
    return salt + Fernet(_key(token, salt)).encrypt(msgspec.json.encode(dict(variables)))


def unseal(data: bytes, token: str) -> dict[str, str]:
    """Returns the variables again.

    Raises:
        UserError: when the token is another one.
    """
    from cryptography.fernet import Fernet, InvalidToken

    try:
        plain = Fernet(_key(token, data[:16])).decrypt(data[16:])
    except InvalidToken as error:
        raise UserError("submit.env: this node has another token than the one that the job was sent with") from error
    return msgspec.json.decode(plain, type=dict[str, str])


def open_env() -> None:
    """Puts the variables of this process's job into its environment, where it has any."""
    folder = next((part for part in (os.getcwd(), *_path()) if Path(part, SEALED).is_file()), None)
    if folder is not None:
        os.environ.update(unseal(Path(folder, SEALED).read_bytes(), _own_token()))


def _path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def _key(token: str, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

    derived = PBKDF2HMAC(algorithm=SHA256(), length=32, salt=salt, iterations=_ROUNDS).derive(token.encode())
    return base64.urlsafe_b64encode(derived)


def _own_token() -> str:
    """The token with which this node belongs to its cluster, wherever Ray found it."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    headers = get_auth_headers_if_auth_enabled({})
    value = next((text for name, text in headers.items() if name.lower() == "authorization"), "")
    if not value:
        raise UserError("submit.env needs a cluster with token authentication (RAY_AUTH_MODE=token)")
    return value.partition(" ")[2]
