"""Written whole or not at all, replaced only when allowed, and checked before it is trusted."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from radcomp_plugins.core import files
from radcomp_plugins.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_atomic_write_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    with files.atomic_write(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" done")
    assert path.read_bytes() == b"half done"
    assert names(path.parent) == ["a.bin"]


def test_atomic_write_leaves_the_old_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), files.atomic_write(path) as file:
        file.write(b"new")
        raise KeyError("stop")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_atomic_write_keeps_the_umask(tmp_path: Path) -> None:
    with files.atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_existing_output_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with (
        pytest.raises(InputError, match=r"a\.bin exists already.*--overwrite"),
        files.atomic_write(path, overwrite=False),
    ):
        pass
    assert path.read_bytes() == b"old"
    files.refuse_overwrite(path, overwrite=True)
    (tmp_path / "empty").mkdir()
    files.refuse_overwrite(tmp_path / "empty")
    with pytest.raises(InputError):
        files.refuse_overwrite(tmp_path)


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(InputError, match="disk is full") as error, files.atomic_write(tmp_path / "a") as file:
        file.write(b"x")
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="disk is full"), files.atomic_dir(tmp_path / "d") as folder:
        (folder / "b").write_bytes(b"x")
        full_disk()
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="disk is full"), files.atomic_dir(tmp_path / "d") as folder:
        (folder / "b").write_bytes(b"x")
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 10_000)
    assert names(tmp_path) == []


def test_other_errors_of_the_filling_code_are_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.atomic_write(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "some other file")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="not written"), files.atomic_write(tmp_path / "file" / "a"):
        pass
    with pytest.raises(InputError, match="is a file"), files.atomic_dir(tmp_path / "file", overwrite=True):
        pass
    with pytest.raises(InputError, match="is a folder"), files.atomic_write(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["atomic_write", "atomic_dir"])
def test_kill_in_the_middle_leaves_nothing_at_the_final_path(tmp_path: Path, kind: str) -> None:
    script = f"""
        import time
        from pathlib import Path
        from radcomp_plugins.core import files
        with files.{kind}(Path({str(tmp_path / "out")!r})) as target:
            if isinstance(target, Path):
                (target / "part").write_bytes(b"half")
            else:
                target.write(b"half")
                target.flush()
            print("writing", flush=True)
            time.sleep(60)
    """
    root = Path(files.__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.") and name.endswith(".partial") for name in names(tmp_path))


def make_asset(folder: Path) -> None:
    with files.atomic_dir(folder) as part:
        (part / "sub").mkdir()
        (part / "sub" / "b.bin").write_bytes(b"bbb")
        (part / "a.bin").write_bytes(b"aa")
        files.write_manifest(part, {"format": "test", "version": 1})


def test_atomic_dir_replaces_only_our_own_folders(tmp_path: Path) -> None:
    folder = tmp_path / "asset"
    make_asset(folder)
    with pytest.raises(InputError, match="exists already"), files.atomic_dir(folder):
        pass
    with pytest.raises(KeyError), files.atomic_dir(folder, overwrite=True):
        raise KeyError("stop")
    assert files.read_manifest(folder)["version"] == 1
    with files.atomic_dir(folder, overwrite=True) as part:
        (part / "c.bin").write_bytes(b"c")
    assert names(folder) == ["c.bin"]
    with pytest.raises(InputError, match="not written by this program"), files.atomic_dir(folder, overwrite=True):
        pass
    assert names(folder) == ["c.bin"]
    assert names(tmp_path) == ["asset"]


def test_manifest_names_every_file_with_size_and_hash(tmp_path: Path) -> None:
    make_asset(tmp_path / "asset")
    manifest = files.read_manifest(tmp_path / "asset")
    assert list(manifest) == ["format", "version", "files"]
    assert list(manifest["files"]) == ["a.bin", "sub/b.bin"]
    # sha256 of "aa", from sha256sum.
    assert manifest["files"]["a.bin"] == {
        "bytes": 2,
        "sha256": "961b6dd3ede3cb8ecbaacbd68de040cd78eb2ed5889130cceb4c49268ea4d506",
    }


def alter(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "no such file"),
    "missing file": (lambda d: (d / "a.bin").unlink(), "is missing"),
    "cut off": (lambda d: (d / "a.bin").write_bytes(b"a"), "has 1 bytes"),
    "altered": (lambda d: (d / "a.bin").write_bytes(b"ab"), "SHA-256"),
    "leads out": (lambda d: alter(d, lambda m: m["files"].update({"../a": {"bytes": 1}})), "leads out"),
    "absolute": (lambda d: alter(d, lambda m: m["files"].update({"/etc/passwd": {"bytes": 1}})), "leads out"),
    "no sizes": (lambda d: alter(d, lambda m: m["files"].update({"a.bin": 3})), 'needs "bytes"'),
    "no files": (lambda d: alter(d, lambda m: m.pop("files")), '"files" must be'),
    "no object": (lambda d: (d / "manifest.json").write_text("[1]"), "expected an object"),
    "no json": (lambda d: (d / "manifest.json").write_text("{"), "not readable as JSON"),
    "not utf-8": (lambda d: (d / "manifest.json").write_bytes(b"\xff{}"), "not readable as JSON"),
    "too deep": (lambda d: (d / "manifest.json").write_text("[" * 200_000), "nested too deeply"),
    "nan": (lambda d: (d / "manifest.json").write_text('{"a": NaN}'), "not finite"),
    "infinite": (lambda d: (d / "manifest.json").write_text('{"a": 1e999}'), "out of range"),
    "huge": (lambda d: (d / "manifest.json").write_bytes(b" " * (files.MAX_JSON_BYTES + 1)), "expected at most"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_assets_are_one_line(tmp_path: Path, case: str) -> None:
    make_asset(tmp_path / "asset")
    damage, expected = BROKEN[case]
    damage(tmp_path / "asset")
    with pytest.raises(InputError, match=expected) as error:
        files.read_manifest(tmp_path / "asset")
    assert "\n" not in str(error.value)


def test_a_link_out_of_the_asset_is_refused(tmp_path: Path) -> None:
    make_asset(tmp_path / "asset")
    (tmp_path / "aa").write_bytes(b"aa")
    (tmp_path / "asset" / "a.bin").unlink()
    (tmp_path / "asset" / "a.bin").symlink_to(tmp_path / "aa")
    with pytest.raises(InputError, match="is missing"):
        files.read_manifest(tmp_path / "asset")


@pytest.mark.parametrize("name", ["", ".", "..", "a/../../b", "/a", "C:a", "a\\b", "a\0b"])
def test_unsafe_names(name: str) -> None:
    with pytest.raises(InputError, match="leads out"):
        files.safe_relative(name, "x.zip")


def test_write_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    files.write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert files.read_json(tmp_path / "a.json") == {"ü": [1, None]}
    assert names(tmp_path) == ["a.json"]
