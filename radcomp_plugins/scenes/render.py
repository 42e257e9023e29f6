"""Draws a compiled and baked scene: colour with straight alpha, and exact depth at the pixel centres."""

from dataclasses import dataclass

import numba
import numpy as np
from jaxtyping import Float, UInt8

from radcomp_plugins.core.threads import run_striped
from radcomp_plugins.scenes.bvh import STACK_SIZE, faces_away, trace
from radcomp_plugins.scenes.lighting import LIFT, sunlight
from radcomp_plugins.scenes.surface import (
    COORD,
    NORMAL,
    POSITION,
    SCRATCH,
    baked,
    evaluate,
    locate,
    surroundings,
    texel_at,
)
from radcomp_plugins.scenes.textures import albedo
from radcomp_plugins.scenes.world import (
    EMISSION,
    F0,
    MATERIAL,
    METALLIC,
    MIRROR,
    OUTDOOR,
    ROUGHNESS,
    TRANSLUCENCY,
    TWO_SIDED,
    World,
)

FEW, MORE, MANY = 4, 8, 13
"""Samples of a pixel that shows one smooth surface, a pattern, and an edge."""
LATTICE = np.array((0, 4, 9, 10, 1, 3, 5, 7, 2, 6, 8, 11, 12))
"""Samples of a pixel: number k lies at (k, 8 k) / MANY from its centre, modulo 1. The order spreads the first few."""
CONTRAST = 0.06
"""Difference of display values among the first samples above which a pixel shows a pattern."""
DIM_MIRROR, MIRROR_BLEND = 0.045, 0.03
"""A reflection weaker than this is not traced but estimated from the visible part of the sky; then they blend."""

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, in nerfstudio's (OpenGL's) frame: x right, y up, looking along -z.

    Attributes:
        pose: [4, 4] float64 camera-to-world.
        width, height: pixels.
        focal: focal length in pixels, the same for x and y; the principal point is the image centre.
    """

    pose: Float[np.ndarray, "4 4"]
    width: int
    height: int
    focal: float


@_jit
def _tone(x):
    """Display value (sRGB encoded, 0..1) of a radiance, by a filmic curve with a soft shoulder and toe."""
    x = max(0.0, x)
    y = (x * (2.1 * x + 0.06)) / (x * (2.0 * x + 0.62) + 0.13)
    y = min(1.0, y)
    return 12.92 * y if y <= 0.0031308 else 1.055 * y ** (1.0 / 2.4) - 0.055


@_jit
def _diffuse(w, tri, b1, b2, dx, dy, dz, s, light, other, stack):
    """Light that a hit surface reflects diffusely or gives off.

    Leaves position, normal (towards the viewer) and texture coordinate in s, and the baked light in `light`.

    Returns:
        (row of the material, its colour, diffuse radiance, glow).
    """
    k, u, v = locate(w, tri, b1, b2)
    evaluate(w, k, u, v, s)
    m = w.patch[k, MATERIAL]
    row = w.material[m]
    c = albedo(row, s[COORD], s[COORD + 1], s[COORD + 2])
    e = row[EMISSION]
    glow = (c[0] * e, c[1] * e, c[2] * e)
    if row[OUTDOOR] != 0.0:
        return m, c, (0.0, 0.0, 0.0), glow
    inner = faces_away(w.bvh, tri, dx, dy, dz)
    if inner:
        for d in range(3):
            s[NORMAL + d] = -s[NORMAL + d]
    baked(w, w.irradiance, k, u, v, inner, light)
    n = s[NORMAL : NORMAL + 3]
    for d in range(3):
        s[9 + d] = s[POSITION + d] + LIFT * n[d]
    if w.sunny[texel_at(w, k, u, v, inner)]:
        lit = sunlight(w, s[9:12], n, stack)
        for d in range(3):
            light[d] += lit * w.sun[3 + d]
    if row[TRANSLUCENCY] > 0.0 and w.patch[k, TWO_SIDED]:
        baked(w, w.irradiance, k, u, v, not inner, other)
        t = row[TRANSLUCENCY]
        for d in range(3):
            light[d] = (1.0 - t) * light[d] + t * other[d]
    f = 1.0 / np.pi
    return m, c, (c[0] * light[0] * f, c[1] * light[1] * f, c[2] * light[2] * f), glow


@_jit
def _radiance(w, tri, b1, b2, dx, dy, dz, s, light, other, stack):
    """Radiance that a hit surface sends back along the (unit) ray: diffuse, glow and one reflection."""
    m, c, body, glow = _diffuse(w, tri, b1, b2, dx, dy, dz, s, light, other, stack)
    row = w.material[m]
    metal, f0 = row[METALLIC], row[F0]
    if row[OUTDOOR] != 0.0 or (metal == 0.0 and f0 == 0.0):
        return body[0] + glow[0], body[1] + glow[1], body[2] + glow[2]
    nx, ny, nz = s[NORMAL], s[NORMAL + 1], s[NORMAL + 2]
    facing = dx * nx + dy * ny + dz * nz
    rx, ry, rz = dx - 2 * facing * nx, dy - 2 * facing * ny, dz - 2 * facing * nz
    rough = row[ROUGHNESS]
    # Schlick's Fresnel term, weakened at grazing angles where roughness hides the mirror direction.
    grazing = (1.0 - min(1.0, abs(facing))) ** 5 * (1.0 - rough)
    px, py, pz = s[9], s[10], s[11]
    keep = (1.0 - metal) * (1.0 - f0 - (1.0 - f0) * grazing)
    fr = f0 + metal * (c[0] - f0)
    fg = f0 + metal * (c[1] - f0)
    fb = f0 + metal * (c[2] - f0)
    traced = 0.0
    if row[MIRROR] != 0.0:
        traced = min(1.0, max(0.0, (fg + (1.0 - fg) * grazing - DIM_MIRROR) / MIRROR_BLEND))
    r, g, b = surroundings(w, px, py, pz, rx, ry, rz, rough)
    share = (1.0 - traced) * light[3]
    if traced > 0.0:
        _, seen, q1, q2 = trace(w.bvh, px, py, pz, rx, ry, rz, np.inf, False, stack)
        if seen < 0:
            share += traced
        else:
            _, _, there, shine = _diffuse(w, seen, q1, q2, rx, ry, rz, s, light, other, stack)
            r = share * r + traced * (there[0] + shine[0])
            g = share * g + traced * (there[1] + shine[1])
            b = share * b + traced * (there[2] + shine[2])
            share = 1.0
    r, g, b = r * share, g * share, b * share
    r *= fr + (1.0 - fr) * grazing
    g *= fg + (1.0 - fg) * grazing
    b *= fb + (1.0 - fb) * grazing
    return body[0] * keep + r + glow[0], body[1] * keep + g + glow[1], body[2] * keep + b + glow[2]


@_jit
def _sample(w, pose, px, py, focal, cx, cy, s, light, other, out, stack):
    """Writes display colour (0..2) and distance along the view axis (3) of the image place (px, py) into out.

    Returns:
        The patch that was hit, or -1.
    """
    a, b = (px - cx) / focal, (cy - py) / focal
    length = np.sqrt(a * a + b * b + 1.0)
    dx = (pose[0, 0] * a + pose[0, 1] * b - pose[0, 2]) / length
    dy = (pose[1, 0] * a + pose[1, 1] * b - pose[1, 2]) / length
    dz = (pose[2, 0] * a + pose[2, 1] * b - pose[2, 2]) / length
    t, tri, b1, b2 = trace(w.bvh, pose[0, 3], pose[1, 3], pose[2, 3], dx, dy, dz, np.inf, False, stack)
    if tri < 0:
        out[0] = out[1] = out[2] = out[3] = 0.0
        return -1
    r, g, b = _radiance(w, tri, b1, b2, dx, dy, dz, s, light, other, stack)
    e = w.exposure[0]
    out[0], out[1], out[2], out[3] = _tone(e * r), _tone(e * g), _tone(e * b), t / length
    return w.triangle[tri, 0]


@_jit
def _pixel(w, pose, x, y, focal, cx, cy, s, light, other, out, total, stack):
    """Averages the samples of one pixel into total: colour of the hits (0..2), alpha (3), centre depth (4)."""
    hits, first, mixed = 0, -2, False
    total[:] = 0.0
    lo = hi = 0.0
    k, count = 0, FEW
    while k < count:
        # The first sample is the pixel centre, where depth is exact.
        a, b = (0.5 + LATTICE[k] / MANY) % 1.0, (0.5 + 8 * LATTICE[k] / MANY) % 1.0
        patch = _sample(w, pose, x + a, y + b, focal, cx, cy, s, light, other, out, stack)
        if patch >= 0:
            hits += 1
            for d in range(3):
                total[d] += out[d]
        if k == 0:
            total[4] = out[3]
        value = 0.3 * out[0] + 0.6 * out[1] + 0.1 * out[2]
        if first == -2:
            first, lo, hi = patch, value, value
        mixed = mixed or patch != first
        lo, hi = min(lo, value), max(hi, value)
        k += 1
        if k == FEW:
            count = MANY if mixed else MORE if hi - lo > CONTRAST else FEW
    if hits:
        for d in range(3):
            total[d] /= hits
    total[3] = hits / count


@_jit
def _draw(start, step, w, pose, focal, cx, cy, image, depth):
    s, stack = np.empty(SCRATCH), np.empty(STACK_SIZE, np.int64)
    light, other, out, total = np.empty(4), np.empty(4), np.empty(4), np.empty(5)
    height, width = depth.shape
    for y in range(start, height, step):
        for x in range(width):
            _pixel(w, pose, x, y, focal, cx, cy, s, light, other, out, total, stack)
            for d in range(4):
                image[y, x, d] = np.uint8(min(255.0, 255.0 * total[d] + 0.5))
            depth[y, x] = total[4]


def draw(w: World, camera: Camera) -> tuple[UInt8[np.ndarray, "H W 4"], Float[np.ndarray, "H W"]]:
    """Draws one view.

    Args:
        w: a scene after `lighting.bake`.
        camera: where from.

    Returns:
        - **image** [H, W, 4]: uint8 sRGB with straight alpha; colour is 0 where alpha is 0.
        - **depth** [H, W]: float64 distance along the view axis of what the pixel's centre sees, 0 for nothing.
    """
    image = np.empty((camera.height, camera.width, 4), np.uint8)
    depth = np.empty((camera.height, camera.width))
    cx, cy = 0.5 * camera.width, 0.5 * camera.height
    run_striped(_draw, w, np.ascontiguousarray(camera.pose), camera.focal, cx, cy, image, depth)
    return image, depth
