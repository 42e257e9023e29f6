"""The numbers at the head of an `.rcs` file (see `rcs`): counts, the octree's cube, and the step of each quantiser."""

import math
import struct
from dataclasses import astuple, dataclass
from typing import NamedTuple

from radcomp_plugins.errors import InputError

MAX_DEPTH = 20
"""Levels of the octree: 60 bits of Morton code."""

MAX_LEVELS = 8
MAX_COUNT = 2**27
MAX_PALETTE = 65536
ROTATION_CLASSES = 6
DEPTH_UNIT = 2**16

COMPONENTS = 12
"""Numbers of a Gaussian that streams hold: 3 scales, 3 rotations, opacity, 3 colours, 2 bytes of a label."""

_FIXED = struct.Struct("<IIIBBBB3ddiidddd5B6B12B3d3d")


class RotationClasses(NamedTuple):
    """Widths, in scale steps, up to which a Gaussian's rotation is stored in steps 2, 4, 8, 16 and 32 times as wide."""

    two: int
    four: int
    eight: int
    sixteen: int
    thirty_two: int


@dataclass(frozen=True)
class Header:
    """What a decoder knows before the streams.

    Attributes:
        count: Gaussians.
        far: how many of them have a float32 position of their own, beyond the cube.
        palette: vectors of higher SH, 0 at degree 0.
        degree: of the SH.
        antialiased: as in `Gaussians`.
        depth: of the octree, 1 to 20.
        origin: lowest corner of the cube, world frame.
        side: of the cube, world units.
        depth_at_zero: bits a coordinate has where the two larger scale levels are 0, in 65536 ths.
        depth_per_level: how many fewer it has for each of their sum, in 65536 ths.
        scale_low: natural logarithm of scale level 0.
        scale_step: between two of them.
        rotation_step: finest step of a quaternion's x, y, z.
        sh_step: of the palette's numbers.
        classes: for rotations that are stored more coarsely.
        bits: of the symbols of scales, rotations, opacities and the three colour components.
        plain: lowest bits that are stored as they are, of each of the 12 components (see `COMPONENTS`).
        colour_low: level 0 of Y, Co, Cg.
        colour_step: their steps.
        levels: Gaussians of each level of detail.
    """

    count: int
    far: int
    palette: int
    degree: int
    antialiased: bool
    depth: int
    origin: tuple[float, float, float]
    side: float
    depth_at_zero: int
    depth_per_level: int
    scale_low: float
    scale_step: float
    rotation_step: float
    sh_step: float
    classes: RotationClasses
    bits: tuple[int, int, int, int, int, int]
    plain: tuple[int, ...]
    colour_low: tuple[float, float, float]
    colour_step: tuple[float, float, float]
    levels: tuple[int, ...]

    @property
    def component_bits(self) -> tuple[int, ...]:
        """Bits of each of the 12 components; of a label that fits into a byte the second has none to itself."""
        scale, rotation, opacity, *colour = self.bits
        label = max((self.palette - 1).bit_length(), 1)
        return (*[scale] * 3, *[rotation] * 3, opacity, *colour, *((label - 8, 8) if label > 8 else (label, 1)))

    def pack(self) -> bytes:
        """The bytes of the chunk HEAD."""
        flat = [
            *(self.count, self.far, self.palette, self.degree, self.antialiased, self.depth, len(self.levels)),
            *(*self.origin, self.side, self.depth_at_zero, self.depth_per_level),
            *(self.scale_low, self.scale_step, self.rotation_step, self.sh_step, *self.classes, *self.bits),
            *self.plain,
            *(*self.colour_low, *self.colour_step),
        ]
        return _FIXED.pack(*flat) + struct.pack(f"<{len(self.levels)}I", *self.levels)


def unpack_header(data: bytes, where: str) -> Header:
    """The header in the chunk HEAD.

    Raises:
        InputError: a wrong size, or a number out of its range.
    """
    if len(data) < _FIXED.size:
        raise InputError(f"{where}: chunk HEAD has {len(data)} bytes, expected at least {_FIXED.size}")
    v = _FIXED.unpack_from(data)
    count, far, palette, degree, antialiased, depth, levels = v[:7]
    if len(data) != _FIXED.size + 4 * levels or not 1 <= levels <= MAX_LEVELS:
        raise InputError(f"{where}: chunk HEAD has {len(data)} bytes for {levels} levels, expected 1 to {MAX_LEVELS}")
    header = Header(
        *(count, far, palette, degree, bool(antialiased), depth, v[7:10], v[10], v[11], v[12]),
        *(v[13], v[14], v[15], v[16], RotationClasses(*v[17:22]), v[22:28], v[28:40], v[40:43], v[43:46]),
        struct.unpack_from(f"<{levels}I", data, _FIXED.size),
    )
    _check(header, where)
    return header


def _check(h: Header, where: str) -> None:
    ranges = {
        "count": (h.count, 1, MAX_COUNT),
        "far": (h.far, 0, h.count),
        "degree": (h.degree, 0, 3),
        "palette": (h.palette, int(h.degree > 0), min(MAX_PALETTE, h.count) * (h.degree > 0)),
        "depth": (h.depth, 1, MAX_DEPTH),
        "depth at zero": (h.depth_at_zero, 0, 2**30),
        "depth per level": (h.depth_per_level, 0, 2**20),
        "bits": (min(h.bits), 1, 8),
        "bits of colour": (max(h.bits), 1, 8),
        "coded bits": (min(b - p for b, p in zip(h.component_bits, h.plain, strict=True)), 1, 8),
        "smallest level": (min(h.levels), 1, h.count),
        "levels' sum": (sum(h.levels), h.count, h.count),
        "side": (h.side, 0.0, 1e39),
        "scale step": (h.scale_step, 1e-6, 10.0),
        "scale low": (h.scale_low, -200.0, 200.0),
        "rotation step": (h.rotation_step, 1e-6, 1.0),
        "SH step": (h.sh_step, 0.0, 1e6),
        "colour step": (max(h.colour_step), 1e-9, 1e6),
        "finest colour step": (min(h.colour_step), 1e-9, 1e6),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise InputError(f"{where}: {name} is {value}, expected {low} to {high}: the file is damaged")
    floats = [x for x in (*astuple(h)[6], *h.colour_low)]
    if not all(math.isfinite(x) and abs(x) <= 1e39 for x in floats):
        raise InputError(f"{where}: the cube or the colours begin at {floats}, expected finite numbers")
