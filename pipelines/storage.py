"""Files anywhere: a path or URI becomes one of pyarrow's filesystems and a path on it."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs as pafs

from conf.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A path on a filesystem. Pickles."""

    filesystem: pafs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's own filesystem."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def join(self, *parts: str) -> Location:
        """Returns a location below this one."""
        return Location(filesystem=self.filesystem, path=posixpath.join(self.path, *parts))

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        return self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound

    def read_bytes(self) -> bytes:
        """Reads a whole file.

        Raises:
            OSError: when it is not there or cannot be read.
        """
        with self.filesystem.open_input_stream(self.path) as stream:
            return stream.read()

    def list(self, recursive: bool = False) -> list[pafs.FileInfo]:
        """Lists what is below it; nothing where it is not there."""
        selector = pafs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        try:
            return self.filesystem.get_file_info(selector)
        except FileNotFoundError:  # made, or gone, while pyarrow looked
            return []

    def delete(self) -> None:
        """Deletes a file; harmless where it is gone."""
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            return

    def write_bytes(self, data: bytes) -> None:
        """Writes a whole file: it appears under its name only when it is complete, and then it survives a power cut.

        An object store makes an object visible when it is closed; a local disk needs another name first.

        Raises:
            OSError: when it cannot be written, such as on a full disk.
        """
        if not self.is_local:
            self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(data)
            return
        os.makedirs(posixpath.dirname(self.path), exist_ok=True)
        temporary = f"{self.path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A file to read."""

    path: str
    """Its path on the filesystem."""
    name: str
    """Its path below the input it was found under; what row ids are made from."""
    size_bytes: int
    modified_ns: int = 0
    """When it was last written, in nanoseconds since the epoch."""


def locate(uri: str, key: str) -> Location:
    """Finds the filesystem of a path or URI.

    Args:
        uri: a local path, or a URI that pyarrow knows (s3, gs, hdfs, abfs, file).
        key: the configuration key that it came from, for the message.

    Raises:
        UserError: when the URI cannot be understood.
    """
    if "://" not in uri:
        return Location(filesystem=pafs.LocalFileSystem(), path=str(Path(uri).expanduser().absolute()))
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except Exception as error:  # pyarrow raises ArrowInvalid, OSError and what the libraries below raise
        raise UserError(f"{key}={uri}: {' '.join(str(error).split())}") from error
    return Location(filesystem=filesystem, path=path)


def list_files(uri: str, suffixes: tuple[str, ...]) -> tuple[Location, list[InputFile]]:
    """Lists what an input names: a file, a folder (below it, files with one of the suffixes) or a glob.

    Names that begin with ``_`` or ``.`` are left out of folders, as Spark, Hive and Arrow do.

    Returns:
        The location and its files, sorted by path.

    Raises:
        UserError: when there is nothing, or it cannot be read.
    """
    is_glob = _is_glob(uri)
    head = _glob_head(uri) if is_glob else uri
    place = locate(head, "data.input")
    try:
        info = place.filesystem.get_file_info(place.path)
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"data.input={uri}: no such file or folder{_near(place)}")
        if info.type == pafs.FileType.File:
            name = posixpath.basename(place.path)
            return place, [_input_file(info, name)]
        listed = place.filesystem.get_file_info(pafs.FileSelector(place.path, recursive=True))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data.input={uri}: cannot be read: {' '.join(str(error).split())[:400]}") from error
    outputs = [posixpath.dirname(entry.path) for entry in listed if entry.base_name == "_manta"]
    is_output = place.path.rstrip("/") in outputs
    nested = tuple(path + "/" for path in outputs if path != place.path.rstrip("/"))
    pattern = _absolute_pattern(uri, head, place.path) if is_glob else None
    files = []
    for entry in sorted(listed, key=lambda entry: entry.path):
        if entry.type != pafs.FileType.File or (not is_glob and entry.path.startswith(nested)):
            continue
        name = posixpath.relpath(entry.path, place.path)
        if pattern is not None:
            wanted = _matches(entry.path, pattern)
        else:
            hidden = any(part.startswith(("_", ".")) for part in name.split("/"))
            hidden = hidden or (is_output and name.startswith("failed/"))
            wanted = not hidden and name.lower().endswith(suffixes)
        if wanted:
            files.append(_input_file(entry, name))
    if not files:
        what = "matches no file" if is_glob else f"holds no file that ends in {', '.join(suffixes)}"
        raise UserError(f"data.input={uri}: {what}")
    return place, files


def _input_file(info: pafs.FileInfo, name: str) -> InputFile:
    return InputFile(path=info.path, name=name, size_bytes=info.size or 0, modified_ns=info.mtime_ns or 0)


def _is_glob(uri: str) -> bool:
    """Whether it is a pattern: not where a file has that very name, nor for the query of a URI."""
    if "://" in uri:
        return any(sign in uri.split("?")[0] for sign in "*[")
    return any(sign in uri for sign in "*?[") and not Path(uri).expanduser().exists()


def _glob_head(pattern: str) -> str:
    if "://" in pattern:
        pattern, mark, query = pattern.partition("?")
        return _glob_head_of(pattern) + mark + query
    return _glob_head_of(posixpath.normpath(pattern))


def _glob_head_of(pattern: str) -> str:
    parts = pattern.split("/")
    first = next(i for i, part in enumerate(parts) if any(sign in part for sign in "*?["))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")


def _absolute_pattern(uri: str, head: str, path: str) -> str:
    uri = uri.split("?")[0] if "://" in uri else posixpath.normpath(uri)
    tail = uri if head == "." else uri[len(head.split("?")[0] if "://" in uri else head) :]
    return posixpath.join(path, tail.lstrip("/"))


def _matches(path: str, pattern: str) -> bool:
    """Matches part by part, so that ``*`` does not cross a slash and ``**`` does."""

    def match(parts: list[str], wanted: list[str]) -> bool:
        if not wanted:
            return not parts
        if wanted[0] == "**":
            return any(match(parts[i:], wanted[1:]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and match(parts[1:], wanted[1:])

    return match(path.split("/"), pattern.split("/"))


def _near(place: Location) -> str:
    """Names a sibling that looks like what was meant."""
    from conf.errors import nearest

    if not place.is_local:
        return ""
    parent = Path(place.path).parent
    return nearest(Path(place.path).name, os.listdir(parent)) if parent.is_dir() else f" (nor a folder {parent})"
