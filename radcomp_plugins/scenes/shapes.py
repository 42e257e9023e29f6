"""Surfaces as grids: every shape of a scene is a list of rectangular vertex grids with texture coordinates.

A grid has rows (v, the second index of a texel) and columns (u). The outward side is the one that du x dv points to,
with u along the columns and v along the rows. Lengths are world units, z is up.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

Number = float | int
Vec = Sequence[Number] | Float[np.ndarray, "_"]
Path = Sequence[Vec] | Float[np.ndarray, "_ _"]


@dataclass(frozen=True)
class Patch:
    """One grid of vertices.

    Attributes:
        points: [V, U, 3] float64 positions, V and U at least 2.
        normals: [V, U, 3] float64 unit shading normals.
        coords: [V, U, 3] float64 texture coordinates, whatever the material's texture expects.
        material: name of the material in the scene's table.
        wrap: the last column repeats the first.
        two_sided: both sides are seen (leaves, paper); otherwise the inner side counts as inside the object.
        texel: side length of a lightmap texel in world units.
    """

    points: Float[np.ndarray, "V U 3"]
    normals: Float[np.ndarray, "V U 3"]
    coords: Float[np.ndarray, "V U 3"]
    material: str
    wrap: bool = False
    two_sided: bool = False
    texel: Number = 0.03


def grid_normals(points: Float[np.ndarray, "V U 3"], wrap: bool) -> Float[np.ndarray, "V U 3"]:
    """Area-weighted vertex normals of a grid, joined across the seam and across rows that shrink to a point."""
    p00, p10, p01, p11 = points[:-1, :-1], points[:-1, 1:], points[1:, :-1], points[1:, 1:]
    lower, upper = np.cross(p10 - p00, p11 - p00), np.cross(p11 - p00, p01 - p00)
    total = np.zeros_like(points)
    total[:-1, :-1] += lower + upper
    total[1:, 1:] += lower + upper
    total[:-1, 1:] += lower
    total[1:, :-1] += upper
    if wrap:
        seam = total[:, 0] + total[:, -1]
        total[:, 0] = total[:, -1] = seam
    for row in (0, -1):
        if np.ptp(points[row], axis=0).max() < 1e-9:
            total[row] = total[row].sum(axis=0)
    return total / np.maximum(np.linalg.norm(total, axis=-1, keepdims=True), 1e-30)


def grid(
    points: Float[np.ndarray, "V U 3"],
    material: str,
    *,
    coords: Float[np.ndarray, "V U 3"] | None = None,
    wrap: bool = False,
    two_sided: bool = False,
    texel: Number = 0.03,
) -> Patch:
    """A patch from its vertices; texture coordinates default to the positions."""
    points = np.asarray(points, dtype=np.float64)
    normals = grid_normals(points, wrap)
    return Patch(points, normals, points.copy() if coords is None else coords, material, wrap, two_sided, texel)


def place(
    patches: Iterable[Patch],
    at: Vec = (0.0, 0.0, 0.0),
    *,
    yaw: Number = 0.0,
    tilt: Vec = (0.0, 0.0),
    scale: Number = 1.0,
) -> list[Patch]:
    """Moves patches: scaled, tilted about x then y, turned by `yaw` about z (all degrees), then shifted to `at`."""
    rotation = rotation_z(yaw) @ rotation_y(tilt[1]) @ rotation_x(tilt[0])
    offset = np.asarray(at, dtype=np.float64)
    return [replace(p, points=scale * p.points @ rotation.T + offset, normals=p.normals @ rotation.T) for p in patches]


def simplify(patches: Iterable[Patch], texel: Number) -> list[Patch]:
    """Patches without every other row and column, where their number allows it, and with texels of at least `texel`."""
    simpler = []
    for p in patches:
        rows, columns = (2 if n > 8 and n % 2 else 1 for n in p.points.shape[:2])
        thin = (slice(None, None, rows), slice(None, None, columns))
        simpler.append(
            replace(
                p,
                points=p.points[thin],
                normals=p.normals[thin],
                coords=p.coords[thin],
                texel=max(p.texel, texel),
            )
        )
    return simpler


def rotation_x(degrees: Number) -> Float[np.ndarray, "3 3"]:
    """Rotation about the x axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rotation_y(degrees: Number) -> Float[np.ndarray, "3 3"]:
    """Rotation about the y axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def rotation_z(degrees: Number) -> Float[np.ndarray, "3 3"]:
    """Rotation about the z axis."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def smooth(points: Path, per_segment: int = 8) -> Float[np.ndarray, "N D"]:
    """Points of a Catmull-Rom curve through `points`, `per_segment` for each span, both ends included."""
    knots = np.asarray(points, dtype=np.float64)
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    t = np.linspace(0.0, 1.0, per_segment, endpoint=False)[:, None]
    spans = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        spans.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.vstack([*spans, knots[-1:]])


def revolve(
    profile: Path,
    material: str,
    *,
    sides: int = 64,
    coords: str = "xyz",
    texel: Number = 0.03,
    flutes: int = 0,
    flute_depth: Number = 0.0,
) -> Patch:
    """A surface of revolution about z; the profile (radius, z) runs upwards on an outer wall.

    Args:
        profile: [N, 2] radius and height.
        material: name of the material.
        sides: columns around the axis.
        coords: "xyz" gives object positions, "uv" gives (turn in 0..1, length along the profile, radius).
        texel: lightmap texel size.
        flutes: number of grooves around the axis.
        flute_depth: how deep a groove is, in world units.
    """
    prof = np.asarray(profile, dtype=np.float64)
    turn = np.linspace(0.0, 1.0, sides + 1)
    angle = 2 * np.pi * turn
    dent = flute_depth * np.abs(np.sin(0.5 * flutes * angle)) if flutes else np.zeros_like(angle)
    radius = np.maximum(prof[:, :1] - flute_depth + dent, 0.0)
    points = np.stack(
        [radius * np.cos(angle), radius * np.sin(angle), np.broadcast_to(prof[:, 1:], radius.shape)], axis=-1
    )
    points[:, -1] = points[:, 0]
    tex = points.copy()
    if coords == "uv":
        along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(prof, axis=0), axis=1))])
        tex = np.stack(np.broadcast_arrays(turn[None], along[:, None], prof[:, :1]), axis=-1)
    return grid(points, material, coords=tex, wrap=True, texel=texel)


def sphere(radius: Number, material: str, *, sides: int = 48, texel: Number = 0.03) -> Patch:
    """A sphere about the origin with exact normals."""
    phi = np.linspace(-0.5 * np.pi, 0.5 * np.pi, sides // 2 + 1)
    profile = np.stack([radius * np.cos(phi), radius * np.sin(phi)], axis=1)
    profile[0, 0] = profile[-1, 0] = 0.0
    patch = revolve(profile, material, sides=sides, texel=texel)
    return replace(patch, normals=patch.points / radius)


def disc(radius: Number, material: str, *, cells: int = 24, down: bool = False, texel: Number = 0.03) -> Patch:
    """A flat disc in z = 0, mapped from a square with equal areas (Shirley and Chiu 1997)."""
    a, b = np.meshgrid(np.linspace(-1, 1, cells + 1), np.linspace(-1, 1, cells + 1))
    wide = np.abs(a) >= np.abs(b)
    r = np.where(wide, a, b)
    safe = np.where(r == 0, 1.0, r)
    theta = np.where(wide, 0.25 * np.pi * b / safe, 0.5 * np.pi - 0.25 * np.pi * a / safe)
    points = np.stack([radius * r * np.cos(theta), radius * r * np.sin(theta), np.zeros_like(r)], axis=-1)
    return grid(points[:, ::-1] if down else points, material, texel=texel)


def quad(origin: Vec, u: Vec, v: Vec, material: str, *, two_sided: bool = False, texel: Number = 0.03) -> Patch:
    """A parallelogram with corner `origin` and sides `u`, `v`; faces u x v. Coordinates are lengths along u and v."""
    o, du, dv = (np.asarray(x, dtype=np.float64) for x in (origin, u, v))
    points = np.array([[o, o + du], [o + dv, o + du + dv]])
    lu, lv = float(np.linalg.norm(du)), float(np.linalg.norm(dv))
    coords = np.array([[[0, 0, 0], [lu, 0, 0]], [[0, lv, 0], [lu, lv, 0]]], dtype=np.float64)
    return grid(points, material, coords=coords, two_sided=two_sided, texel=texel)


def box(size: Vec, material: str | Sequence[str], *, texel: Number = 0.03, centred: bool = False) -> list[Patch]:
    """A sharp box standing on z = 0 (or centred there); `material` is one name, or six for +x, -x, +y, -y, +z, -z.

    Texture coordinates of a face are lengths from its centre, with t upwards on the side faces.
    """
    x, y, z = (0.5 * s for s in size)
    names = [material] * 6 if isinstance(material, str) else list(material)
    faces = [
        ((x, -y, -z), (0, 2 * y, 0), (0, 0, 2 * z)),
        ((-x, y, -z), (0, -2 * y, 0), (0, 0, 2 * z)),
        ((x, y, -z), (-2 * x, 0, 0), (0, 0, 2 * z)),
        ((-x, -y, -z), (2 * x, 0, 0), (0, 0, 2 * z)),
        ((-x, -y, z), (2 * x, 0, 0), (0, 2 * y, 0)),
        ((-x, y, -z), (2 * x, 0, 0), (0, -2 * y, 0)),
    ]
    patches = []
    for (origin, u, v), name in zip(faces, names, strict=True):
        patch = quad(origin, u, v, name, texel=texel)
        patches.append(replace(patch, coords=patch.coords - patch.coords[1, 1] * 0.5))
    return patches if centred else place(patches, (0, 0, z))


def rounded_box(
    size: Vec, radius: Number, material: str, *, cells: int = 8, bulge: Number = 0.0, texel: Number = 0.03
) -> list[Patch]:
    """A box standing on z = 0 whose edges are rounded; `bulge` swells the faces like a cushion.

    Texture coordinates are positions relative to the centre.
    """
    half = 0.5 * np.asarray(size, dtype=np.float64)
    core = half - radius
    patches = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            a, b = (axis + 1) % 3, (axis + 2) % 3
            lines = []
            for k in (a, b):
                inner = np.linspace(-core[k], core[k], cells + 1)
                outer = core[k] + radius * np.tan(np.linspace(0, 0.25 * np.pi, 5)[1:])
                lines.append(np.concatenate([-outer[::-1], inner, outer]))
            ga, gb = np.meshgrid(lines[0] * sign, lines[1])
            cube = np.zeros((*ga.shape, 3))
            cube[..., a], cube[..., b], cube[..., axis] = ga, gb, sign * half[axis]
            inside = np.clip(cube, -core, core)
            normal = cube - inside
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            points = inside + radius * normal
            if bulge:
                swell = (1 - (points[..., a] / half[a]) ** 2) * (1 - (points[..., b] / half[b]) ** 2)
                points[..., axis] += sign * bulge * swell
                normal = grid_normals(points, False)
            patches.append(Patch(points, normal, points.copy(), material, texel=texel))
    return place(patches, (0, 0, half[2]))


def tube(
    path: Path,
    radius: Number | Vec,
    material: str,
    *,
    sides: int = 8,
    closed: bool = False,
    texel: Number = 0.03,
) -> Patch:
    """A round tube along a polyline, its ends closed to a point; frames are carried along without twist.

    Texture coordinates are (turn in 0..1, length along the path, 0).
    """
    line = np.asarray(path, dtype=np.float64)
    radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(line),)).copy()
    if not closed:
        line, radii = np.vstack([line[:1], line, line[-1:]]), np.concatenate([[0.0], radii, [0.0]])
    tangents = np.gradient(line, axis=0)
    if closed:
        tangents[0] = tangents[-1] = line[1] - line[-2]
    tangents[np.linalg.norm(tangents, axis=1) < 1e-12] = line[-1] - line[-2] + 1e-9
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    frames = []
    for tangent in tangents:
        side = side - tangent * (side @ tangent)
        side /= np.linalg.norm(side)
        frames.append((side, np.cross(tangent, side)))
    turn = np.linspace(0.0, 1.0, sides + 1)
    c, s = np.cos(2 * np.pi * turn)[None, :, None], np.sin(2 * np.pi * turn)[None, :, None]
    a, b = np.array([f[0] for f in frames])[:, None], np.array([f[1] for f in frames])[:, None]
    points = line[:, None] + radii[:, None, None] * (c * a + s * b)
    points[:, -1] = points[:, 0]
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    coords = np.stack(np.broadcast_arrays(turn[None], along[:, None], 0.0), axis=-1).astype(np.float64)
    return grid(points, material, coords=coords, wrap=True, texel=texel)


def leaf(length: Number, width: Number, material: str, *, droop: Number = 0.3, fold: Number = 0.25) -> Patch:
    """A leaf that grows along +x from the origin, folded along its midrib and bent down; seen from both sides.

    Texture coordinates are (0..1 along, -1..1 across, 0).
    """
    along, across = np.linspace(0.0, 1.0, 11), np.linspace(-1.0, 1.0, 7)
    s, t = np.meshgrid(along, across)
    half = 0.5 * width * np.maximum(np.sin(np.pi * s**0.8), 0.0) * (1 - 0.25 * s)
    z = length * (0.18 * np.sin(np.pi * s) - droop * s**2) + fold * half * np.abs(t)
    points = np.stack([length * s * (1 - 0.15 * droop * s), half * t, z], axis=-1)
    coords = np.stack([s, t, np.zeros_like(s)], axis=-1)
    return grid(points, material, coords=coords, two_sided=True, texel=0.35 * width)
