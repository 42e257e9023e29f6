"""The `.ksplat` files of mkkellogg's viewer, read only: sections of Gaussians, at three levels of compression.

A header of 4096 bytes, 1024 for each section, then each section's data: sizes of the buckets that are not full, centres
of all buckets, and the Gaussians. At level 0 all is float32. At 1 and 2 positions are 16-bit steps about the centre of
their bucket, scales and rotations half floats; SH are half floats at level 1, bytes of the header's range at level 2.
Scales are linear, rotations w x y z, colour and opacity bytes; SH lie band by band, in each channel by channel.

Format: github.com/mkkellogg/GaussianSplats3D, KSPLAT.md and SplatBuffer. The frame is that of the .ply files.
"""

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from radcomp_plugins.core.files import read_bytes
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.formats.ply import INFINITE_LOGIT
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians, num_sh_rest

HEADER_BYTES = 4096
SECTION_BYTES = 1024
MAX_FILE_BYTES = 2**35
OPACITY_MARGIN = 1e-6
"""Opacity bytes 0 and 255 become logits of +-13.8 rather than infinite ones, as in SOG."""

_NUMBER = ("<f4", "<f2", "<f2")
_SH = ("<f4", "<f2", "u1")
_DEFAULT_SH_RANGE = (-1.5, 1.5)
_DEFAULT_STEPS = (1, 32767, 32767)


@dataclass(frozen=True)
class _Section:
    """What the header of a section says; `room` Gaussians are stored, of which the first `count` are used."""

    count: int
    room: int
    bucket_capacity: int
    buckets: int
    block_size: float
    bucket_bytes: int
    steps: int
    full: int
    partial: int
    degree: int

    def dtype(self, level: int) -> np.dtype:
        """One Gaussian; without SH where the degree is 0."""
        position = "<f4" if level == 0 else "<u2"
        fields = [("mean", position, 3), ("scale", _NUMBER[level], 3), ("quat", _NUMBER[level], 4), ("color", "u1", 4)]
        return np.dtype([*fields, ("sh", _SH[level], 3 * num_sh_rest(self.degree))])


def read_ksplat(path: Path | str) -> Gaussians:
    """Reads a `.ksplat`.

    Args:
        path: The file.

    Returns:
        The Gaussians on the CPU, float32, with the highest SH degree of any section; lower ones are padded with zeros.
        Gaussians that are not finite are left out with a warning.

    Raises:
        InputError: Not such a file, another version, cut off, or counts that do not fit each other or its size.
    """
    path = Path(path)
    return gaussians_of_ksplat(read_bytes(path, MAX_FILE_BYTES), str(path))


def gaussians_of_ksplat(data: bytes, where: str) -> Gaussians:
    """The scene in the bytes of a `.ksplat`; see `read_ksplat`."""
    count, level, sh_range, sections = _sections(data, where)
    parts = []
    for start, section in sections:
        used, _ = _section_size(section, level)
        if section.count:
            parts.append(_read_section(data, start, used, section, level, sh_range, where))
    total = sum(len(part) for part in parts)
    if total == 0 or total != count:
        raise InputError(f"{where}: {total} Gaussians in its sections, {count} in its header, expected one or more")
    degree = max(part.sh_degree for part in parts)
    parts = [part.with_sh_degree(degree) for part in parts]
    tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
    scene = Gaussians(**tensors, antialiased=False)
    keep = scene.finite()
    if not bool(keep.any()):
        raise InputError(f"{where}: all {total} Gaussians hold NaN or infinity, expected finite numbers")
    if not bool(keep.all()):
        warnings.warn(f"{where}: left out {int((~keep).sum())} of {total} Gaussians that are not finite", stacklevel=3)
    return scene.select(keep)


def ksplat_parts(path: Path | str) -> FileParts:
    """Bytes of each attribute in a file that `read_ksplat` reads; rows that are stored but not used are `unused`."""
    data = read_bytes(Path(path), MAX_FILE_BYTES)
    count, level, _, sections = _sections(data, str(path))
    parts = [Part("header", "header", HEADER_BYTES + SECTION_BYTES * len(sections))]
    for number, (_, section) in enumerate(sections):
        before, _ = _section_size(section, level)
        dtype = section.dtype(level)
        sizes = {name: dtype[name].itemsize * section.count for name in dtype.names or ()}
        parts += [
            Part("means", f"section {number}: buckets", before),
            Part("means", f"section {number}: positions", sizes["mean"]),
            Part("scales", f"section {number}: scales", sizes["scale"]),
            Part("quats", f"section {number}: rotations", sizes["quat"]),
            Part("sh0", f"section {number}: colours", 3 * section.count),
            Part("opacities", f"section {number}: opacities", section.count),
            Part("shN", f"section {number}: SH", sizes["sh"]),
            Part("other", f"section {number}: unused", dtype.itemsize * (section.room - section.count)),
        ]
    return file_parts(count, f"level {level}", parts, len(data))


def _sections(data: bytes, where: str) -> tuple[int, int, tuple[float, float], list[tuple[int, _Section]]]:
    """Gaussians, compression level, range of the SH, and each section with the offset of its data."""
    if len(data) < HEADER_BYTES:
        raise InputError(f"{where}: {len(data)} bytes, expected a .ksplat header of {HEADER_BYTES}: it is cut off")
    major, minor, sections = struct.unpack_from("<BBxxI", data)
    count, level = struct.unpack_from("<IH", data, 16)
    low, high = (a or b for a, b in zip(struct.unpack_from("<ff", data, 36), _DEFAULT_SH_RANGE, strict=True))
    if major != 0 or minor < 1 or level > 2:
        raise InputError(f"{where}: .ksplat version {major}.{minor}, level {level}, expected 0.1 and 0 to 2")
    start = HEADER_BYTES + SECTION_BYTES * sections
    if start > len(data) or not abs(low) + abs(high) < 1e4:
        raise InputError(f"{where}: {sections} sections in {len(data)} bytes, SH {low} to {high}: cut off or damaged")
    found = []
    for i in range(sections):
        section = _section(data, HEADER_BYTES + SECTION_BYTES * i, level, where)
        _, size = _section_size(section, level)
        if size > len(data) - start:
            raise InputError(f"{where}: section {i} of {size} bytes, {len(data) - start} are left: it is cut off")
        found.append((start, section))
        start += size
    return count, level, (low, high), found


def _section(data: bytes, at: int, level: int, where: str) -> _Section:
    """A section's header, its numbers judged."""
    count, room, capacity, buckets, block, bucket_bytes = struct.unpack_from("<IIIIfH", data, at)
    steps, _, full, partial, degree = struct.unpack_from("<IIIIH", data, at + 24)
    section = _Section(
        count, room, capacity, buckets, block, bucket_bytes, steps or _DEFAULT_STEPS[level], full, partial, degree
    )
    if count > room or degree > 3 or not 0 <= block < 1e9 or full + partial > buckets:
        raise InputError(
            f"{where}: a section of {count} in room for {room}, SH degree {degree}, blocks of {block}, {full} full and "
            f"{partial} other buckets of {buckets}: damaged"
        )
    if level and count and (bucket_bytes < 12 or (full and not capacity)):
        raise InputError(f"{where}: buckets of {bucket_bytes} bytes for {capacity} Gaussians, expected 12 bytes")
    return section


def _section_size(section: _Section, level: int) -> tuple[int, int]:
    """Bytes before the Gaussians of a section, and in all."""
    before = 4 * section.partial + section.bucket_bytes * section.buckets
    return before, before + section.room * section.dtype(level).itemsize


def _read_section(
    data: bytes, start: int, before: int, section: _Section, level: int, sh_range: tuple[float, float], where: str
) -> Gaussians:
    rows = np.frombuffer(data, section.dtype(level), section.count, start + before)
    means, linear, quats, rest = (_doubles(rows[name]) for name in ("mean", "scale", "quat", "sh"))
    if level:
        centers = _centers(data, start, section, where)
        means = (means - section.steps) * (section.block_size / 2 / section.steps) + centers
    if level == 2:
        rest = sh_range[0] + rest / 255.0 * (sh_range[1] - sh_range[0])
    color = rows["color"] / 255.0
    alpha = np.clip(color[:, 3], OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A scale of zero is a flat Gaussian, a negative one is none and becomes NaN.
        scales = np.maximum(np.log(linear), -INFINITE_LOGIT)
    return Gaussians(
        means=_tensor(means),
        quats=_tensor(quats),
        scales=_tensor(scales),
        opacities=_tensor(np.log(alpha / (1.0 - alpha))),
        sh0=_tensor((color[:, :3] - 0.5) / SH_C0),
        shN=_tensor(_by_coefficient(rest, section.degree)),
    )


def _centers(data: bytes, start: int, section: _Section, where: str) -> npt.NDArray[np.float64]:
    """Centre [count, 3] of the bucket of each Gaussian: full buckets first, then those whose sizes are listed."""
    sizes = np.frombuffer(data, "<u4", section.partial, start).astype(np.int64)
    ends = np.cumsum(np.concatenate([np.full(section.full, section.bucket_capacity, np.int64), sizes]))
    if len(ends) == 0 or ends[-1] < section.count:
        raise InputError(f"{where}: buckets for {ends[-1] if len(ends) else 0} of {section.count} Gaussians: damaged")
    which = np.searchsorted(ends, np.arange(section.count), side="right")
    shape, strides = (section.buckets, 3), (section.bucket_bytes, 4)
    return np.ndarray(shape, "<f4", data, start + 4 * section.partial, strides)[which].astype(np.float64)


def _by_coefficient(rest: npt.NDArray[np.float64], degree: int) -> npt.NDArray[np.float64]:
    """[N, K, 3] of numbers that lie band by band and in each channel by channel."""
    bands, start = [np.zeros((len(rest), 0, 3))], 0
    for d in range(1, degree + 1):
        end = start + 3 * (2 * d + 1)
        bands.append(rest[:, start:end].reshape(len(rest), 3, -1).transpose(0, 2, 1))
        start = end
    return np.concatenate(bands, axis=1)


def _doubles(values: npt.NDArray) -> npt.NDArray[np.float64]:
    # What damage makes of a float can be a NaN that signals.
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def _tensor(values: npt.NDArray) -> torch.Tensor:
    # A number beyond float32 becomes infinite, and is left out with the other infinities.
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(np.array(values, np.float32))
