"""Files as the whole suite writes and reads them: written whole or not at all, checked before they are trusted.

A file or folder is written under a temporary name beside its final one and renamed when it is complete, so that a full
disk or a kill leaves nothing at the final path. Every asset folder carries a `manifest.json` with the size and the
SHA-256 of each of its files.
"""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from radcomp_plugins.errors import InputError

MANIFEST_NAME = "manifest.json"
MAX_JSON_BYTES = 16 * 2**20
MAX_MANIFEST_FILES = 100_000

_DISK_FAILURES = {
    errno.ENOSPC: "the disk is full: free some space or choose another output folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another output folder",
    errno.EFBIG: "the file is larger than the file system or a limit of the shell allows: choose another output folder",
}
_PLACE_FAILURES = {
    errno.EROFS: "the file system is read-only: choose another output folder",
    errno.EACCES: "no permission to write there: choose another output folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another output folder",
    errno.EEXIST: "a part of the path is a file, not a folder: choose another output folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


def refuse_overwrite(path: Path | str, overwrite: bool = False) -> None:
    """Stops before work is done whose result could not be written.

    Args:
        path: The file or folder about to be written. An empty folder counts as absent.
        overwrite: Whether the user allowed an existing one to be replaced.

    Raises:
        InputError: Something is there already and `overwrite` is False.
    """
    path = Path(path)
    if overwrite or not os.path.lexists(path) or _is_empty_folder(path):
        return
    raise InputError(f"{path} exists already: give another path, or --overwrite to replace it")


@contextmanager
def atomic_write(path: Path | str, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends without an error.

    Args:
        path: Where the file will be; missing folders above it are made.
        overwrite: Whether an existing file may be replaced.

    Yields:
        The file to write to.

    Raises:
        InputError: The disk is full, the place is not writable, or `path` exists and `overwrite` is False.
    """
    path = Path(path)
    refuse_overwrite(path, overwrite)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected the path of a file to write: add a file name")
    temporary = _temporary_name(path)
    with _readable_errors(path, _PLACE_FAILURES):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(temporary, "xb")
    try:
        with _readable_errors(path, _DISK_FAILURES), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _readable_errors(path, _PLACE_FAILURES):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path | str, overwrite: bool = False, *, marker: str = MANIFEST_NAME) -> Iterator[Path]:
    """A folder that appears at `path` only when the block ends without an error.

    Args:
        path: Where the folder will be; missing folders above it are made. An empty folder there is replaced.
        overwrite: Whether an existing folder may be replaced as a whole.
        marker: A file that only our own folders hold: a folder without it is never replaced, so that `--overwrite`
            with a mistyped path cannot delete somebody's files.

    Yields:
        The temporary folder to fill.

    Raises:
        InputError: The disk is full, the place is not writable, or `path` exists and may not be replaced.
    """
    path = Path(os.path.abspath(path))
    refuse_overwrite(path, overwrite)
    replaces = path.is_dir() and not _is_empty_folder(path)
    if replaces and not (path / marker).is_file():
        raise InputError(f"{path} holds no {marker}, so it was not written by this program: it is not replaced")
    if os.path.lexists(path) and not path.is_dir():
        raise InputError(f"{path} is a file, expected a folder: give another path")
    temporary, old = _temporary_name(path), _temporary_name(path)
    with _readable_errors(path, _PLACE_FAILURES):
        temporary.mkdir(parents=True)
    try:
        with _readable_errors(path, _DISK_FAILURES):
            yield temporary
        with _readable_errors(path, _PLACE_FAILURES):
            if replaces:
                os.replace(path, old)
            os.replace(temporary, path)
    finally:
        if replaces and old.is_dir() and not path.exists():
            os.replace(old, path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's content, in lowercase hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(path: Path | str, max_bytes: int) -> bytes:
    """Content of a file of at most `max_bytes` bytes.

    Raises:
        InputError: The file is missing, is no regular file, cannot be read or is larger.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            # Python takes the memory for all that it is asked to read before it reads.
            data = file.read(min(max_bytes, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise InputError(f"{path} has {path.stat().st_size} bytes, expected at most {max_bytes}")
    return data


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`.

    Args:
        data: UTF-8 text from outside.
        where: Name of the file, for the error line.

    Raises:
        InputError: Not UTF-8, not JSON, nested too deeply, not an object, or with a number that is not finite.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite_float)
    except RecursionError as error:
        raise InputError(f"{where}: JSON nested too deeply, expected a flat object") from error
    except ValueError as error:
        raise InputError(f"{where}: not readable as JSON ({error})".replace("\n", " ")) from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: got a JSON {type(value).__name__}, expected an object")
    return value


def read_json(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file; the errors are those of `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, MAX_JSON_BYTES), str(path))


def write_json(path: Path | str, value: Mapping[str, Any], *, overwrite: bool = True) -> None:
    """Writes an object as indented JSON, atomically; keys keep their order and NaN is refused (ValueError)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(text.encode("utf-8"))


def write_manifest(folder: Path | str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `manifest.json` for all the files that lie in `folder` now.

    Args:
        folder: An asset folder that is complete but for its manifest.
        extra: Other entries, which come first: format, version, transform, measured quality.

    Returns:
        The manifest: `extra` and `"files": {relative posix path: {"bytes": int, "sha256": str}}`, sorted by name.
    """
    folder = Path(folder)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in names
        if name != MANIFEST_NAME
    }
    manifest = {**extra, "files": files}
    write_json(folder / MANIFEST_NAME, manifest)
    return manifest


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Reads `manifest.json` and checks every file it names: inside the folder, size and SHA-256 as stated.

    Raises:
        InputError: No manifest, a malformed one, or a file that is missing, elsewhere or altered.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    manifest = read_json(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or len(files) > MAX_MANIFEST_FILES:
        raise InputError(f'{path}: "files" must be an object of at most {MAX_MANIFEST_FILES} files')
    for name, entry in files.items():
        _check_manifest_file(folder, path, name, entry)
    return manifest


def safe_relative(name: str, where: str) -> PurePosixPath:
    """A file name from a manifest or an archive, once it is certain that it stays inside its folder.

    Raises:
        InputError: Empty, absolute, with `..`, a drive letter, a backslash or a NUL.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or any(c in name for c in "\\:\0") or not path.parts:
        raise InputError(f"{where}: file name {name!r} leads out of the folder, expected a plain relative name")
    return path


def _check_manifest_file(folder: Path, manifest: Path, name: str, entry: object) -> None:
    file = folder / safe_relative(name, str(manifest))
    if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
        raise InputError(f'{manifest}: entry {name!r} needs "bytes" and "sha256"')
    if not file.is_file() or not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file} is missing, but {manifest.name} lists it: the folder is not complete")
    if (size := file.stat().st_size) != entry["bytes"]:
        raise InputError(f"{file} has {size} bytes, {manifest.name} says {entry['bytes']}: it was altered or cut off")
    if (got := sha256_file(file)) != entry.get("sha256"):
        raise InputError(f"{file} has SHA-256 {got[:12]}..., not the one in {manifest.name}: it was altered")


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and next(path.iterdir(), None) is None


def _refuse_constant(text: str) -> float:
    raise ValueError(f"number {text} is not finite")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:20]} is out of range")
    return value


@contextmanager
def _readable_errors(path: Path, reasons: Mapping[int, str]) -> Iterator[None]:
    """Turns the failures of the operating system that a user can mend into one line.

    A full disk is told from any place; a missing permission only where this module itself touches the path, for the
    code that fills the file may fail on one of its own.
    """
    try:
        yield
    except OSError as error:
        reason = {**_DISK_FAILURES, **reasons}.get(error.errno or 0)
        if reason is None:
            raise
        raise InputError(f"{path} was not written, {reason}") from error
