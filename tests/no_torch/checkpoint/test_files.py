"""Only regular files of the model's own directory are opened, and JSON stays within limits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bestiary import BestiaryError, ConfigError, DataError, MissingInputError
from bestiary.core.checkpoint.files import open_file, parse_json, plain_name, read_json

NAMES = ["../x", "/etc/passwd", "a/../../b", "C:\\x", "\\\\host\\x", "", ".", "..", "a/b", "x\n", "n" * 300, None, 3]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_that_leave_the_directory_are_refused(name: object) -> None:
    with pytest.raises(DataError, match="E-CKPT-PATH"):
        plain_name(name, said_by="index")


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "loop", "outside"])
def test_what_is_not_a_regular_file_of_the_directory_is_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "model"
    home.mkdir()
    path = home / "w"
    monkeypatch.chdir(home)
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("w")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to("w")
    else:
        (tmp_path / "secret").write_bytes(b"x")
        path.symlink_to(tmp_path / "secret")
    with pytest.raises(DataError) as error:
        open_file(home, "w")
    assert error.value.subject == "w"


def test_links_within_the_directory_and_into_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "rev"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "123").write_bytes(b"blob")
    (snapshot / "w").symlink_to("../../blobs/123")
    (snapshot / "own").write_bytes(b"own")
    (snapshot / "alias").symlink_to("own")
    with open_file(snapshot, "w") as one, open_file(snapshot, "alias") as other:
        assert (one.read(), other.read()) == (b"blob", b"own")


def test_a_missing_file_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError) as error:
        open_file(tmp_path, "gone")
    assert error.value.exit_status == 66 and str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"{", "is not JSON"),
        (b"{} x", "is not JSON"),
        (b'{"a": NaN}', "number that JSON does not have"),
        (b'{"a": -Infinity}', "number that JSON does not have"),
        (b'{"a": 1e400}', "beyond the range of a double"),
        (b'{"a": 1, "a": 2}', "has a key twice"),
        (b'{"b": {"a": 1, "a": 1}}', "has a key twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'"\xff"', "is not UTF-8"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"9" * 5000, "is not JSON"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_beyond_the_standard_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse_json(data, "f.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"'])
def test_json_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config.json: is not a JSON object"):
        read_json(tmp_path, "config.json", error=ConfigError)


def test_json_over_its_limit_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"[" * 5_000_000)
    with pytest.raises(BestiaryError, match=r"config.json: is too large; found 5000000 bytes"):
        read_json(tmp_path, "config.json")
