"""Rays in contracted space: straight pieces, one for each region of the piecewise-projective contraction.

Space has seven regions: the cube of half side 1, which the contraction leaves alone, and for each of its faces what
lies beyond it, where one coordinate's magnitude is the largest. In each of them a straight ray stays straight
(Reiser et al. 2023, Sec. 4), and as each is convex, a ray has at most one piece in it, and goes through five at most.

Scalars are double precision: the far end of a ray is where 2 - |z| has lost most of its digits.
"""

import math

import numpy as np
from numba import njit

MAX_PIECES = 8
"""Room for the ends of a ray's pieces; five are possible, rounding may add slivers at their borders."""
FARTHEST = 1e4
"""Submodel units at which a ray ends: contracted coordinate 2 - 1e-4, as in the official viewer."""
NEVER = 1e25
"""Stands for the end of a piece that does not exist."""

_CUBE = 0
# The twelve planes that part the regions: x_i = +-1, and x_i = +-x_j.
_PLANES = 12


@njit(nogil=True, cache=True, inline="always")
def contract(x, y, z):  # noqa: ANN001, ANN201
    """`core.contraction.contract` of one point; of equal magnitudes only the first counts as the largest."""
    ax, ay, az = abs(x), abs(y), abs(z)
    largest = max(ax, ay, az)
    if largest <= 1.0:
        return x, y, z
    inverse = 1.0 / largest
    u, v, w = x * inverse, y * inverse, z * inverse
    shell = 2.0 - inverse
    if ax >= ay and ax >= az:
        return u * shell, v, w
    if ay >= az:
        return u, v * shell, w
    return u, v, w * shell


@njit(nogil=True, cache=True, inline="always")
def uncontract(x, y, z):  # noqa: ANN001, ANN201
    """The inverse of `contract`; what lies closer to 2 than 1e-6 counts as that close."""
    ax, ay, az = abs(x), abs(y), abs(z)
    largest = max(ax, ay, az)
    if largest <= 1.0:
        return x, y, z
    scale = 1.0 / max(2.0 - largest, 1e-6)
    if ax >= ay and ax >= az:
        return math.copysign(scale, x), y * scale, z * scale
    if ay >= az:
        return x * scale, math.copysign(scale, y), z * scale
    return x * scale, y * scale, math.copysign(scale, z)


@njit(nogil=True, cache=True, inline="always")
def _region(x, y, z):  # noqa: ANN001, ANN202
    """0 in the cube; else 1, 2, 3 for the axis of the largest coordinate, negative on the negative side."""
    ax, ay, az = abs(x), abs(y), abs(z)
    if max(ax, ay, az) <= 1.0:
        return _CUBE
    if ax >= ay and ax >= az:
        return 1 if x > 0.0 else -1
    if ay >= az:
        return 2 if y > 0.0 else -2
    return 3 if z > 0.0 else -3


@njit(nogil=True, cache=True, inline="always", error_model="numpy")
def _distance_to_far(o, d, near):  # noqa: ANN001, ANN202
    """Where the largest coordinate of o + t d comes to `FARTHEST`."""
    end = NEVER
    for axis in range(3):
        if d[axis] != 0.0:
            end = min(end, (math.copysign(FARTHEST, d[axis]) - o[axis]) / d[axis])
    return max(end, near)


@njit(nogil=True, cache=True, error_model="numpy")
def piece_ends(o, d, near, planes, ends):  # noqa: ANN001, ANN201
    """Where the ray o + t d, from t = near on, leaves each region it goes through.

    Args:
        o: origin, submodel frame, three floats.
        d: direction of any length.
        near: t at which the ray begins.
        planes: [12] float64, scratch.
        ends: [MAX_PIECES] float64, written: ascending t, then `NEVER`.
    """
    far = _distance_to_far(o, d, near)
    count = 0
    for axis in range(3):
        other = (axis + 1) % 3
        for sign in (-1.0, 1.0):
            for t in ((sign - o[axis]) / d[axis], (sign * o[other] - o[axis]) / (d[axis] - sign * d[other])):
                if near < t < far:  # neither for NaN: the ray runs along the plane
                    place = count
                    while place > 0 and planes[place - 1] > t:
                        planes[place] = planes[place - 1]
                        place -= 1
                    planes[place] = t
                    count += 1
    ends[:] = NEVER
    pieces = 0
    begin, region = near, -9
    for k in range(count + 1):
        end = planes[k] if k < count else far
        middle = 0.5 * (begin + end)
        here = _region(o[0] + middle * d[0], o[1] + middle * d[1], o[2] + middle * d[2])
        if here != region and pieces < MAX_PIECES:
            pieces += 1
            region = here
        ends[pieces - 1] = end
        begin = end


@njit(nogil=True, cache=True, error_model="numpy")
def piece_setup(o, d, t_p, t_q):  # noqa: ANN001, ANN201
    """A ray's piece in contracted space, through two of its points.

    Args:
        o: origin, submodel frame.
        d: direction.
        t_p: where the piece's own origin is to be.
        t_q: another place in the same region.

    Returns:
        Contracted origin (3), unit direction (3), and the contracted distances from that origin at which the ray
        enters and leaves the region. The direction is NaN where both places are the same.
    """
    px, py, pz = o[0] + t_p * d[0], o[1] + t_p * d[1], o[2] + t_p * d[2]
    zx, zy, zz = contract(px, py, pz)
    qx, qy, qz = contract(o[0] + t_q * d[0], o[1] + t_q * d[1], o[2] + t_q * d[2])
    dx, dy, dz = qx - zx, qy - zy, qz - zz
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    direction = (dx / length, dy / length, dz / length)
    region = _region(px, py, pz)
    enter, leave = -np.inf, np.inf
    for axis in range(3):
        low, high = -1.0, 1.0
        if region == axis + 1:
            low, high = 1.0, 2.0
        elif region == -axis - 1:
            low, high = -2.0, -1.0
        if direction[axis] != 0.0:
            origin = zx if axis == 0 else (zy if axis == 1 else zz)
            a, b = (low - origin) / direction[axis], (high - origin) / direction[axis]
            enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return (zx, zy, zz), direction, enter, leave
