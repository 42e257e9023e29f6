"""Light that does not depend on the viewer, baked once into lightmaps so that all views agree to the last bit.

Every texel casts its rays once: shadow rays to the lights, and cosine-weighted rays whose first hits are remembered.
Bounces are then gathers over the remembered hits.
"""

import numba
import numpy as np
from jaxtyping import Float, Int, UInt8

from radcomp_plugins.core.threads import run_striped
from radcomp_plugins.scenes.bvh import STACK_SIZE, faces_away, trace
from radcomp_plugins.scenes.surface import COORD, NORMAL, POSITION, SCRATCH, evaluate, locate, sky, texel_at
from radcomp_plugins.scenes.textures import albedo, random3
from radcomp_plugins.scenes.world import (
    EMISSION,
    MATERIAL,
    OUTDOOR,
    TEXELS_U,
    TEXELS_V,
    TWO_SIDED,
    WRAP,
    World,
)

# Steps of the additive recurrence with the plastic number, a two-dimensional low-discrepancy sequence.
STEP_A, STEP_B = 0.7548776662466927, 0.5698402909980532
LIFT = 3e-4
"""Rays start this far above the surface, in world units."""
BURIED = 0.25
"""A texel that sees more than this part of its rays end on the inner side of an object lies inside that object."""

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def _outdoor_radiance(w, tri, b1, b2, s):
    """Radiance of an outdoor surface, or black for anything else."""
    k, u, v = locate(w, tri, b1, b2)
    row = w.material[w.patch[k, MATERIAL]]
    if row[OUTDOOR] == 0.0:
        return 0.0, 0.0, 0.0
    evaluate(w, k, u, v, s)
    c = albedo(row, s[COORD], s[COORD + 1], s[COORD + 2])
    return c[0] * row[EMISSION], c[1] * row[EMISSION], c[2] * row[EMISSION]


@_jit
def _from_areas(w, p, n, ra, rb, out, stack, s):
    """Adds the irradiance of rectangles and portals at p with normal n to out[0:3]."""
    for k in range(w.areas.shape[0]):
        light = w.areas[k]
        count = int(light[13])
        nx = light[4] * light[8] - light[5] * light[7]
        ny = light[5] * light[6] - light[3] * light[8]
        nz = light[3] * light[7] - light[4] * light[6]
        for q in range(count):
            a = 2.0 * ((ra + q * STEP_A) % 1.0) - 1.0
            b = 2.0 * ((rb + q * STEP_B) % 1.0) - 1.0
            dx = light[0] + a * light[3] + b * light[6] - p[0]
            dy = light[1] + a * light[4] + b * light[7] - p[1]
            dz = light[2] + a * light[5] + b * light[8] - p[2]
            here, there = dx * n[0] + dy * n[1] + dz * n[2], -(dx * nx + dy * ny + dz * nz)
            if here <= 0.0 or there <= 0.0:
                continue
            square = dx * dx + dy * dy + dz * dz
            # nx, ny, nz has a quarter of the rectangle's area as its length.
            gain = 4.0 * here * there / (square * square * count)
            if light[12] == 0.0:
                if trace(w.bvh, p[0], p[1], p[2], dx, dy, dz, 1.0, True, stack)[1] < 0:
                    for d in range(3):
                        out[d] += gain * light[9 + d]
                continue
            _, tri, b1, b2 = trace(w.bvh, p[0], p[1], p[2], dx, dy, dz, np.inf, False, stack)
            c = sky(w, dz / np.sqrt(square)) if tri < 0 else _outdoor_radiance(w, tri, b1, b2, s)
            out[0] += gain * light[9] * c[0]
            out[1] += gain * light[10] * c[1]
            out[2] += gain * light[11] * c[2]


@_jit
def _from_bulbs(w, p, n, ra, rb, out, stack):
    """Adds the irradiance of spherical lights at p with normal n to out[0:3]."""
    for k in range(w.bulbs.shape[0]):
        bulb = w.bulbs[k]
        count = int(bulb[7])
        for q in range(count):
            z = 2.0 * ((ra + q * STEP_A) % 1.0) - 1.0
            phi = 6.283185307179586 * ((rb + q * STEP_B) % 1.0)
            r = bulb[3] * np.sqrt(max(0.0, 1.0 - z * z))
            dx = bulb[0] + r * np.cos(phi) - p[0]
            dy = bulb[1] + r * np.sin(phi) - p[1]
            dz = bulb[2] + bulb[3] * z - p[2]
            here = dx * n[0] + dy * n[1] + dz * n[2]
            if here <= 0.0 or trace(w.bvh, p[0], p[1], p[2], dx, dy, dz, 1.0, True, stack)[1] >= 0:
                continue
            square = dx * dx + dy * dy + dz * dz
            gain = here / (square * np.sqrt(square) * count)
            for d in range(3):
                out[d] += gain * bulb[4 + d]


@_jit
def sunlight(w, p, n, stack):
    """Cosine between the sun and normal n where the sun is seen from p, else 0."""
    cosine = n[0] * w.sun[0] + n[1] * w.sun[1] + n[2] * w.sun[2]
    if cosine <= 0.0 or w.sun[3] + w.sun[4] + w.sun[5] == 0.0:
        return 0.0
    # Outdoor surfaces are a backdrop: they do not stand in the sun's way.
    _, tri, _, _ = trace(w.bvh, p[0], p[1], p[2], w.sun[0], w.sun[1], w.sun[2], np.inf, False, stack)
    if tri >= 0 and w.material[w.patch[w.triangle[tri, 0], MATERIAL], OUTDOOR] == 0.0:
        return 0.0
    return cosine


@_jit
def _collect(w, p, n, ra, rb, hits, out, stack, s):
    """Casts cosine-weighted rays: hit texels into hits, sky light into out[0:3], sky part into out[3].

    Returns:
        Part of the rays that ended on the inner side of a closed object.
    """
    sign = 1.0 if n[2] >= 0.0 else -1.0
    a = -1.0 / (sign + n[2])
    b = n[0] * n[1] * a
    t0, t1, t2 = 1.0 + sign * n[0] * n[0] * a, sign * b, -sign * n[0]
    u0, u1, u2 = b, sign + n[1] * n[1] * a, -n[1]
    count, buried = hits.shape[0], 0
    portals = False
    for k in range(w.areas.shape[0]):
        portals = portals or w.areas[k, 12] != 0.0
    for q in range(count):
        r2 = (q + 0.5) / count
        phi = 6.283185307179586 * ((rb + q * 0.6180339887498949 + ra) % 1.0)
        r, z = np.sqrt(r2), np.sqrt(1.0 - r2)
        x, y = r * np.cos(phi), r * np.sin(phi)
        dx, dy, dz = x * t0 + y * u0 + z * n[0], x * t1 + y * u1 + z * n[1], x * t2 + y * u2 + z * n[2]
        _, tri, b1, b2 = trace(w.bvh, p[0], p[1], p[2], dx, dy, dz, np.inf, False, stack)
        hits[q] = -1
        if tri < 0:
            out[3] += 1.0 / count
            if not portals:
                c = sky(w, dz)
                for d in range(3):
                    out[d] += np.pi * c[d] / count
            continue
        k, u, v = locate(w, tri, b1, b2)
        if w.material[w.patch[k, MATERIAL], OUTDOOR] != 0.0:
            out[3] += 1.0 / count
            continue
        inner = faces_away(w.bvh, tri, dx, dy, dz)
        if inner and w.patch[k, TWO_SIDED] == 0:
            buried += 1
            continue
        hits[q] = texel_at(w, k, u, v, inner)
    return buried / count


@_jit
def _cast(start, step, w, hits, direct, sun, own, valid):
    """Per texel: remembered hits, direct light and sky part [L, 4], the sun's light [L, 3], colour and glow [L, 6]."""
    s, stack = np.empty(SCRATCH), np.empty(STACK_SIZE, np.int64)
    p, n, out = np.empty(3), np.empty(3), np.empty(4)
    for q in range(start, w.texel.shape[0], step):
        k, i, j, side = w.texel[q, 0], w.texel[q, 1], w.texel[q, 2], w.texel[q, 3]
        u, v = (i + 0.5) / w.patch[k, TEXELS_U], (j + 0.5) / w.patch[k, TEXELS_V]
        row = w.material[w.patch[k, MATERIAL]]
        evaluate(w, k, u, v, s)
        c = albedo(row, s[COORD], s[COORD + 1], s[COORD + 2])
        for d in range(3):
            own[q, d], own[q, 3 + d] = c[d], c[d] * row[EMISSION]
        if row[OUTDOOR] != 0.0:
            hits[q] = -1
            valid[q] = 1
            continue
        sign = -1.0 if side else 1.0
        for d in range(3):
            n[d] = sign * s[NORMAL + d]
            p[d] = s[POSITION + d] + LIFT * n[d]
        ra, rb = random3(q, 17, 3), random3(q, 29, 5)
        out[:] = 0.0
        buried = _collect(w, p, n, ra, rb, hits[q], out, stack, s)
        valid[q] = 1 if buried <= BURIED else 0
        if valid[q]:
            _from_areas(w, p, n, ra, rb, out, stack, s)
            _from_bulbs(w, p, n, rb, ra, out, stack)
            cosine = sunlight(w, p, n, stack)
            for d in range(3):
                sun[q, d] = cosine * w.sun[3 + d]
        for d in range(4):
            direct[q, d] = out[d]


@_jit
def _bounce(start, step, hits, radiosity, indirect):
    """Irradiance that the remembered hits send back."""
    count = hits.shape[1]
    for q in range(start, hits.shape[0], step):
        r, g, b = 0.0, 0.0, 0.0
        for k in range(count):
            h = hits[q, k]
            if h >= 0:
                r += radiosity[h, 0]
                g += radiosity[h, 1]
                b += radiosity[h, 2]
        indirect[q, 0], indirect[q, 1], indirect[q, 2] = np.pi * r / count, np.pi * g / count, np.pi * b / count


@_jit
def _spread(start, step, w, maps, valid, out, filled, fill_only):
    """One pass of a 3 x 3 binomial filter within each chart over valid texels; with fill_only, holes are filled."""
    channels = maps.shape[1]
    total = np.empty(channels)
    for q in range(start, maps.shape[0], step):
        if fill_only and valid[q]:
            out[q], filled[q] = maps[q], 1
            continue
        k, i, j = w.texel[q, 0], w.texel[q, 1], w.texel[q, 2]
        nu, nv = w.patch[k, TEXELS_U], w.patch[k, TEXELS_V]
        first = q - j * nu - i
        total[:] = 0.0
        weight = 0.0
        for b in range(max(0, j - 1), min(nv, j + 2)):
            for a in range(i - 1, i + 2):
                if w.patch[k, WRAP]:
                    a = (a + nu) % nu
                elif a < 0 or a >= nu:
                    continue
                near = first + b * nu + a
                if valid[near]:
                    g = (2.0 if a == i else 1.0) * (2.0 if b == j else 1.0)
                    weight += g
                    for d in range(channels):
                        total[d] += g * maps[near, d]
        filled[q] = 1 if weight > 0.0 else 0
        for d in range(channels):
            out[q, d] = total[d] / weight if weight > 0.0 else 0.0


def _filter(
    w: World, maps: Float[np.ndarray, "L D"], valid: UInt8[np.ndarray, " L"], passes: int, fill_only: bool
) -> Float[np.ndarray, "L D"]:
    for _ in range(passes):
        out, filled = np.zeros_like(maps), np.zeros_like(valid)
        run_striped(_spread, w, maps, valid, out, filled, fill_only)
        maps, valid = out, (filled if fill_only else valid)
    return maps


def bake(w: World, gather: int, smoothing: int = 2, bounces: int = 4) -> None:
    """Fills `w.irradiance`, `w.radiosity` and `w.sunny`.

    Args:
        w: a compiled scene; its maps are written in place.
        gather: rays per texel that collect the surroundings.
        smoothing: passes of the filter over the light that comes from other surfaces.
        bounces: how often light is reflected between surfaces.
    """
    count = len(w.texel)
    hits: Int[np.ndarray, "L G"] = np.empty((count, gather), np.int32)
    direct, sun = np.zeros((count, 4), np.float32), np.zeros((count, 3), np.float32)
    own, valid = np.zeros((count, 6), np.float32), np.zeros(count, np.uint8)
    run_striped(_cast, w, hits, direct, sun, own, valid)
    direct = _filter(w, direct, valid, 1, False)
    indirect = np.zeros((count, 3), np.float32)
    radiosity = np.empty_like(indirect)
    for _ in range(bounces):
        radiosity[:] = own[:, 3:] + own[:, :3] * (direct[:, :3] + sun + indirect) / np.pi
        run_striped(_bounce, hits, radiosity, indirect)
    indirect = _filter(w, indirect, valid, smoothing, False)
    light = np.concatenate([direct[:, :3] + indirect, direct[:, 3:]], axis=1)
    light = _filter(w, light, valid, 8, True)
    w.irradiance[:] = light
    w.sunny[:] = _filter(w, sun[:, :1], np.ones_like(valid), 1, False)[:, 0] > 0
    w.radiosity[:] = own[:, 3:] + own[:, :3] * (light[:, :3] + sun) / np.pi
