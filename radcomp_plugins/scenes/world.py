"""A scene as its author writes it (materials, patches, lights) and as the kernels read it (flat arrays)."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from radcomp_plugins.scenes import bvh
from radcomp_plugins.scenes.shapes import Number, Patch, Vec
from radcomp_plugins.scenes.textures import Kind

Color = str | Vec

# Columns of a material's row.
KIND, COLORS, PARAMS, ROUGHNESS, METALLIC, F0 = 0, 1, 10, 14, 15, 16
EMISSION, TRANSLUCENCY, MIRROR, OUTDOOR, ROW = 17, 20, 21, 22, 24
# Columns of a patch's row.
VERTEX, NU, NV, MATERIAL, TWO_SIDED, WRAP, TEXEL, TEXELS_U, TEXELS_V, BACK = range(10)


def linear(color: Color) -> Float[np.ndarray, "3"]:
    """Linear RGB of "#rrggbb" in sRGB, or of three linear numbers as they are."""
    if not isinstance(color, str):
        return np.asarray(color, dtype=np.float64)
    srgb = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255.0
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        texture: which procedural texture gives the colour.
        colors: up to three colours that the texture uses.
        params: up to four numbers that the texture uses.
        roughness: 0 mirror to 1 matt.
        metallic: 0 or 1; a metal has no diffuse part and reflects in its own colour.
        f0: reflectance of a dielectric at normal incidence; 0 switches reflections off.
        emission: radiance given off, as a multiple of the colour.
        translucency: part of the light of the other side that shines through (two-sided patches).
        outdoor: unlit backdrop outside the windows; its radiance is colour times emission.
    """

    texture: Kind = Kind.PLAIN
    colors: tuple[Color, ...] = ("#b0b0b0",)
    params: tuple[Number, ...] = ()
    roughness: Number = 0.5
    metallic: Number = 0.0
    f0: Number = 0.04
    emission: Number = 0.0
    translucency: Number = 0.0
    outdoor: bool = False

    def row(self) -> Float[np.ndarray, "24"]:
        """The material as the kernels read it."""
        row = np.zeros(ROW)
        row[KIND] = self.texture
        for k in range(3):
            row[COLORS + 3 * k : COLORS + 3 * k + 3] = linear(self.colors[min(k, len(self.colors) - 1)])
        row[PARAMS : PARAMS + len(self.params)] = self.params
        row[ROUGHNESS], row[METALLIC], row[F0] = self.roughness, self.metallic, self.f0
        row[EMISSION], row[TRANSLUCENCY] = self.emission, self.translucency
        row[MIRROR] = float(self.roughness < 0.3 and (self.metallic > 0 or self.f0 > 0))
        row[OUTDOOR] = float(self.outdoor)
        return row


@dataclass(frozen=True)
class AreaLight:
    """A rectangle of light: `center` plus and minus `half_u`, `half_v`, shining to the side of half_u x half_v.

    A portal gives no light of its own: it is a window through which outdoor surfaces and the sky are sampled, and
    `radiance` is a factor on what they give, so that a view through the window need not be blinding.
    """

    center: Vec
    half_u: Vec
    half_v: Vec
    radiance: Color = (0.0, 0.0, 0.0)
    portal: bool = False
    samples: int = 48


@dataclass(frozen=True)
class BulbLight:
    """A sphere that shines to all sides with the same radiant intensity."""

    center: Vec
    radius: Number
    intensity: Color
    samples: int = 32


@dataclass(frozen=True)
class Sun:
    """Parallel light coming from `direction`, `irradiance` on a surface that faces it."""

    direction: Vec = (0.0, 0.0, 1.0)
    irradiance: Color = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn.

    Attributes:
        materials: by name.
        patches: the surfaces.
        sky: radiance of the surroundings above, at the horizon and below.
        areas, bulbs, sun: the lights.
        exposure: factor on radiance before tone mapping.
        gather: rays a lightmap texel sends out to collect the surroundings.
        smoothing: passes of a 3 x 3 filter over the collected light.
    """

    materials: dict[str, Material]
    patches: list[Patch]
    sky: tuple[Color, ...] = ((0.0, 0.0, 0.0),) * 3
    areas: tuple[AreaLight, ...] = ()
    bulbs: tuple[BulbLight, ...] = ()
    sun: Sun = field(default_factory=Sun)
    exposure: Number = 1.0
    gather: int = 64
    smoothing: int = 2


class World(NamedTuple):
    """A compiled scene: only arrays, so that kernels take it as one argument.

    Attributes:
        bvh: tree over all triangles.
        triangle: [T, 2] int32 patch and number of the triangle within it, in the order of the tree's triangles.
        patch: [P, 10] int64 rows, see the column names above.
        point, normal, coord: [V, 3] float64 vertices of all grids.
        material: [M, 24] float64 rows.
        sky: [3, 3] float64 radiance above, at the horizon, below.
        areas: [A, 14] float64 centre, half sides, radiance, portal flag, samples.
        bulbs: [B, 8] float64 centre, radius, intensity, samples.
        sun: [6] float64 direction and irradiance.
        texel: [L, 4] int32 patch, column, row, side (0 outer, 1 inner) of each lightmap texel.
        irradiance: [L, 4] float32 light arriving without the sun's direct part, and the visible part of the sky.
        radiosity: [L, 3] float32 radiance leaving by diffuse reflection and emission.
        sunny: [L] uint8, 1 where the sun reaches a texel or one beside it.
        exposure: [1] float64.
    """

    bvh: bvh.Bvh
    triangle: Int[np.ndarray, "T 2"]
    patch: Int[np.ndarray, "P 10"]
    point: Float[np.ndarray, "V 3"]
    normal: Float[np.ndarray, "V 3"]
    coord: Float[np.ndarray, "V 3"]
    material: Float[np.ndarray, "M 24"]
    sky: Float[np.ndarray, "3 3"]
    areas: Float[np.ndarray, "A 14"]
    bulbs: Float[np.ndarray, "B 8"]
    sun: Float[np.ndarray, " 6"]
    texel: Int[np.ndarray, "L 4"]
    irradiance: Float[np.ndarray, "L 4"]
    radiosity: Float[np.ndarray, "L 3"]
    sunny: UInt8[np.ndarray, " L"]
    exposure: Float[np.ndarray, " 1"]


def triangles_of(patch: Patch) -> Float[np.ndarray, "T 3 3"]:
    """Triangles of a grid: cell (column i, row j) gives number 2 (j U + i) below its diagonal and the next above."""
    p00, p10 = patch.points[:-1, :-1], patch.points[:-1, 1:]
    p01, p11 = patch.points[1:, :-1], patch.points[1:, 1:]
    lower, upper = np.stack([p00, p10, p11], axis=-2), np.stack([p00, p11, p01], axis=-2)
    return np.stack([lower, upper], axis=2).reshape(-1, 3, 3)


def _lightmap_size(patch: Patch, outdoor: bool) -> tuple[int, int]:
    if outdoor:
        return 1, 1
    u = np.linalg.norm(np.diff(patch.points, axis=1), axis=-1).sum(axis=1).max()
    v = np.linalg.norm(np.diff(patch.points, axis=0), axis=-1).sum(axis=0).max()
    least = 4 if patch.wrap else 1
    return max(least, int(np.ceil(u / patch.texel))), max(1, int(np.ceil(v / patch.texel)))


def _texel_table(patches: list[Patch], outdoor: list[bool]) -> tuple[Int[np.ndarray, "L 4"], list[list[int]]]:
    """Texels of all lightmaps, and for each patch (first texel, columns, rows, first texel of the inner side)."""
    tables, charts, used = [], [], 0
    for k, patch in enumerate(patches):
        w, h = _lightmap_size(patch, outdoor[k])
        row, column = np.divmod(np.arange(w * h), w)
        charts.append([used, w, h, used + w * h if patch.two_sided else -1])
        for side in range(1 + patch.two_sided):
            tables.append(np.stack([np.full(w * h, k), column, row, np.full(w * h, side)], axis=1))
            used += w * h
    return np.ascontiguousarray(np.concatenate(tables).astype(np.int32)), charts


def _area_rows(areas: tuple[AreaLight, ...]) -> Float[np.ndarray, "A 14"]:
    rows = [
        np.concatenate([a.center, a.half_u, a.half_v, linear(a.radiance), [float(a.portal), float(a.samples)]])
        for a in areas
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, 14)


def compile_scene(scene: Scene) -> World:
    """Builds the arrays of a scene; the lightmaps are still dark (see `lighting.bake`)."""
    names = list(scene.materials)
    outdoor = [scene.materials[p.material].outdoor for p in scene.patches]
    texel, charts = _texel_table(scene.patches, outdoor)
    triangles, owner, rows, first_vertex = [], [], [], 0
    for k, p in enumerate(scene.patches):
        tri = triangles_of(p)
        triangles.append(tri)
        owner.append(np.stack([np.full(len(tri), k), np.arange(len(tri))], axis=1))
        nv, nu = p.points.shape[0] - 1, p.points.shape[1] - 1
        first, w, h, back = charts[k]
        rows.append([first_vertex, nu, nv, names.index(p.material), p.two_sided, p.wrap, first, w, h, back])
        first_vertex += p.points.shape[0] * p.points.shape[1]
    tree = bvh.build(np.concatenate(triangles))
    bulbs = [np.concatenate([b.center, [b.radius], linear(b.intensity), [float(b.samples)]]) for b in scene.bulbs]
    towards = np.asarray(scene.sun.direction, dtype=np.float64)
    return World(
        bvh=tree,
        triangle=np.ascontiguousarray(np.concatenate(owner)[tree.order].astype(np.int32)),
        patch=np.array(rows, dtype=np.int64),
        point=np.concatenate([p.points.reshape(-1, 3) for p in scene.patches]),
        normal=np.concatenate([p.normals.reshape(-1, 3) for p in scene.patches]),
        coord=np.concatenate([p.coords.reshape(-1, 3) for p in scene.patches]),
        material=np.array([scene.materials[name].row() for name in names]),
        sky=np.array([linear(c) for c in scene.sky]),
        areas=_area_rows(scene.areas),
        bulbs=np.array(bulbs, dtype=np.float64).reshape(-1, 8),
        sun=np.concatenate([towards / np.linalg.norm(towards), linear(scene.sun.irradiance)]),
        texel=texel,
        irradiance=np.zeros((len(texel), 4), np.float32),
        radiosity=np.zeros((len(texel), 3), np.float32),
        sunny=np.zeros(len(texel), np.uint8),
        exposure=np.array([scene.exposure]),
    )
