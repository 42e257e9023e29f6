"""What `.rcs` keeps of a Gaussian: the quantisers of each attribute, with steps that follow what an error costs.

Positions and rotations get the precision that their own Gaussian makes visible: a wide Gaussian a coarse cell of the
octree, a nearly round one a coarse rotation. Both are told from the scale levels, so nothing is stored for it.
"""

import math
from dataclasses import dataclass, replace

import numba
import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core import morton
from radcomp_plugins.splats.formats.rcs_header import COMPONENTS, DEPTH_UNIT, MAX_DEPTH, Header, RotationClasses

Array64 = NDArray[np.float64]
Ints = NDArray[np.int64]

ROTATION_BOUND = 0.39
"""Largest x, y or z of a quaternion once its axes are renamed so that it rotates least: sin(pi / 8) = 0.383."""

SHARPEST = 10.0
"""sinh of the logarithm of the axes' ratio from which on a rotation has its finest step."""

FAR_SHARE = 0.001
FAR_RATIO = 4.0
"""Where the scene is this much wider than its inner 99.9 %, the cube spans these and the rest is kept apart."""

OPACITY_MARGIN = 1e-6
TRAINED_OPACITY = 2.0
"""Saves 1 % of a file. Faint Gaussians that it rounds to nothing, worth 1 dB in some scenes, still move in training."""
PALETTE_LIMIT = 127
OUTLIERS, OUTLIER_MARGIN = 1e-3, 1.3


@dataclass(frozen=True)
class RcsSettings:
    """The steps of the quantisers; larger ones make a smaller file and a larger error.

    Attributes:
        position: side of the octree's cells, as a share of the geometric mean of a Gaussian's two longer axes.
        scale: of the logarithms of the axes.
        rotation: of a thin Gaussian's quaternion x, y, z.
        opacity: of alpha.
        colour: of the constant SH coefficient's luma; chroma is 1.5 times as coarse.
        palette: vectors of higher SH; None takes `default_palette_size`.
        sh: of the palette's numbers, as a share of the palette's own root mean square error.
        levels: levels of detail, 1 to 8; None takes 3, or 1 below 4,096 Gaussians.
    """

    position: float = 0.15
    scale: float = 0.15
    rotation: float = 0.02
    opacity: float = 1 / 48
    colour: float = 0.06
    palette: int | None = None
    sh: float = 0.6
    levels: int | None = None

    def __post_init__(self) -> None:
        ranges = {
            "position": (1e-3, 4.0),
            "scale": (0.01, 1.0),
            "rotation": (1 / 256, 0.5),
            "opacity": (1 / 255, 0.5),
            "colour": (1e-3, 1.0),
            "sh": (1e-3, 10.0),
            "palette": (1, 65536),
            "levels": (1, 8),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"RcsSettings.{name} is {value}, expected {low} to {high}")

    def trained(self, factor: float) -> "RcsSettings":
        """Those of a scene that is trained through them: scaled, and opacities `TRAINED_OPACITY` as coarse again."""
        coarse = self.scaled(factor)
        return replace(coarse, opacity=min(TRAINED_OPACITY * coarse.opacity, 0.5))

    def scaled(self, factor: float) -> "RcsSettings":
        """All steps times a factor, as far as their ranges go."""
        return replace(
            self,
            position=min(max(self.position * factor, 1e-3), 4.0),
            scale=min(max(self.scale * factor, 0.01), 1.0),
            rotation=min(max(self.rotation * factor, 1 / 256), 0.5),
            opacity=min(max(self.opacity * factor, 1 / 255), 0.5),
            colour=min(max(self.colour * factor, 1e-3), 1.0),
            sh=min(max(self.sh * factor, 0.05), 4.0),
        )


@dataclass(frozen=True)
class Quantised:
    """Levels of all attributes, in Morton order within each level of detail.

    Attributes:
        codes: [N] Morton codes at the octree's depth.
        scales: [N, 3] levels.
        rotations: [N, 3] levels.
        opacities: [N, 1] levels.
        colours: [N, 3] levels of Y, Co, Cg.
    """

    codes: Ints
    scales: Ints
    rotations: Ints
    opacities: Ints
    colours: Ints


def wanted_depths(header: Header, scales: Ints) -> Ints:
    """Depth [N] of the octree that suffices for Gaussians with these scale levels; integers, so the same everywhere."""
    return _wanted_depths(np.ascontiguousarray(scales), header.depth_at_zero, header.depth_per_level, header.depth)


@numba.njit(nogil=True, cache=True)
def _wanted_depths(scales, at_zero, per_level, deepest):  # noqa: ANN001, ANN202
    out = np.empty(len(scales), np.int64)
    for i in range(len(scales)):
        a, b, c = scales[i, 0], scales[i, 1], scales[i, 2]
        fine = at_zero - per_level * (a + b + c - min(a, b, c))
        out[i] = min(max(-(-fine // DEPTH_UNIT), 0), deepest)
    return out


def _two_largest(scales: Ints) -> Ints:
    """Sum of the two larger scale levels: the third is next to nothing where Gaussians are flat."""
    return scales.sum(axis=1) - scales.min(axis=1)


def rotation_classes(header: Header, scales: Ints) -> Ints:
    """How often the rotation's step is doubled, [N], 0 for the thinnest to 5."""
    return _rotation_classes(np.ascontiguousarray(scales), np.array(header.classes))


@numba.njit(nogil=True, cache=True)
def _rotation_classes(scales, thresholds):  # noqa: ANN001, ANN202
    out = np.zeros(len(scales), np.int64)
    for i in range(len(scales)):
        a, b, c = scales[i, 0], scales[i, 1], scales[i, 2]
        for k in range(len(thresholds)):
            out[i] += max(a, b, c) - min(a, b, c) <= thresholds[k]
    return out


def colour_to_planes(rgb: Array64) -> Array64:
    """Y, Co, Cg of R, G, B along the last axis."""
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.stack([(r + 2 * g + b) / 4, r - b, g - (r + b) / 2], axis=-1)


def planes_to_colour(planes: Array64) -> Array64:
    """R, G, B of Y, Co, Cg along the last axis."""
    return _to_rgb(planes.reshape(-1, 3)).reshape(planes.shape)


@numba.njit(nogil=True, cache=True)
def _to_rgb(planes):  # noqa: ANN001, ANN202
    out = np.empty_like(planes)
    for i in range(len(planes)):
        y, co, cg = planes[i, 0], planes[i, 1] / 2, planes[i, 2] / 2
        out[i, 0], out[i, 1], out[i, 2] = y - cg + co, y + cg, y - cg - co
    return out


def find_cube(means: Array64) -> tuple[Array64, float, NDArray[np.bool_]]:
    """Lowest corner and side of the octree's cube, and which means [N] lie beyond it."""
    low, high = means.min(axis=0), means.max(axis=0)
    middle = np.median(means, axis=0)
    away = np.sort(np.abs(means - middle).max(axis=1))
    inner = float(away[max(len(away) - 1 - math.ceil(FAR_SHARE * len(away)), 0)]) * 1.01
    if inner > 0 and float((high - low).max()) > 2 * FAR_RATIO * inner:
        low, high = middle - inner, middle + inner
    side = float((high - low).max())
    if side <= 0:
        side = max(float(np.abs(low).max()), 1.0) * 1e-6
    # The far ends have to lie inside, not on the border.
    side *= 1 + 2**-20
    return low, side, _beyond(low, side, means)


def far_ones(header: Header, means: Array64) -> NDArray[np.bool_]:
    """Which means [N] lie beyond the octree's cube."""
    return _beyond(np.array(header.origin), header.side, means)


def _beyond(low: Array64, side: float, means: Array64) -> NDArray[np.bool_]:
    return ((means < low) | (means >= low + side)).any(axis=1)


def plan_header(g: dict[str, Array64], settings: RcsSettings, degree: int, antialiased: bool) -> Header:
    """Everything of the header but the palette's and levels' numbers.

    Args:
        g: `smallest_columns`.
        settings: the steps.
        degree: of the SH.
        antialiased: as in `Gaussians`.
    """
    origin, side, far = find_cube(g["means"])
    scales_sorted = np.sort(g["scales"], axis=None)
    low, largest = float(scales_sorted[0]), float(scales_sorted[-1])
    if largest > low + 255 * settings.scale:
        # One absurd Gaussian must not push all others out of the range.
        rank = max(scales_sorted.size - 1 - 3 * math.ceil(FAR_SHARE * len(g["means"])), 0)
        largest = min(largest, float(scales_sorted[rank]) + 3.0)
        low = max(low, largest - 255 * settings.scale)
    scales = _scale_levels(g["scales"], low, settings.scale, 8)
    zero = math.log2(max(side / settings.position, 1e-300)) - low / math.log(2)
    at_zero = round(min(max(zero, 0.0), 2.0**13) * DEPTH_UNIT)
    per_level = round(settings.scale / (2 * math.log(2)) * DEPTH_UNIT)
    most = int(np.max(at_zero - per_level * _two_largest(scales[~far]), initial=0))
    depth = min(max(-(-most // DEPTH_UNIT), 1), MAX_DEPTH)
    limits = [round(math.asinh(SHARPEST / 2**k) / settings.scale) for k in range(1, 6)]
    planes = colour_to_planes(g["sh0"])
    inner = np.quantile(planes, [OUTLIERS, 1 - OUTLIERS], axis=0)
    # A symbol has 8 bits: steps that are too fine for the range are widened, and only outliers are clamped.
    steps = np.maximum(settings.colour * np.array([1.0, 1.5, 1.5]), (inner[1] - inner[0]) * OUTLIER_MARGIN / 255)
    colour_low = np.maximum(planes.min(axis=0), inner.mean(axis=0) - 127 * steps)
    spread = np.minimum(np.rint((planes.max(axis=0) - colour_low) / steps), 255)
    bits = [
        _bits(int(scales.max())),
        _bits(2 * _rotation_offset(settings.rotation)),
        _bits(round(1 / settings.opacity)),
        *(_bits(int(s)) for s in spread),
    ]
    return Header(
        count=len(g["means"]),
        far=int(far.sum()),
        palette=0,
        degree=degree,
        antialiased=antialiased,
        depth=depth,
        origin=tuple(origin.tolist()),
        side=side,
        depth_at_zero=at_zero,
        depth_per_level=per_level,
        scale_low=low,
        scale_step=settings.scale,
        rotation_step=settings.rotation,
        sh_step=0.0,
        classes=RotationClasses(*(min(limit, 255) for limit in limits)),
        bits=tuple(bits),  # type: ignore[arg-type]
        plain=(0,) * COMPONENTS,
        colour_low=tuple(colour_low.tolist()),
        colour_step=tuple(steps.tolist()),
        levels=(len(g["means"]),),
    )


def _scale_levels(scales: Array64, low: float, step: float, bits: int) -> Ints:
    return np.clip(np.rint((scales - low) / step), 0, 2**bits - 1).astype(np.int64)


def quantise(g: dict[str, Array64], header: Header) -> Quantised:
    """Levels of `smallest_columns` in the order given."""
    scales = _scale_levels(g["scales"], header.scale_low, header.scale_step, header.bits[0])
    cells = np.floor((g["means"] - np.array(header.origin)) / header.side * 2.0**header.depth)
    codes = morton.encode(np.clip(cells, 0, 2**header.depth - 1).astype(np.int64))
    step = header.rotation_step * 2.0 ** rotation_classes(header, scales)
    offset = _rotation_offset(header.rotation_step)
    rotations = np.rint(g["quats"][:, 1:] / step[:, None]).astype(np.int64) + offset
    alpha_levels = 2 ** header.bits[2] - 1
    planes = (colour_to_planes(g["sh0"]) - np.array(header.colour_low)) / np.array(header.colour_step)
    most = np.array([2**b - 1 for b in header.bits[3:]])
    return Quantised(
        codes=codes,
        scales=scales,
        rotations=np.clip(rotations, 0, 2 ** header.bits[1] - 1),
        opacities=np.rint(g["alpha"][:, None] * alpha_levels).astype(np.int64),
        colours=np.clip(np.rint(planes), 0, most).astype(np.int64),
    )


def dequantise_scales(header: Header, levels: Ints) -> Array64:
    """Logarithms [N, 3] of the axes."""
    return header.scale_low + header.scale_step * levels


def dequantise_means(header: Header, codes: Ints, depths: Ints) -> Array64:
    """Middles [N, 3] of the cells of Morton codes at the octree's depth, each cell of its own depth."""
    out = morton.decode(codes).astype(np.float64)
    _to_middles(out, depths, header.depth, np.array(header.origin), header.side / 2.0**header.depth)
    return out


@numba.njit(nogil=True, cache=True)
def _to_middles(cells, depths, deepest, origin, width) -> None:  # noqa: ANN001
    for i in range(len(cells)):
        half = (1 << (deepest - depths[i])) / 2
        for k in range(3):
            cells[i, k] = origin[k] + (cells[i, k] + half) * width


def dequantise_quats(header: Header, levels: Ints, scales: Ints) -> Array64:
    """Unit quaternions [N, 4]; levels that no rotation has come out as some unit quaternion."""
    classes = rotation_classes(header, scales)
    offset = _rotation_offset(header.rotation_step)
    return _to_quats(np.ascontiguousarray(levels), classes, header.rotation_step, offset)


@numba.njit(nogil=True, cache=True)
def _to_quats(levels, classes, finest, offset):  # noqa: ANN001, ANN202
    out = np.empty((len(levels), 4))
    for i in range(len(levels)):
        step = finest * (1 << classes[i])
        x, y, z = (levels[i, 0] - offset) * step, (levels[i, 1] - offset) * step, (levels[i, 2] - offset) * step
        square = x * x + y * y + z * z
        length = math.sqrt(max(square, 1.0))
        out[i, 0] = math.sqrt(max(1 - square, 0.0))
        out[i, 1], out[i, 2], out[i, 3] = x / length, y / length, z / length
    return out


def dequantise_opacity(header: Header, levels: Ints) -> Array64:
    """Logits [N]."""
    alpha = np.clip(levels[:, 0] / (2 ** header.bits[2] - 1), OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    return np.log(alpha / (1 - alpha))


def dequantise_colours(header: Header, levels: Ints) -> Array64:
    """Constant SH coefficients [N, 3]."""
    return planes_to_colour(np.array(header.colour_low) + levels.astype(np.float64) * np.array(header.colour_step))


def palette_levels(entries: Array64, step: float) -> Ints:
    """Levels [K, 3 R] of palette vectors [K, R, 3]."""
    planes = colour_to_planes(entries).reshape(len(entries), -1)
    return np.clip(np.rint(planes / step), -PALETTE_LIMIT, PALETTE_LIMIT).astype(np.int64)


def dequantise_palette(levels: Ints, step: float) -> Array64:
    """Palette vectors [K, R, 3]."""
    return planes_to_colour(levels.reshape(len(levels), -1, 3) * step)


def _rotation_offset(step: float) -> int:
    """Level of the number 0."""
    return math.ceil(ROTATION_BOUND / step)


def _bits(largest: int) -> int:
    return min(max(int(largest).bit_length(), 1), 8)
