"""Inputs: what a path, a folder, a glob or a URI names."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.errors import UserError
from pipelines.storage import Location, list_files, locate

SUFFIXES = (".jsonl", ".csv")


def names(uri: object) -> list[str]:
    return [file.name for file in list_files(str(uri), SUFFIXES)[1]]


def refusal(uri: object) -> str:
    with pytest.raises(UserError) as caught:
        list_files(str(uri), SUFFIXES)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("data.input=")
    return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.csv", "notes.txt", "sub/c.jsonl", "sub/deep/d.jsonl", "_tmp.jsonl", ".hid.jsonl"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    for hidden in ("_delta", ".git"):
        (tmp_path / "tree" / hidden).mkdir()
        (tmp_path / "tree" / hidden / "x.jsonl").write_text("{}\n")
    return tmp_path / "tree"


def test_a_file_is_itself_whatever_its_suffix(tree: Path) -> None:
    place, files = list_files(str(tree / "notes.txt"), SUFFIXES)
    assert [(file.name, file.path, file.size_bytes) for file in files] == [("notes.txt", str(tree / "notes.txt"), 3)]
    assert place.is_local


def test_a_folder_lists_recursively_and_leaves_out_hidden_names_and_other_suffixes(tree: Path) -> None:
    assert names(tree) == ["a.csv", "b.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]


def test_a_hidden_folder_that_is_named_itself_is_read(tree: Path) -> None:
    assert names(tree / "_delta") == ["x.jsonl"]


def test_a_trailing_slash_changes_nothing(tree: Path) -> None:
    assert names(f"{tree}/") == names(tree)


@pytest.mark.parametrize(
    "pattern, wanted",
    [
        ("?.jsonl", ["b.jsonl"]),
        ("[ab].*", ["a.csv", "b.jsonl"]),
        ("sub/*.jsonl", ["c.jsonl"]),
        ("*/*.jsonl", ["sub/c.jsonl"]),
        ("sub/**", ["c.jsonl", "deep/d.jsonl"]),
        ("sub/**/*.jsonl", ["c.jsonl", "deep/d.jsonl"]),
        ("s*/**/d.jsonl", ["sub/deep/d.jsonl"]),
    ],
)
def test_a_star_stays_within_a_folder_and_two_stars_cross_folders(tree: Path, pattern: str, wanted: list[str]) -> None:
    found = [name for name in names(tree / pattern) if not name.startswith((".", "_"))]
    assert found == wanted


@pytest.mark.parametrize("pattern", ["*.csv", "./*.csv", "../tree/*.csv", "./**/a.csv", "sub/../*.csv"])
def test_a_relative_glob_starts_at_the_current_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(tree)
    assert names(pattern) == ["a.csv"]


def test_a_relative_path_is_absolute_once_located(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert locate("b.jsonl", "data.input").path == str(tree / "b.jsonl")


def test_a_tilde_is_the_home_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert names("~/b.jsonl") == ["b.jsonl"]
    assert names("~/*.csv") == ["a.csv"]


def test_a_file_uri_is_the_local_path(tree: Path) -> None:
    assert names(f"file://{tree}/b.jsonl") == ["b.jsonl"]
    assert names(f"file://{tree}") == names(tree)
    assert names(f"file://{tree}/sub/*.jsonl") == ["c.jsonl"]
    assert locate(f"file://{tree}", "data.input").is_local


def test_an_existing_file_wins_over_reading_its_name_as_a_glob(tmp_path: Path) -> None:
    (tmp_path / "data[1].jsonl").write_text("{}\n")
    assert names(tmp_path / "data[1].jsonl") == ["data[1].jsonl"]


def test_suffixes_count_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text("{}\n")
    assert names(tmp_path) == ["A.JSONL"]


def test_a_missing_file_names_its_nearest_sibling(tree: Path) -> None:
    (tree / "tickets.jsonl").write_text("{}\n")
    assert "did you mean 'tickets.jsonl'?" in refusal(tree / "ticket.jsonl")


def test_a_missing_folder_is_named(tree: Path) -> None:
    assert f"nor a folder {tree / 'gone'}" in refusal(tree / "gone" / "a.jsonl")


def test_a_folder_without_input_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "holds no file that ends in .jsonl, .csv" in refusal(tmp_path)


def test_a_glob_without_a_match_is_refused(tree: Path) -> None:
    assert "matches no file" in refusal(tree / "*.parquet")
    assert "no such file or folder" in refusal(tree / "gone" / "*.jsonl")


@pytest.mark.parametrize("uri", ["foo://bucket/a.jsonl", "http://host/a.jsonl", "://", "foo://bucket/*.jsonl"])
def test_a_uri_of_an_unknown_scheme_is_refused(uri: str) -> None:
    refusal(uri)


@pytest.fixture
def s3_that_refuses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 endpoint on this machine that answers every request with 403."""

    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
    }.items():
        monkeypatch.setenv(key, value)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("s3_that_refuses")
@pytest.mark.parametrize("uri", ["s3://bucket/a.jsonl", "s3://bucket/folder/*.jsonl", "s3://bucket"])
def test_an_s3_uri_that_cannot_be_read_is_refused(uri: str) -> None:
    assert uri in refusal(uri)


@pytest.mark.usefixtures("s3_that_refuses")
def test_the_query_of_an_s3_uri_is_options_and_no_glob() -> None:
    # pyarrow knows no such option; read as a glob, the question mark and all after it would be a pattern
    assert "no_such_option" in refusal("s3://bucket/a.jsonl?no_such_option=1").split(": ", 1)[1]


def test_a_location_pickles(tmp_path: Path) -> None:
    place = locate(str(tmp_path), "data.input").join("a", "b")
    assert pickle.loads(pickle.dumps(place)) == place  # noqa: S301
    assert place.path == str(tmp_path / "a" / "b")


def test_writing_makes_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "x" / "y.bin"), "output.path")
    place.write_bytes(b"first and longer")
    place.write_bytes(b"second")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["y.bin"]
    assert (tmp_path / "x" / "y.bin").read_bytes() == b"second"


def test_a_folder_that_comes_to_be_while_it_is_listed_is_no_error() -> None:
    """pyarrow looks for it, finds nothing, looks again to be sure, and raises when it is there by now."""
    answers: list[Any] = [FileNotFoundError("Cannot list directory"), ["a file"]]

    def get_file_info(_: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    place = Location(filesystem=SimpleNamespace(get_file_info=get_file_info), path="log")  # type: ignore[arg-type]
    assert place.list() in ([], ["a file"])
