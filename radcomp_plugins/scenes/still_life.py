"""`still-life`: a glazed vase with twigs, books, fruit, a cup, a checked cloth and a brass wireframe on a plinth.

The group is about 2.4 units wide around the origin, inside the box of +-1.5 that nerfstudio's blender parser assumes.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from radcomp_plugins.scenes.render import Camera
from radcomp_plugins.scenes.shapes import (
    Number,
    Patch,
    Vec,
    box,
    disc,
    grid,
    leaf,
    place,
    quad,
    revolve,
    rotation_z,
    rounded_box,
    smooth,
    sphere,
    tube,
)
from radcomp_plugins.scenes.textures import TITLES, Kind
from radcomp_plugins.scenes.world import AreaLight, Material, Scene

TOP = -0.5
"""Height of the plinth's top."""

MATERIALS = {
    "stone": Material(Kind.TERRAZZO, ("#e6ded2", "#c98b6a", "#5f7f7a"), (0.1,), roughness=0.22, f0=0.035),
    "plaster": Material(Kind.PLASTER, ("#e9e4da", "#d9d2c5"), roughness=0.9, f0=0.0),
    "glaze": Material(Kind.GLAZE, ("#1f6f78", "#eadfca", "#123c46"), (0.36, 0.16), roughness=0.08, f0=0.055),
    "stem": Material(Kind.PLAIN, ("#6b5a3c",), roughness=0.7, f0=0.02),
    "leaf": Material(Kind.LEAF, ("#5f7d63", "#8ea88a", "#b9c9ad"), roughness=0.45, f0=0.04, translucency=0.3),
    "button": Material(Kind.FABRIC, ("#e0a91b", "#f3c945"), (70.0,), roughness=0.9, f0=0.0),
    "brass": Material(Kind.PLAIN, ("#d9a94e",), roughness=0.16, metallic=1.0),
    "chrome": Material(Kind.PLAIN, ("#e8e6e3",), roughness=0.02, metallic=1.0),
    "pear": Material(Kind.FRUIT, ("#a9a83a", "#c2552d", "#6b5a22"), (38.0, 0.55), roughness=0.28, f0=0.04),
    "plum": Material(Kind.FRUIT, ("#4b2547", "#7a3a5c", "#c9b3c9"), (30.0, 0.35), roughness=0.2, f0=0.04),
    "lemon": Material(Kind.FRUIT, ("#e8c02c", "#efd258", "#c99a17"), (46.0, 0.6), roughness=0.3, f0=0.04),
    "cup": Material(Kind.STRIPES, ("#f0e9dc", "#b5533c", "#24505a"), (0.062, 0.34), roughness=0.12, f0=0.05),
    "cup inside": Material(Kind.PLAIN, ("#f0e9dc",), roughness=0.12, f0=0.05),
    "tea": Material(Kind.PLAIN, ("#5e2f12",), roughness=0.03, f0=0.04),
    "cloth": Material(Kind.GINGHAM, ("#efe9dd", "#3f6075"), (0.045,), roughness=0.95, f0=0.0),
    "pages": Material(Kind.PAGES, ("#efe6d2", "#cfc3a8"), roughness=0.95, f0=0.0),
    "letter": Material(Kind.TEXT, ("#f4eee1", "#2d2a33"), (0.026, 0.17, 0.24), roughness=0.9, f0=0.0),
    "wood": Material(Kind.WOOD, ("#7a4a2a", "#b98252"), (0.035,), roughness=0.26, f0=0.04),
}
for _name, _cover, _ink, _title, _size in (
    ("red", "#96352b", "#e9cf94", "RADCOMP", 0.062),
    ("blue", "#203f5b", "#d8c59a", "LIGHT AND FORM", 0.031),
):
    MATERIALS[f"{_name} cover"] = Material(
        Kind.TITLE, (_cover, _ink), (TITLES.index(_title), _size, 0.27, 0.17), roughness=0.4, f0=0.03
    )
    MATERIALS[f"{_name} spine"] = Material(
        Kind.TITLE, (_cover, _ink), (TITLES.index(_title), 0.7 * _size, 0.0, 0.0), roughness=0.4, f0=0.03
    )


def _plinth() -> list[Patch]:
    """A terrazzo slab with a rounded rim on a fluted drum."""
    rim = smooth([(1.0, -0.075), (1.025, -0.06), (1.03, -0.038), (1.025, -0.015), (1.0, 0.0)], 4)
    drum = revolve([(0.9, -0.27), (0.9, -0.07)], "plaster", sides=240, flutes=40, flute_depth=0.035, texel=0.02)
    return [
        disc(1.0, "stone", texel=0.016),
        revolve(rim, "stone", sides=96, texel=0.03),
        *place([disc(1.0, "stone", down=True, texel=0.05)], (0, 0, -0.075)),
        drum,
        *place([disc(0.9, "plaster", down=True, texel=0.1)], (0, 0, -0.27)),
    ]


def vase(rng: np.random.Generator) -> list[Patch]:
    """A glazed bottle with an open neck, twigs with leaves and three billy buttons in it."""
    outside = smooth(
        [(0.11, 0.0), (0.155, 0.02), (0.235, 0.2), (0.2, 0.38), (0.085, 0.49), (0.07, 0.58), (0.1, 0.63)], 8
    )
    inside = smooth([(0.088, 0.63), (0.058, 0.57), (0.07, 0.48), (0.0, 0.3)], 6)
    patches = [revolve(np.vstack([outside, inside]), "glaze", sides=72, texel=0.018)]
    for turn, reach, height in [(20, 0.42, 0.98), (140, 0.34, 1.12), (255, 0.46, 0.9)]:
        path = smooth(
            [(0, 0, 0.4), (0.02, 0.01, 0.62), (0.3 * reach, 0.03, 0.5 * (0.62 + height)), (reach, -0.02, height)], 8
        )
        twig = [tube(path, np.linspace(0.011, 0.004, len(path)), "stem", texel=0.04)]
        for step, at in enumerate(range(11, len(path), 2)):
            size = 0.15 - 0.006 * step + 0.02 * rng.random()
            blade = leaf(size, 0.62 * size, "leaf", droop=0.15 + 0.3 * rng.random())
            turned = 75 * (-1) ** step + 40 * rng.random() - 20
            twig += place([blade], path[at], yaw=turned, tilt=(40 * rng.random() - 20, -20 - 35 * rng.random()))
        twig += place([leaf(0.12, 0.06, "leaf", droop=0.1)], path[-1], tilt=(0, -50))
        patches += place(twig, yaw=turn + 8 * rng.random())
    for turn, reach, height in [(75, 0.2, 0.98), (190, 0.14, 1.1), (320, 0.24, 0.86)]:
        path = smooth([(0, 0, 0.4), (0.01, 0.0, 0.62), (reach, 0.0, height)], 10)
        flower = [tube(path, 0.0065, "stem", texel=0.04), *place([sphere(0.052, "button", sides=32)], path[-1])]
        patches += place(flower, yaw=turn)
    return patches


def _book(color: str, size: Vec) -> list[Patch]:
    """A closed book lying on its back cover, the spine along -y."""
    x, y, z = size
    board = 0.012
    cover = (f"{color} spine",) * 4 + (f"{color} cover", f"{color} spine")
    plain = (f"{color} spine",) * 6
    return [
        *box((x, y, board), plain, texel=0.03),
        *place(box((x - 0.03, y - 0.03, z - 2 * board), "pages", texel=0.02), (0, 0.012, board)),
        *place(box((x, y, board), cover, texel=0.015), (0, 0, z - board)),
        *place(box((x, board, z - 2 * board), plain, texel=0.02), (0, -0.5 * (y - board), board)),
    ]


def stack_of_books(colors: Sequence[str]) -> list[Patch]:
    """Closed books on top of each other, each a little smaller and turned."""
    patches: list[Patch] = []
    for k, color in enumerate(colors):
        size = (0.64 - 0.06 * k, 0.46 - 0.06 * k, 0.08)
        patches += place(_book(color, size), (0, 0, 0.0802 * k), yaw=-16.0 * k)
    return patches


def kettle() -> list[Patch]:
    """A polished kettle with a wooden handle."""
    body = smooth([(0.0, 0.0), (0.11, 0.0), (0.125, 0.02), (0.11, 0.12), (0.07, 0.175), (0.045, 0.185)], 6)
    lid = smooth([(0.05, 0.183), (0.04, 0.2), (0.012, 0.207), (0.018, 0.225), (0.0, 0.235)], 5)
    spout = smooth([(0.1, 0, 0.05), (0.155, 0, 0.09), (0.17, 0, 0.15), (0.2, 0, 0.175)], 6)
    bow = smooth([(0.085, 0, 0.16), (0.075, 0, 0.26), (0.0, 0, 0.3), (-0.075, 0, 0.26), (-0.085, 0, 0.16)], 6)
    return [
        revolve(body, "chrome", sides=64, texel=0.02),
        revolve(lid, "chrome", sides=40, texel=0.02),
        tube(spout, np.linspace(0.024, 0.012, len(spout)), "chrome", sides=14, texel=0.02),
        tube(bow, 0.009, "black", sides=10, texel=0.03),
    ]


def pear() -> list[Patch]:
    """A pear of radius 0.14 with its stalk, the neck leaning a little."""
    profile = smooth(
        [
            (0.0, 0.012),
            (0.06, 0.0),
            (0.135, 0.08),
            (0.13, 0.16),
            (0.075, 0.25),
            (0.052, 0.31),
            (0.03, 0.345),
            (0.0, 0.348),
        ],
        8,
    )
    profile[:, 0] = np.maximum(profile[:, 0], 0.0)
    body = revolve(profile, "pear", sides=56, texel=0.016)
    lean = body.points.copy()
    lean[..., 0] += 0.5 * np.maximum(body.points[..., 2] - 0.12, 0.0) ** 2
    stalk = smooth([(0.024, 0, 0.34), (0.03, 0.005, 0.38), (0.055, 0.0, 0.42)], 4)
    return [
        grid(lean, "pear", coords=body.coords, wrap=True, texel=0.016),
        tube(stalk, np.linspace(0.007, 0.01, len(stalk)), "stem", texel=0.04),
    ]


def cup() -> list[Patch]:
    """A striped cup with tea in it, a handle, and a saucer."""
    outside = smooth([(0.0, 0.0), (0.075, 0.0), (0.085, 0.012), (0.125, 0.11), (0.145, 0.205), (0.146, 0.215)], 6)
    inside = smooth([(0.146, 0.215), (0.138, 0.216), (0.118, 0.12), (0.0, 0.08)], 6)
    saucer = smooth(
        [(0.0, 0.0), (0.1, 0.0), (0.2, 0.028), (0.245, 0.05), (0.236, 0.055), (0.12, 0.022), (0.0, 0.02)], 6
    )
    bow = [(0.118, 0, 0.07), (0.19, 0, 0.075), (0.225, 0, 0.125), (0.2, 0, 0.175), (0.13, 0, 0.18)]
    above = place(
        [
            revolve(outside, "cup", sides=64, coords="uv", texel=0.016),
            revolve(inside, "cup inside", sides=64, texel=0.02),
            tube(smooth(bow, 6), 0.014, "cup inside", sides=10, texel=0.02),
            *place([disc(0.13, "tea", texel=0.03)], (0, 0, 0.165)),
        ],
        (0, 0, 0.02),
    )
    return [revolve(saucer, "cup", sides=72, coords="uv", texel=0.016), *above]


def wireframe(radius: Number) -> list[Patch]:
    """Edges of an icosahedron as brass rods with small knots, standing on one face, a polished ball inside."""
    phi = 0.5 * (1 + math.sqrt(5))
    corners = np.array([(0, a, b * phi) for a in (-1, 1) for b in (-1, 1)], dtype=np.float64)
    corners = np.vstack([np.roll(corners, k, axis=1) for k in range(3)])
    corners *= radius / np.linalg.norm(corners[0])
    axis = (
        corners[3] + corners[1] + corners[[k for k in range(12) if _close(corners, k, 3) and _close(corners, k, 1)][0]]
    )
    axis /= np.linalg.norm(axis)
    side = np.cross(axis, (0.3, 0.9, 0.1))
    side /= np.linalg.norm(side)
    corners = corners @ np.stack([side, np.cross(axis, side), axis], axis=1)
    patches = []
    for a in range(12):
        patches += place([sphere(0.012, "brass", sides=12)], corners[a])
        for b in range(a + 1, 12):
            if _close(corners, a, b):
                patches.append(tube([corners[a], corners[b]], 0.006, "brass", texel=0.05))
    patches += place([sphere(0.1, "chrome", sides=64)], (0, 0, corners[:, 2].min() + 0.1 + 0.006))
    return place(patches, (0, 0, 0.006 - corners[:, 2].min()))


def _close(corners: Float[np.ndarray, "12 3"], a: int, b: int) -> bool:
    """Whether two corners of the icosahedron share an edge."""
    return bool(0 < np.linalg.norm(corners[a] - corners[b]) < 1.2 * np.linalg.norm(corners[0]) * 0.951)


def _cloth(rng: np.random.Generator) -> list[Patch]:
    """A checked cloth with soft folds lying on the slab."""
    u, v = np.meshgrid(np.linspace(-0.38, 0.38, 39), np.linspace(-0.32, 0.32, 33))
    phase = rng.random(3) * 6.28
    folds = 0.5 + 0.5 * np.sin(11 * u + 5 * v + phase[0] + 1.2 * np.sin(4 * v + phase[1]))
    z = 0.004 + 0.016 * folds * (np.abs(u) / 0.38) ** 1.5 + 0.004 * np.sin(9 * v + phase[2]) ** 2
    points = np.stack([u + 0.012 * np.sin(7 * v), v + 0.015 * np.sin(6 * u), z], axis=-1)
    coords = np.stack([u, v, np.zeros_like(u)], axis=-1)
    return [grid(points, "cloth", coords=coords, two_sided=True, texel=0.015)]


def lemon() -> list[Patch]:
    """A lemon about the origin, its axis along z."""
    profile = smooth(
        [(0.0, -0.115), (0.018, -0.1), (0.06, -0.075), (0.083, 0.0), (0.06, 0.075), (0.02, 0.1), (0.0, 0.118)], 6
    )
    return [revolve(np.maximum(profile, (0.0, -1.0)), "lemon", sides=48, texel=0.016)]


def scene(seed: int) -> Scene:
    """The still life; `seed` varies the twigs, the folds and the turn of things."""
    rng = np.random.default_rng(seed)
    turn = lambda: float(rng.uniform(-6, 6))  # noqa: E731
    letter = quad((-0.2, -0.27, 0.0), (0.4, 0, 0), (0, 0.54, 0), "letter", two_sided=True, texel=0.02)
    letter = grid(letter.points, "letter", coords=letter.coords - (0.2, 0.27, 0), two_sided=True, texel=0.02)
    patches = [
        *_plinth(),
        *place(vase(rng), (-0.26, 0.36, 0.0), yaw=turn()),
        *place(stack_of_books(("blue", "red")), (0.42, 0.3, 0.0), yaw=24 + turn()),
        *place(pear(), (0.36, 0.3, 0.16), yaw=200 + turn(), scale=0.95),
        *place(_cloth(rng), (0.24, -0.45, 0.0), yaw=-14 + turn()),
        *place(cup(), (0.3, -0.38, 0.013), yaw=-50 + turn()),
        *place(lemon(), (0.04, -0.6, 0.092), yaw=40 + turn(), tilt=(0, 84)),
        *place(pear(), (0.7, -0.14, 0.0), yaw=60 + turn(), scale=0.85),
        *place(wireframe(0.27), (-0.5, -0.42, 0.0), yaw=turn()),
        *place([sphere(0.082, "plum")], (-0.06, -0.2, 0.082)),
        *place([sphere(0.075, "plum")], (-0.19, -0.12, 0.075), yaw=100),
        *place([letter], (-0.62, 0.05, 0.003), yaw=38 + turn()),
        *place(rounded_box((0.5, 0.022, 0.022), 0.009, "wood", cells=3), (-0.6, 0.1, 0.004), yaw=70 + turn()),
    ]
    lights = (
        AreaLight((-2.3, -1.9, 2.9), (0.75, -0.9, 0.0), (0.6, 0.5, 0.8), (15.0, 13.6, 11.6), samples=28),
        AreaLight((2.9, 0.6, 1.6), (0.0, 0.9, 0.0), (0.2, 0.0, -1.0), (3.2, 3.6, 4.2), samples=14),
        AreaLight((0.3, 3.0, 2.4), (1.3, 0.0, 0.0), (0.0, -0.3, -0.35), (6.5, 6.2, 5.8), samples=14),
    )
    lights = tuple(_towards_middle(light) for light in lights)
    sky = ((0.62, 0.66, 0.72), (0.5, 0.5, 0.5), (0.36, 0.34, 0.32))
    return Scene(MATERIALS, place(patches, (0, 0, TOP), scale=1.15), sky, lights, exposure=0.41, gather=64)


def _towards_middle(light: AreaLight) -> AreaLight:
    """The light with its second side flipped, if need be, so that it shines to the origin."""
    if np.dot(np.cross(light.half_u, light.half_v), light.center) < 0:
        return light
    return AreaLight(light.center, light.half_u, tuple(-c for c in light.half_v), light.radiance, samples=light.samples)


def cameras(views: int, width: int, height: int, seed: int) -> list[Camera]:
    """Views on a golden-angle spiral over the upper part of a sphere, all looking at the middle of the group."""
    rng = np.random.default_rng(seed + 1)
    focal = 0.5 * min(width, height) / math.tan(0.5 * 0.6)
    poses = []
    for k in range(views):
        height_part = (k + 0.5) / views
        elevation = math.asin(-0.02 + 0.9 * height_part + 0.01 * rng.random())
        azimuth = 2.399963229728653 * k + 0.1 * rng.random()
        direction = rotation_z(math.degrees(azimuth)) @ (math.cos(elevation), 0.0, math.sin(elevation))
        poses.append(look_at((4.4 + 0.25 * rng.random()) * direction, (0.0, 0.0, -0.06)))
    return [Camera(pose, width, height, focal) for pose in poses]


def look_at(eye: Vec, target: Vec) -> Float[np.ndarray, "4 4"]:
    """Camera-to-world [4, 4] of a camera at `eye` that looks at `target`, upright in z."""
    back = np.asarray(eye, dtype=np.float64) - target
    back /= np.linalg.norm(back)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(back, right), back, eye
    return pose
