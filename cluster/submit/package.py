"""What is sent with a job: Manta's code, what the user named, the job itself. A zip file, equal for equal content."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.connect import PACKAGES
from cluster.submit.travel import inside
from conf.entry import ROOT
from conf.errors import UserError

ORDER, SEALED = "_manta/order.json", "_manta/env"
"""Files of a package: what is to be done, and environment variables."""
_EPOCH = (2020, 1, 1, 0, 0, 0)
LEVEL = 1
"""Of deflate: 6 takes five times as long for a tenth less."""


def own_code() -> dict[str, Path]:
    """Returns the files of Manta's own packages by their place: in a checkout those that git tracks."""
    # installed below a folder that somebody's repository ignores, nothing of it is tracked
    found = [path for name in PACKAGES for path in _tracked(ROOT / name) or _all(ROOT / name)]
    return {path.relative_to(ROOT).as_posix(): path for path in sorted(found)}


def named_files(named: Iterable[Path], here: Path, key: str = "submit.files") -> dict[str, Path]:
    """Returns the files that the user named, and those below folders, by their place in the package.

    Args:
        named: absolute paths.
        here: the current folder, absolute.
        key: who names them, for the message.

    Raises:
        UserError: for one that is not there, or a folder of which nothing travels.
    """
    found: dict[str, Path] = {}
    for path in named:
        if not path.exists():
            raise UserError(f"{key}: {path}: no such file or folder")
        files = _listed(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{key}: {path}: git tracks nothing in it, and it holds nothing else that travels")
        found |= {inside(file, here): file for file in sorted(files)}
    return found


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """Returns a hash of each file's content by its place."""
    found = {}
    for place, path in files.items():
        with path.open("rb") as stream:
            found[place] = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return found


def check_size(files: Mapping[str, Path], max_bytes: int) -> int:
    """Returns the bytes that travel.

    Raises:
        UserError: when they are too many; names the longest file.
    """
    sizes = {place: path.stat().st_size for place, path in files.items()}
    total = sum(sizes.values())
    if total > max_bytes:
        longest = max(sizes, key=lambda place: sizes[place])
        raise UserError(
            f"submit.max_bytes={max_bytes}: {total:,} bytes would travel ({files[longest]} alone has"
            f" {sizes[longest]:,}): put data where the nodes can see it"
        )
    return total


def write_package(target: Path, files: Mapping[str, Path], texts: Mapping[str, bytes]) -> None:
    """Writes a zip file.

    Args:
        target: the file.
        files: of this machine, by their place.
        texts: further content, by its place.
    """
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as package:
        for place, path in sorted(files.items()):
            _add(package, place, path.read_bytes())
        for place, content in sorted(texts.items()):
            _add(package, place, content)


def _add(package: zipfile.ZipFile, place: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(place, _EPOCH)
    entry.external_attr = 0o644 << 16
    package.writestr(entry, content, zipfile.ZIP_DEFLATED, LEVEL)


def _listed(folder: Path) -> list[Path]:
    tracked = _tracked(folder)
    return _all(folder) if tracked is None else tracked


def _tracked(folder: Path) -> list[Path] | None:
    """Files below a folder that git tracks; null where that is no repository."""
    try:
        asked = subprocess.run(["git", "-C", str(folder), "ls-files", "-z"], capture_output=True, check=False)
    except FileNotFoundError:  # a machine without git
        return None
    if asked.returncode:
        return None
    names = [name.decode(errors="surrogateescape") for name in asked.stdout.split(b"\0") if name]
    return [path for path in (folder / name for name in names) if path.is_file()]


def _all(folder: Path) -> list[Path]:
    """Files below a folder, but for Python's caches."""
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
