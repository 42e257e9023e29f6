"""`two-rooms`: a sunlit living room and a dining kitchen joined by a doorway, with a garden outside the windows.

Units are metres; x runs from the living room (x < 0) through the doorway (y about 0) into the kitchen (x > 0).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from radcomp_plugins.scenes import furniture, still_life
from radcomp_plugins.scenes.render import Camera
from radcomp_plugins.scenes.shapes import (
    Number,
    Patch,
    Vec,
    box,
    disc,
    grid,
    place,
    quad,
    rounded_box,
    simplify,
    sphere,
    tube,
)
from radcomp_plugins.scenes.still_life import look_at
from radcomp_plugins.scenes.textures import Kind
from radcomp_plugins.scenes.world import AreaLight, BulbLight, Material, Scene, Sun

WEST, MIDDLE, EAST, DEPTH, HEIGHT, WALL = -4.6, 0.0, 4.3, 2.2, 2.6, 0.16
DOOR = (-0.5, 0.5, 2.08)
"""Doorway: from y, to y, height."""
WINDOW_A = (-3.5, -1.3, 0.7, 2.2)
"""Window of the living room in the wall y = DEPTH: from x, to x, from z, to z."""
WINDOW_B = (-0.9, 0.9, 0.95, 2.15)
"""Window of the kitchen in the wall x = EAST: from y, to y, from z, to z."""
FIELD_OF_VIEW = 78.0

MATERIALS = {
    **{name: still_life.MATERIALS[name] for name in ("glaze", "stem", "leaf", "button", "brass", "chrome", "pages")},
    **{name: still_life.MATERIALS[name] for name in ("lemon", "pear", "plum", "cup", "cup inside", "tea")},
    **{name: mat for name, mat in still_life.MATERIALS.items() if name.endswith((" cover", " spine"))},
    "stone top": still_life.MATERIALS["stone"],
    "wall a": Material(Kind.PLASTER, ("#efe8db", "#e6dccb"), roughness=0.95, f0=0.0),
    "accent": Material(Kind.PLASTER, ("#6f8574", "#64796a"), roughness=0.9, f0=0.0),
    "wall b": Material(Kind.PLASTER, ("#ead9c8", "#e2cdb9"), roughness=0.95, f0=0.0),
    "accent b": Material(Kind.PLASTER, ("#b9735a", "#ad6a52"), roughness=0.9, f0=0.0),
    "ceiling": Material(Kind.PLASTER, ("#f4f1ea", "#efebe2"), roughness=1.0, f0=0.0),
    "trim": Material(Kind.PLAIN, ("#f2efe8",), roughness=0.35, f0=0.03),
    "floor a": Material(Kind.PLANKS, ("#8a5c38", "#c39a6b"), (0.14, 1.5), roughness=0.26, f0=0.04),
    "floor b": Material(Kind.TILES, ("#e5dfd3", "#4b5a58", "#b9b1a3"), (0.36, 0.006), roughness=0.2, f0=0.04),
    "splash": Material(Kind.TILES, ("#dfe6e0", "#cfdad6", "#f3f1ec"), (0.12, 0.004), roughness=0.12, f0=0.045),
    "rug": Material(Kind.RUG, ("#a8483a", "#e3d3b4", "#2e4a5c"), (1.3, 0.9), roughness=1.0, f0=0.0),
    "sofa": Material(Kind.FABRIC, ("#3f5d6b", "#4a6a78"), (190.0,), roughness=0.95, f0=0.0),
    "armchair": Material(Kind.FABRIC, ("#c98a3c", "#d39a50"), (170.0,), roughness=0.95, f0=0.0),
    "pillow a": Material(Kind.FABRIC, ("#d8a23f", "#e0b258"), (150.0,), roughness=1.0, f0=0.0),
    "pillow b": Material(Kind.STRIPES, ("#efe6d6", "#b35a42", "#2f4f60"), (0.06, 0.45), roughness=1.0, f0=0.0),
    "pillow c": Material(Kind.GINGHAM, ("#efe9dd", "#6d8574"), (0.05,), roughness=1.0, f0=0.0),
    "oak": Material(Kind.WOOD, ("#b98b5c", "#cfa878"), (0.016,), roughness=0.4, f0=0.035),
    "walnut": Material(Kind.WOOD, ("#5c3c25", "#7d5636"), (0.014,), roughness=0.28, f0=0.04),
    "door front": Material(Kind.PLAIN, ("#5d7468",), roughness=0.4, f0=0.035),
    "black": Material(Kind.PLAIN, ("#26262a",), roughness=0.35, f0=0.04),
    "frame back": Material(Kind.PLAIN, ("#c9bfae",), roughness=0.9, f0=0.0),
    "picture 1": Material(Kind.PAINTING, ("#f0d9b5", "#d98e63", "#274a5e"), (0.55, 0.4, 0.06, 1.7), f0=0.0),
    "picture 2": Material(Kind.PAINTING, ("#dfe7e6", "#8fb0a6", "#33503f"), (0.28, 0.36, 0.05, 5.2), f0=0.0),
    "picture 3": Material(Kind.PAINTING, ("#f3e2c6", "#c2603f", "#3b2a45"), (0.28, 0.36, 0.05, 8.4), f0=0.0),
    "picture 4": Material(Kind.PAINTING, ("#e8eef0", "#6f97b5", "#1f3550"), (0.5, 0.36, 0.05, 3.1), f0=0.0),
    "soil": Material(Kind.FABRIC, ("#33261c", "#4a382a"), (60.0,), roughness=1.0, f0=0.0),
    "pot": Material(Kind.PLASTER, ("#c46f4c", "#b86443"), roughness=0.8, f0=0.02),
    "big leaf": Material(Kind.LEAF, ("#2f5d3a", "#4f8550", "#8fb27c"), roughness=0.35, f0=0.04, translucency=0.25),
    "shade": Material(Kind.SHADE, ("#f0c98d", "#f6dfb6"), (0.3,), roughness=1.0, f0=0.0, emission=1.1),
    "pendant": Material(Kind.PLAIN, ("#e6d9bd",), roughness=0.3, f0=0.04),
    "curtain": Material(Kind.FABRIC, ("#efe5d2", "#e6d9c2"), (120.0,), roughness=1.0, f0=0.0, translucency=0.4),
    "sky": Material(Kind.SKY, emission=1.15, outdoor=True),
    "grass": Material(Kind.GRASS, ("#7b9650", "#9db068"), emission=0.9, outdoor=True),
    "tree": Material(Kind.FOLIAGE, ("#3c5c3a", "#a3b573"), emission=0.85, outdoor=True),
    "trunk": Material(Kind.PLAIN, ("#5a4636",), emission=0.6, outdoor=True),
}
_BOOKS = (("#8f3b2e", "#e2c68a"), ("#274b63", "#d8c59a"), ("#3f5f4a", "#e6d7b0"), ("#d9b45b", "#5a3c1c"))
_BOOKS += (("#e5dccb", "#99563f"), ("#5b3a52", "#d9b7a0"), ("#222831", "#c9a45c"))
for _k, (_cover, _gold) in enumerate(_BOOKS):
    MATERIALS[f"book {_k}"] = Material(Kind.STRIPES, (_cover, _gold, _gold), (0.095, 0.12), roughness=0.6, f0=0.02)


Opening = Sequence[Number]
"""From, to (along the wall), bottom, top."""


def _wall(origin: Vec, along: Vec, length: Number, material: str, openings: Sequence[Opening] = ()) -> list[Patch]:
    """A wall with rectangular openings (from, to, bottom, top), from floor to ceiling; it faces along x z."""
    o, a = np.asarray(origin, dtype=np.float64), np.asarray(along, dtype=np.float64)
    marks = [0.0, *sorted(x for opening in openings for x in opening[:2]), length]
    patches = []
    for left, right in zip(marks, marks[1:], strict=False):
        hole = next((p for p in openings if p[0] <= left and right <= p[1]), None)
        spans = [(0.0, HEIGHT)] if hole is None else [(0.0, hole[2]), (hole[3], HEIGHT)]
        for low, high in spans:
            if right - left > 1e-6 and high - low > 1e-6:
                piece = quad(o + a * left + (0, 0, low), a * (right - left), (0, 0, high - low), material, texel=0.075)
                patches.append(replace(piece, coords=piece.points.copy()))
    return patches


def _reveal(origin: Vec, along: Vec, opening: Opening, outward: Vec, material: str) -> list[Patch]:
    """The four inner sides of an opening through a wall of thickness |outward|."""
    o, a, out = (np.asarray(v, dtype=np.float64) for v in (origin, along, outward))
    left, right, low, high = opening
    up = np.array([0.0, 0.0, 1.0])
    p, across, rise = o + a * left + up * low, a * (right - left), up * (high - low)
    sides = [(p, out, rise), (p + across + out, -out, rise), (p + rise, across, out)]
    if low > 0:
        sides.append((p, across, out))
    middle = p + 0.5 * (across + rise + out)
    patches = []
    for corner, u, v in sides:
        facing = np.dot(np.cross(u, v), middle - corner)
        patches.append(
            quad(corner, u, v, material, texel=0.05) if facing > 0 else quad(corner, v, u, material, texel=0.05)
        )
    return patches


def _skirting(start: Vec, end: Vec) -> list[Patch]:
    """A skirting board on the floor between two points."""
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    yaw = math.degrees(math.atan2(b[1] - a[1], b[0] - a[0]))
    length = float(np.linalg.norm(b - a))
    return place(box((length, 0.03, 0.09), "trim", texel=0.1), (*(0.5 * (a + b)), 0.0), yaw=yaw)


def _floor(x0: Number, x1: Number, material: str, z: Number, up: bool) -> Patch:
    first, second = (x1 - x0, 0, 0), (0, 2 * DEPTH, 0)
    u, v = (first, second) if up else (second, first)
    piece = quad((x0, -DEPTH, z), u, v, material, texel=0.06 if up else 0.12)
    return replace(piece, coords=piece.points.copy())


def _window(width: Number, height: Number) -> list[Patch]:
    """Frame and glazing bars in the plane y = 0, from x = 0 and z = 0."""
    parts = []
    for x in (0.025, 0.5 * width, width - 0.025):
        parts += place(box((0.05, 0.05, height), "trim", texel=0.1), (x, 0, 0))
    for x in (0.25 * width, 0.75 * width):
        parts += place(box((0.018, 0.024, height), "trim", texel=0.1), (x, 0, 0))
    for z in (0.0, 0.62 * height, height - 0.05):
        parts += place(box((width, 0.045, 0.05), "trim", texel=0.1), (0.5 * width, 0, z))
    return parts


def _shell() -> list[Patch]:
    """Floors, ceilings, walls with their openings, windows, skirting and the door frame."""
    inner = MIDDLE + WALL
    a0, a1, az0, az1 = WINDOW_A
    b0, b1, bz0, bz1 = WINDOW_B
    d0, d1, dz = DOOR
    window_a, window_b = (a0 - WEST, a1 - WEST, az0, az1), (DEPTH - b1, DEPTH - b0, bz0, bz1)
    door_a, door_b = (DEPTH - d1, DEPTH - d0, 0.0, dz), (d0 + DEPTH, d1 + DEPTH, 0.0, dz)
    patches = [
        _floor(WEST, MIDDLE, "floor a", 0.0, True),
        _floor(inner, EAST, "floor b", 0.0, True),
        _floor(WEST, MIDDLE, "ceiling", HEIGHT, False),
        _floor(inner, EAST, "ceiling", HEIGHT, False),
        *_wall((WEST, DEPTH, 0), (1, 0, 0), MIDDLE - WEST, "wall a", [window_a]),
        *_wall((MIDDLE, -DEPTH, 0), (-1, 0, 0), MIDDLE - WEST, "wall a"),
        *_wall((WEST, -DEPTH, 0), (0, 1, 0), 2 * DEPTH, "accent"),
        *_wall((MIDDLE, DEPTH, 0), (0, -1, 0), 2 * DEPTH, "wall a", [door_a]),
        *_wall((inner, DEPTH, 0), (1, 0, 0), EAST - inner, "accent b"),
        *_wall((EAST, -DEPTH, 0), (-1, 0, 0), EAST - inner, "wall b"),
        *_wall((inner, -DEPTH, 0), (0, 1, 0), 2 * DEPTH, "wall b", [door_b]),
        *_wall((EAST, DEPTH, 0), (0, -1, 0), 2 * DEPTH, "wall b", [window_b]),
        *_reveal((WEST, DEPTH, 0), (1, 0, 0), window_a, (0, 0.22, 0), "trim"),
        *_reveal((EAST, DEPTH, 0), (0, -1, 0), window_b, (0.22, 0, 0), "trim"),
        *_reveal((MIDDLE, DEPTH, 0), (0, -1, 0), door_a, (WALL, 0, 0), "trim"),
        quad((MIDDLE, d0, 0), (WALL, 0, 0), (0, d1 - d0, 0), "walnut", texel=0.05),
        *place(_window(a1 - a0, az1 - az0), (a0, DEPTH + 0.12, az0)),
        *place(_window(b1 - b0, bz1 - bz0), (EAST + 0.12, b1, bz0), yaw=-90),
        *place(box((a1 - a0 + 0.16, 0.2, 0.03), "trim", texel=0.1), (0.5 * (a0 + a1), DEPTH - 0.08, az0 - 0.03)),
        *place(box((0.2, b1 - b0 + 0.16, 0.03), "trim", texel=0.1), (EAST - 0.08, 0.5 * (b0 + b1), bz0 - 0.03)),
    ]
    for x, face in ((MIDDLE, -0.012), (inner, 0.012)):
        for y in (d0 - 0.045, d1 + 0.045):
            patches += place(box((0.024, 0.09, dz + 0.09), "trim", texel=0.1), (x + face, y, 0))
        patches += place(box((0.024, d1 - d0, 0.09), "trim", texel=0.1), (x + face, 0.5 * (d0 + d1), dz))
    e = 0.015
    for x0, x1, gap in ((WEST + e, MIDDLE - e, "end"), (inner + e, EAST - e, "start")):
        patches += _skirting((x0, DEPTH - e), (x1, DEPTH - e)) + _skirting((x0, -DEPTH + e), (x1, -DEPTH + e))
        closed, open_side = (x0, x1) if gap == "end" else (x1, x0)
        patches += _skirting((closed, -DEPTH), (closed, DEPTH))
        patches += _skirting((open_side, -DEPTH), (open_side, d0 - 0.09)) + _skirting(
            (open_side, d1 + 0.09), (open_side, DEPTH)
        )
    return patches


def _small(patches: list[Patch]) -> list[Patch]:
    """Objects of the still life, made for close views, as they are needed across a room."""
    return simplify(patches, 0.08)


def _living_room(rng: np.random.Generator) -> list[Patch]:
    books = tuple(f"book {k}" for k in range(len(_BOOKS)))
    rug = quad((-1.3, -0.9, 0.0), (2.6, 0, 0), (0, 1.8, 0), "rug", texel=0.04)
    rug = replace(rug, coords=rug.points.copy())
    rod = tube([(-3.75, DEPTH - 0.1, 2.34), (-1.05, DEPTH - 0.1, 2.34)], 0.012, "black", texel=0.06)
    table = furniture.round_table(0.46, 0.4, "walnut", "black")
    on_table = [
        *place(_small(still_life.stack_of_books(("red", "blue"))), (-0.12, 0.1, 0.4), yaw=20, scale=0.55),
        *place(_small(still_life.cup()), (0.2, -0.12, 0.4), yaw=-30, scale=0.5),
    ]
    return [
        *place([rug], (-2.4, -0.35, 0.006)),
        *place(furniture.sofa("sofa", ("pillow a", "pillow b", "pillow c"), "black"), (-2.5, -1.62, 0), yaw=180),
        *place(furniture.armchair("armchair", "oak"), (-3.75, 0.35, 0), yaw=62),
        *place([*table, *on_table], (-2.35, -0.3, 0.006), yaw=15),
        *place(furniture.bookshelf((1.15, 0.3, 1.92), "oak", books, "pages", rng), (-0.76, -2.03, 0), yaw=180),
        *place(furniture.floor_lamp("brass", "shade"), (-4.1, -1.72, 0)),
        *place(furniture.plant("pot", "big leaf", "stem", rng), (-4.12, 1.68, 0)),
        *place([furniture.curtain(0.5, 2.3, "curtain", 0.3)], (-3.62, DEPTH - 0.1, 0.03)),
        *place([furniture.curtain(0.5, 2.3, "curtain", 1.9)], (-1.18, DEPTH - 0.1, 0.03)),
        rod,
        *place(furniture.framed(1.1, 0.8, "picture 1", "oak"), (WEST, -0.3, 1.55), yaw=90),
        *place(furniture.framed(0.56, 0.72, "picture 2", "black"), (-2.9, -DEPTH, 1.6), yaw=180),
        *place(furniture.framed(0.56, 0.72, "picture 3", "black"), (-2.15, -DEPTH, 1.6), yaw=180),
        *place(furniture.sideboard("walnut", "oak", "brass"), (-0.26, 1.35, 0), yaw=-90, scale=0.85),
        *place(_small(still_life.vase(rng)), (-0.28, 1.55, 0.62), scale=0.62),
        *place(_small(still_life.wireframe(0.2)), (-0.28, 1.05, 0.62), scale=0.8),
    ]


def _kitchen(rng: np.random.Generator) -> list[Patch]:
    fruit = [
        *place([sphere(0.05, "plum")], (0.05, 0.06, 0.075)),
        *place(_small(still_life.pear()), (-0.06, 0.0, 0.03), scale=0.5, tilt=(20, 10)),
        *place(_small(still_life.lemon()), (0.06, -0.05, 0.08), scale=0.62, tilt=(80, 20)),
    ]
    table = [
        *furniture.round_table(0.62, 0.74, "oak", "oak"),
        *place([*furniture.bowl(0.19, "cup", "cup inside"), *fruit], (0.12, 0.1, 0.74)),
        *place(_small(still_life.cup()), (-0.26, -0.2, 0.74), yaw=120, scale=0.55),
    ]
    parts = [*place(table, (2.15, 0.1, 0))]
    for k, turn in enumerate((35, 128, 218, 305)):
        a = math.radians(turn + rng.uniform(-5, 5))
        seat = (2.15 + 0.74 * math.cos(a), 0.1 + 0.74 * math.sin(a), 0.0)
        parts += place(furniture.chair(("oak", "walnut")[k % 2]), seat, yaw=math.degrees(a) - 90)
    parts += place(furniture.pendant("black", "pendant", 0.75), (2.15, 0.1, HEIGHT))
    parts += _counter()
    parts += place(furniture.framed(1.0, 0.72, "picture 4", "oak"), (1.3, -DEPTH, 1.55), yaw=180)
    parts += place(furniture.sideboard("oak", "door front", "brass"), (1.3, -1.96, 0), yaw=180, scale=0.9)
    parts += place(furniture.plant("glaze", "big leaf", "stem", rng, 9), (3.92, -1.82, 0), scale=0.85)
    parts += place(_small(still_life.vase(rng)), (1.65, -1.97, 0.657), scale=0.55, yaw=70)
    parts += place(_small(still_life.stack_of_books(("blue", "red"))), (0.98, -1.95, 0.657), yaw=170, scale=0.5)
    return parts


def _counter() -> list[Patch]:
    """Kitchen units along the wall y = DEPTH: cupboards, a stone top, a tiled strip and a shelf with crockery."""
    x0, x1, depth = 0.9, 3.95, 0.55
    width = x1 - x0
    parts = place(
        box((width, depth - 0.04, 0.78), "door front", texel=0.06), (0.5 * (x0 + x1), DEPTH - 0.5 * depth + 0.02, 0.1)
    )
    parts += place(
        box((width, depth - 0.1, 0.1), "black", texel=0.06), (0.5 * (x0 + x1), DEPTH - 0.5 * depth + 0.05, 0)
    )
    parts += place(
        rounded_box((width + 0.04, depth + 0.02, 0.035), 0.012, "stone top", texel=0.05),
        (0.5 * (x0 + x1), DEPTH - 0.5 * depth, 0.88),
    )
    strip = quad((x0, DEPTH - 0.012, 0.915), (width, 0, 0), (0, 0, 0.48), "splash", texel=0.05)
    parts.append(strip)
    for k in range(5):
        x = x0 + width * (k + 0.5) / 5
        parts += place(box((width / 5 - 0.012, 0.02, 0.74), "door front", texel=0.05), (x, DEPTH - depth + 0.03, 0.12))
        handle = [(x - 0.07, DEPTH - depth, 0.8), (x + 0.07, DEPTH - depth, 0.8)]
        parts.append(tube(handle, 0.007, "brass", texel=0.05))
    parts += place(box((2.2, 0.2, 0.03), "oak", texel=0.05), (2.4, DEPTH - 0.1, 1.62))
    for k, x in enumerate(np.linspace(1.5, 3.3, 8)):
        if k % 3 == 2:
            jar = place(_small(still_life.cup()[1:]), (x, DEPTH - 0.11, 1.645), yaw=40 * k, scale=0.5)
        else:
            jar = place(furniture.bowl(0.1, ("cup", "glaze")[k % 2], "cup inside"), (x, DEPTH - 0.1, 1.65))
        parts += jar
    parts += place(furniture.bowl(0.15, "glaze", "cup inside"), (1.5, DEPTH - 0.27, 0.915))
    for k in range(3):
        parts += place(
            _small(still_life.lemon()),
            (1.44 + 0.07 * k, DEPTH - 0.25 - 0.04 * (k % 2), 0.98),
            scale=0.5,
            tilt=(70, 0),
            yaw=70 * k,
        )
    board = rounded_box((0.3, 0.03, 0.42), 0.012, "walnut", cells=4, texel=0.03)
    parts += place(board, (2.7, DEPTH - 0.1, 0.917), tilt=(-10, 0))
    parts += place(_small(still_life.kettle()), (3.4, DEPTH - 0.28, 0.915), yaw=200)
    return parts


def _garden(rng: np.random.Generator) -> list[Patch]:
    """Lawn, trees and the dome of the sky; all of it is backdrop that gives off its own light."""
    dome = sphere(40.0, "sky", sides=48, texel=9.0)
    inward = grid(dome.points[:, ::-1], "sky", wrap=True, texel=9.0)
    patches = [inward, *place([disc(39.0, "grass", texel=9.0)], (0, 0, -0.4))]
    for _ in range(22):
        a = rng.uniform(-0.3, 0.85) * math.pi
        r = rng.uniform(11.0, 26.0)
        at = np.array([r * math.cos(a), r * math.sin(a), -0.4])
        high = rng.uniform(2.4, 4.5)
        patches.append(tube([at, at + (0, 0, high)], 0.12, "trunk", texel=9.0))
        for _ in range(3):
            off = rng.normal(size=3) * (0.9, 0.9, 0.6)
            patches += place([_bush(rng.uniform(1.0, 1.9), rng)], at + off + (0, 0, high + 0.5))
    for k in range(16):
        patches += place([_bush(rng.uniform(0.5, 1.1), rng)], (-8.0 + 0.9 * k, 7.5, -0.3))
        patches += place([_bush(rng.uniform(0.5, 1.1), rng)], (9.0, -7 + 0.9 * k, -0.3))
    return patches


def _bush(radius: Number, rng: np.random.Generator) -> Patch:
    """A lumpy ball of leaves."""
    ball = sphere(1.0, "tree", sides=18, texel=9.0)
    waves = [np.sin(ball.points @ rng.normal(size=3) * f + rng.uniform(0, 6.28)) / f for f in (3.0, 4.0, 7.0, 9.0)]
    lumps = np.sum(waves, axis=0)
    points = ball.points * radius * (0.85 + 0.3 * lumps[..., None])
    points[:, -1] = points[:, 0]
    return grid(points, "tree", wrap=True, texel=9.0)


def scene(seed: int) -> Scene:
    """The two rooms; `seed` varies books, plants, chairs and the garden."""
    rng = np.random.default_rng(seed)
    patches = [*_shell(), *_living_room(rng), *_kitchen(rng), *_garden(rng)]
    a0, a1, az0, az1 = WINDOW_A
    b0, b1, bz0, bz1 = WINDOW_B
    gain = (6.6, 6.6, 6.9)
    areas = (
        AreaLight(
            (0.5 * (a0 + a1), DEPTH + 0.2, 0.5 * (az0 + az1)),
            (0.5 * (a1 - a0), 0, 0),
            (0, 0, 0.5 * (az1 - az0)),
            gain,
            True,
            24,
        ),
        AreaLight(
            (EAST + 0.2, 0.5 * (b0 + b1), 0.5 * (bz0 + bz1)),
            (0, -0.5 * (b1 - b0), 0),
            (0, 0, 0.5 * (bz1 - bz0)),
            tuple(1.5 * g for g in gain),
            True,
            24,
        ),
    )
    bulbs = (
        BulbLight((-4.1, -1.72, 1.4), 0.04, (1.3, 0.92, 0.56), 12),
        BulbLight((2.15, 0.1, HEIGHT - 0.75 + 0.1), 0.05, (1.3, 0.98, 0.64), 12),
    )
    sun = Sun((0.42, 0.72, 0.6), (6.6, 5.7, 4.5))
    return Scene(MATERIALS, patches, areas=areas, bulbs=bulbs, sun=sun, exposure=1.1, gather=64, smoothing=10)


def cameras(views: int, width: int, height: int, seed: int) -> list[Camera]:
    """A walk: round the living room, through the doorway, round the kitchen and back through the doorway.

    At eye level or a little below, always 0.2 m and more away from anything.
    """
    rng = np.random.default_rng(seed + 1)
    focal = 0.5 * max(width, height) / math.tan(math.radians(0.5 * FIELD_OF_VIEW))
    result = []
    for k in range(views):
        eye, target = _station((k + 0.5) / views)
        eye = eye + rng.uniform(-1, 1, 3) * (0.05, 0.05, 0.12)
        target = target + rng.uniform(-1, 1, 3) * (0.25, 0.25, 0.2)
        result.append(Camera(look_at(eye, tuple(target)), width, height, focal))
    return result


def _station(t: Number) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Eye and target at part t (0..1) of the walk."""
    if t < 0.4:
        a = 2 * math.pi * (t / 0.4)
        eye = np.array([-2.15 + 1.35 * math.cos(a), 0.05 + 1.2 * math.sin(a), 1.45 + 0.15 * math.sin(2 * a)])
        across = a + math.pi + 0.55 * math.sin(1.5 * a)
        return eye, np.array([-2.3 + 2.0 * math.cos(across), -0.1 + 1.9 * math.sin(across), 0.9])
    if t < 0.5:
        s = (t - 0.4) / 0.1
        return np.array([-1.3 + 2.2 * s, 0.08, 1.5]), np.array([3.2, -0.3 + 0.6 * s, 1.05])
    if t < 0.9:
        a = math.pi + 2 * math.pi * ((t - 0.5) / 0.4)
        eye = np.array([2.15 + 1.3 * math.cos(a), -0.1 + 1.15 * math.sin(a), 1.5 + 0.15 * math.sin(2 * a)])
        across = a + math.pi + 0.5 * math.sin(1.5 * a)
        return eye, np.array([2.15 + 1.6 * math.cos(across), 0.05 + 1.9 * math.sin(across), 0.9])
    s = (t - 0.9) / 0.1
    return np.array([1.05 - 2.2 * s, -0.05, 1.5]), np.array([-3.4, 0.2 - 0.5 * s, 1.0])
