"""What a ray meets: position, normal, texture coordinate and baked light of a place on a patch (numba kernels).

A place is (patch, u, v) with u, v in 0..1 over the grid. `evaluate` writes into a scratch array of `SCRATCH` numbers.
"""

import numba
import numpy as np

from radcomp_plugins.scenes.textures import smoothstep
from radcomp_plugins.scenes.world import BACK, NU, NV, TEXEL, TEXELS_U, TEXELS_V, VERTEX, WRAP

POSITION, NORMAL, COORD, SCRATCH = 0, 3, 6, 12

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def locate(w, tri, b1, b2):
    """Patch and grid place of a hit on triangle `tri` with barycentric weights b1, b2."""
    k, local = w.triangle[tri, 0], w.triangle[tri, 1]
    nu, nv = w.patch[k, NU], w.patch[k, NV]
    cell = local >> 1
    if local & 1:
        fu, fv = b1, b1 + b2
    else:
        fu, fv = b1 + b2, b2
    return k, (cell % nu + fu) / nu, (cell // nu + fv) / nv


@_jit
def evaluate(w, k, u, v, s):
    """Writes position, unit normal (outer side) and texture coordinate of a place into s."""
    nu, nv = w.patch[k, NU], w.patch[k, NV]
    x, y = u * nu, v * nv
    i, j = min(nu - 1, max(0, int(x))), min(nv - 1, max(0, int(y)))
    fu, fv = x - i, y - j
    a = w.patch[k, VERTEX] + j * (nu + 1) + i
    c = a + nu + 1
    wa, wb, wc, wd = (1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv
    length = 0.0
    for d in range(3):
        s[POSITION + d] = wa * w.point[a, d] + wb * w.point[a + 1, d] + wc * w.point[c, d] + wd * w.point[c + 1, d]
        s[COORD + d] = wa * w.coord[a, d] + wb * w.coord[a + 1, d] + wc * w.coord[c, d] + wd * w.coord[c + 1, d]
        n = wa * w.normal[a, d] + wb * w.normal[a + 1, d] + wc * w.normal[c, d] + wd * w.normal[c + 1, d]
        s[NORMAL + d] = n
        length += n * n
    length = 1.0 / np.sqrt(max(length, 1e-30))
    for d in range(3):
        s[NORMAL + d] *= length


@_jit
def texel_at(w, k, u, v, inner):
    """The lightmap texel that a place lies in; `inner` picks the inner side of a two-sided patch."""
    nu, nv = w.patch[k, TEXELS_U], w.patch[k, TEXELS_V]
    first = w.patch[k, TEXEL]
    if inner and w.patch[k, BACK] >= 0:
        first = w.patch[k, BACK]
    return first + min(nv - 1, int(v * nv)) * nu + min(nu - 1, int(u * nu))


@_jit
def baked(w, maps, k, u, v, inner, out):
    """Writes the bilinearly interpolated value of a lightmap at a place into out."""
    nu, nv = w.patch[k, TEXELS_U], w.patch[k, TEXELS_V]
    first = w.patch[k, TEXEL]
    if inner and w.patch[k, BACK] >= 0:
        first = w.patch[k, BACK]
    x, y = u * nu - 0.5, v * nv - 0.5
    i, j = int(np.floor(x)), int(np.floor(y))
    fu, fv = x - i, y - j
    if w.patch[k, WRAP]:
        i0, i1 = (i + nu) % nu, (i + 1) % nu
    else:
        i0, i1 = min(nu - 1, max(0, i)), min(nu - 1, max(0, i + 1))
    j0, j1 = min(nv - 1, max(0, j)), min(nv - 1, max(0, j + 1))
    for d in range(maps.shape[1]):
        low = maps[first + j0 * nu + i0, d] * (1 - fu) + maps[first + j0 * nu + i1, d] * fu
        high = maps[first + j1 * nu + i0, d] * (1 - fu) + maps[first + j1 * nu + i1, d] * fu
        out[d] = low * (1 - fv) + high * fv


@_jit
def sky(w, dz):
    """Radiance of the surroundings in a direction whose z component is `dz`, without the lights."""
    if dz >= 0.0:
        t, a = np.sqrt(dz), 0
    else:
        t, a = smoothstep(0.0, 0.35, -dz), 2
    return (
        w.sky[1, 0] + (w.sky[a, 0] - w.sky[1, 0]) * t,
        w.sky[1, 1] + (w.sky[a, 1] - w.sky[1, 1]) * t,
        w.sky[1, 2] + (w.sky[a, 2] - w.sky[1, 2]) * t,
    )


@_jit
def surroundings(w, ox, oy, oz, dx, dy, dz, roughness):
    """Radiance that a ray which meets no surface brings back: sky and area lights, blurred by `roughness`."""
    r, g, b = sky(w, dz)
    for k in range(w.areas.shape[0]):
        if w.areas[k, 12] != 0.0:
            continue
        c, hu, hv = w.areas[k, 0:3], w.areas[k, 3:6], w.areas[k, 6:9]
        nx = hu[1] * hv[2] - hu[2] * hv[1]
        ny = hu[2] * hv[0] - hu[0] * hv[2]
        nz = hu[0] * hv[1] - hu[1] * hv[0]
        facing = -(dx * nx + dy * ny + dz * nz)
        if facing <= 0.0:
            continue
        t = -((c[0] - ox) * nx + (c[1] - oy) * ny + (c[2] - oz) * nz) / facing
        if t <= 0.0:
            continue
        px, py, pz = ox + t * dx - c[0], oy + t * dy - c[1], oz + t * dz - c[2]
        uu = hu[0] * hu[0] + hu[1] * hu[1] + hu[2] * hu[2]
        vv = hv[0] * hv[0] + hv[1] * hv[1] + hv[2] * hv[2]
        a = (px * hu[0] + py * hu[1] + pz * hu[2]) / uu
        e = (px * hv[0] + py * hv[1] + pz * hv[2]) / vv
        # The lobe of a rough mirror is about twice its squared roughness wide; the box edge gets that blur.
        lobe = 0.02 + 1.6 * roughness * roughness
        wa, wb = lobe * t / np.sqrt(uu), lobe * t / np.sqrt(vv)
        weight = smoothstep(1.0 + wa, 1.0 - wa, abs(a)) * smoothstep(1.0 + wb, 1.0 - wb, abs(e))
        weight *= min(1.0, 1.0 / wa) * min(1.0, 1.0 / wb)
        r += w.areas[k, 9] * weight
        g += w.areas[k, 10] * weight
        b += w.areas[k, 11] * weight
    return r, g, b
