"""The splat file formats by name: which one a file has, and the reader and writer for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.compressed_ply import (
    compressed_ply_parts,
    read_compressed_ply,
    write_compressed_ply,
)
from radcomp_plugins.splats.formats.glb import MAGIC as GLB_MAGIC
from radcomp_plugins.splats.formats.glb import glb_parts, read_glb, write_glb
from radcomp_plugins.splats.formats.ksplat import ksplat_parts, read_ksplat
from radcomp_plugins.splats.formats.parts import FileParts
from radcomp_plugins.splats.formats.ply import MAX_HEADER_BYTES, ply_parts, read_ply, write_ply
from radcomp_plugins.splats.formats.rcs import MAGIC as RCS_MAGIC
from radcomp_plugins.splats.formats.rcs import rcs_parts, read_rcs, write_rcs
from radcomp_plugins.splats.formats.sog import read_sog, sog_parts, write_sog
from radcomp_plugins.splats.formats.splat import read_splat, splat_parts, write_splat
from radcomp_plugins.splats.formats.spz import GZIP_MAGIC as SPZ_GZIP_MAGIC
from radcomp_plugins.splats.formats.spz import MAGIC as SPZ_MAGIC
from radcomp_plugins.splats.formats.spz import read_spz, spz_parts, write_spz
from radcomp_plugins.splats.gaussians import Gaussians

TRAINER_FRAME = (
    "that of the trainer: y down in Inria's .ply and most files on the web, z up in nerfstudio's; not stated"
)
SPZ_FRAME = "unturned numbers of the .ply; SPZ's page asks for x right, y up, z back, which few writers keep to"
GLTF_FRAME = "x left, y up, z forward; turned by half a turn about z from the .ply's on writing, and back on reading"


@dataclass(frozen=True)
class SplatFormat:
    """One file format.

    Attributes:
        name: Short name, as in `--format`.
        suffixes: File name endings, lower case, the first one is used for new files.
        title: What it is, for messages.
        read: Path to Gaussians.
        write: (path, gaussians, **options) to the bytes of each part; None where files are only read.
        parts: Path of a file that `read` accepts to what its bytes are spent on.
        frame: The axes its numbers stand in, for messages.
        has_magic: Whether a file is told by its first bytes; by its suffix otherwise.
    """

    name: str
    suffixes: tuple[str, ...]
    title: str
    read: Callable[[Path], Gaussians]
    write: Callable[..., dict[str, int]] | None
    parts: Callable[[Path], FileParts]
    frame: str = TRAINER_FRAME
    has_magic: bool = True


FORMATS: dict[str, SplatFormat] = {
    "ply": SplatFormat("ply", (".ply",), "3D Gaussian splatting .ply", read_ply, write_ply, ply_parts),
    "compressed-ply": SplatFormat(
        "compressed-ply",
        (".compressed.ply",),
        "SuperSplat compressed .ply",
        read_compressed_ply,
        write_compressed_ply,
        compressed_ply_parts,
    ),
    "sog": SplatFormat("sog", (".sog",), "PlayCanvas SOG version 2", read_sog, write_sog, sog_parts),
    "rcs": SplatFormat("rcs", (".rcs",), "radcomp's splat container", read_rcs, write_rcs, rcs_parts),
    "spz": SplatFormat("spz", (".spz",), "Niantic SPZ 2 to 4", read_spz, write_spz, spz_parts, SPZ_FRAME),
    "glb": SplatFormat(
        "glb", (".glb",), "glTF with KHR_gaussian_splatting", read_glb, write_glb, glb_parts, GLTF_FRAME
    ),
    "splat": SplatFormat(
        "splat", (".splat",), "antimatter15 .splat", read_splat, write_splat, splat_parts, has_magic=False
    ),
    "ksplat": SplatFormat(
        "ksplat", (".ksplat",), "mkkellogg .ksplat, read only", read_ksplat, None, ksplat_parts, has_magic=False
    ),
}


def read_splats(path: Path | str) -> Gaussians:
    """Reads a splat file of any known format, told by its content, not its name.

    Raises:
        InputError: No such file, a format that is not known, or a file that its reader refuses.
    """
    path = Path(path)
    return FORMATS[splat_format_of(path)].read(path)


def write_splats(path: Path | str, gaussians: Gaussians, **options: Any) -> dict[str, int]:
    """Writes a splat file in the format that the suffix of `path` names.

    Args:
        path: Where to write.
        gaussians: The scene.
        **options: Options of that format's writer, `overwrite` among them.

    Returns:
        Bytes of each part of the file.

    Raises:
        InputError: A suffix that is not known, or what the writer refuses.
    """
    known = format_to_write(path)
    assert known.write is not None
    return known.write(Path(path), gaussians, **options)


def format_to_write(path: Path | str) -> SplatFormat:
    """The format that a new file's name asks for: the one with the longest suffix that it ends in.

    Raises:
        InputError: A suffix that is not known, or of files that are only read.
    """
    path = Path(path)
    known = _by_suffix(path)
    if known is None:
        raise InputError(f"{path}: unknown splat format {path.suffix!r}, expected {_list_formats()}")
    if known.write is None:
        raise InputError(f"{path}: {known.title}, files of this format cannot be written; expected {_list_formats()}")
    return known


def splat_format_of(path: Path | str) -> str:
    """Name of the format that a file or folder has, by its first bytes.

    Raises:
        InputError: No such file, or none of the known formats.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file, expected {_list_formats()}")
    if path.is_dir():
        if (path / "meta.json").is_file():
            return "sog"
        raise InputError(f"{path} is a folder without meta.json, expected a splat file: {_list_formats()}")
    known = _by_suffix(path)
    if known is not None and not known.has_magic:
        return known.name
    try:
        with open(path, "rb") as file:
            magic = file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if magic.startswith(b"ply"):
        return "compressed-ply" if b" packed_position" in magic.split(b"end_header")[0] else "ply"
    if magic.startswith((SPZ_GZIP_MAGIC, SPZ_MAGIC)):
        return "spz"
    if magic.startswith(GLB_MAGIC):
        return "glb"
    if magic.startswith(RCS_MAGIC):
        return "rcs"
    if magic.startswith(b"PK") or magic.lstrip().startswith(b"{"):
        return "sog"
    raise InputError(f"{path}: starts with {magic[:4]!r}, not a splat format known here; expected {_list_formats()}")


def _by_suffix(path: Path) -> SplatFormat | None:
    """The format with the longest suffix that the file's name ends in."""
    ends = [(len(suffix), f) for f in FORMATS.values() for suffix in f.suffixes if path.name.lower().endswith(suffix)]
    return max(ends, key=lambda end: end[0])[1] if ends else None


def _list_formats() -> str:
    return ", ".join(f"{suffix} ({f.title})" for f in FORMATS.values() for suffix in f.suffixes)
