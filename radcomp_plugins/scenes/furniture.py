"""Furniture built from grids; each function returns patches standing on z = 0 with their front towards -y."""

import math

import numpy as np

from radcomp_plugins.scenes.shapes import (
    Number,
    Patch,
    Vec,
    box,
    disc,
    grid,
    leaf,
    place,
    revolve,
    rounded_box,
    smooth,
    sphere,
    tube,
)


def sofa(fabric: str, pillows: tuple[str, str, str], legs: str) -> list[Patch]:
    """A two-seat sofa, 2 m wide, with throw pillows."""
    parts = [
        *place(rounded_box((1.96, 0.84, 0.2), 0.04, fabric, texel=0.06), (0, 0, 0.12)),
        *place(rounded_box((2.0, 0.22, 0.62), 0.09, fabric, texel=0.06), (0, 0.36, 0.2), tilt=(-8, 0)),
    ]
    for side in (-1, 1):
        parts += place(rounded_box((0.2, 0.88, 0.46), 0.08, fabric, texel=0.06), (side * 0.96, 0, 0.14))
        parts += place(
            rounded_box((0.84, 0.68, 0.16), 0.06, fabric, bulge=0.035, texel=0.04), (side * 0.43, -0.07, 0.32)
        )
        for y in (-0.34, 0.34):
            parts.append(tube([(side * 0.85, y, 0.0), (side * 0.82, y, 0.13)], (0.016, 0.024), legs, texel=0.06))
    spots = [(-0.62, 0.1, 0.5, 14), (-0.3, 0.08, 0.49, -6), (0.6, 0.1, 0.5, -16)]
    for (x, y, z, yaw), name in zip(spots, pillows, strict=True):
        cushion = place(rounded_box((0.42, 0.42, 0.05), 0.024, name, bulge=0.06, texel=0.03), (0, 0, -0.03))
        parts += place(cushion, (x, y, z + 0.18), tilt=(66, 0), yaw=yaw)
    return parts


def armchair(fabric: str, legs: str) -> list[Patch]:
    """A low round armchair on thin splayed legs."""
    turn = np.linspace(-0.1, math.pi + 0.1, 33)
    rows = []
    for z, inset in (
        (0.32, 0.0),
        (0.36, -0.03),
        (0.56, -0.04),
        (0.74, -0.02),
        (0.78, 0.03),
        (0.74, 0.08),
        (0.34, 0.11),
    ):
        high = 0.36 + (z - 0.36) * (0.72 + 0.28 * np.sin(np.clip(turn, 0, math.pi)))
        rows.append(np.stack([(0.41 - inset) * np.cos(turn), (0.4 - inset) * np.sin(turn), high], axis=1))
    shell = grid(np.array(rows), fabric, two_sided=True, texel=0.04)
    parts = [shell, *place(rounded_box((0.62, 0.62, 0.15), 0.06, fabric, bulge=0.03, texel=0.04), (0, -0.02, 0.3))]
    for x in (-0.24, 0.24):
        for y in (-0.22, 0.24):
            parts.append(tube([(1.25 * x, 1.25 * y, 0.0), (x, y, 0.32)], (0.01, 0.018), legs, texel=0.06))
    return parts


def round_table(radius: Number, height: Number, top: str, leg: str) -> list[Patch]:
    """A round table on three splayed legs."""
    edge = [(radius - 0.02, height - 0.03), (radius, height - 0.02), (radius, height - 0.008), (radius - 0.008, height)]
    parts = [
        revolve(edge, top, sides=72, texel=0.04),
        *place([disc(radius - 0.008, top, texel=0.03)], (0, 0, height)),
        *place([disc(radius - 0.02, top, down=True, texel=0.05)], (0, 0, height - 0.03)),
    ]
    for k in range(3):
        a = 2 * math.pi * (k + 0.25) / 3
        foot = (0.78 * radius * math.cos(a), 0.78 * radius * math.sin(a), 0.0)
        head = (0.45 * radius * math.cos(a), 0.45 * radius * math.sin(a), height - 0.03)
        parts.append(tube([foot, head], (0.016, 0.026), leg, sides=12, texel=0.05))
    return parts


def chair(wood: str) -> list[Patch]:
    """A spindle-back chair."""
    parts = place(rounded_box((0.44, 0.42, 0.035), 0.015, wood, cells=5, texel=0.04), (0, 0, 0.43))
    for x in (-0.17, 0.17):
        parts.append(tube([(1.25 * x, -0.2, 0.0), (x, -0.16, 0.44)], (0.012, 0.017), wood, texel=0.08))
        parts.append(tube([(1.25 * x, 0.24, 0.0), (x, 0.16, 0.44)], (0.012, 0.017), wood, texel=0.08))
        parts.append(tube([(1.18 * x, -0.185, 0.15), (1.18 * x, 0.205, 0.15)], 0.009, wood, texel=0.08))
    rail = smooth([(-0.22, 0.27, 0.86), (-0.1, 0.31, 0.88), (0.1, 0.31, 0.88), (0.22, 0.27, 0.86)], 6)
    parts.append(tube(rail, 0.018, wood, sides=10, texel=0.04))
    for k in range(7):
        t = k / 6 - 0.5
        parts.append(tube([(0.34 * t, 0.18, 0.45), (0.42 * t, 0.31 - 0.12 * t * t, 0.875)], 0.0065, wood, texel=0.06))
    return parts


def bookshelf(size: Vec, wood: str, books: tuple[str, ...], pages: str, rng: np.random.Generator) -> list[Patch]:
    """An open shelf (width, depth, height) with rows of books, the lowest board clear of the floor."""
    width, depth, height = size
    board, gap = 0.025, 0.36
    parts = [
        *place(box((board, depth, height), wood, texel=0.08), (-0.5 * (width - board), 0, 0)),
        *place(box((board, depth, height), wood, texel=0.08), (0.5 * (width - board), 0, 0)),
        *place(box((width - 2 * board, 0.012, height), wood, texel=0.08), (0, 0.5 * depth - 0.006, 0)),
    ]
    shelf = 0.06
    while shelf < height:
        parts += place(box((width - 2 * board, depth - 0.012, board), wood, texel=0.08), (0, -0.006, shelf))
        if shelf + gap < height + 0.1:
            parts += place(_book_row(width - 2 * board - 0.02, depth, books, pages, rng), (0, 0, shelf + board))
        shelf += gap
    return parts


def _book_row(
    width: Number, depth: Number, books: tuple[str, ...], pages: str, rng: np.random.Generator
) -> list[Patch]:
    parts: list[Patch] = []
    at, end = -0.5 * width, 0.5 * width - width * rng.uniform(0.05, 0.4)
    while True:
        thick, high, deep = rng.uniform(0.022, 0.05), rng.uniform(0.2, 0.3), rng.uniform(0.15, 0.2)
        if at + thick > end:
            break
        cover = books[int(rng.integers(len(books)))]
        faces = (cover, cover, pages, cover, pages, pages)
        parts += place(box((thick, deep, high), faces, texel=0.09), (at + 0.5 * thick, -0.5 * (depth - deep) + 0.03, 0))
        at += thick + 0.002
    rest = 0.5 * width - at
    if rest > 0.18:
        parts += place([sphere(0.06, "glaze", sides=32)], (at + 0.5 * rest + 0.02, -0.02, 0.06))
    return parts


def floor_lamp(metal: str, shade: str) -> list[Patch]:
    """A floor lamp 1.55 m high: the bulb belongs at z = 1.4."""
    foot = smooth([(0.0, 0.0), (0.15, 0.0), (0.155, 0.012), (0.05, 0.024), (0.012, 0.04)], 5)
    return [
        revolve(foot, metal, sides=48, texel=0.03),
        tube([(0, 0, 0.03), (0, 0, 1.3)], 0.011, metal, sides=10, texel=0.05),
        lampshade(shade, 0.24, 0.15, 0.32, 1.25),
    ]


def lampshade(material: str, low: Number, high: Number, height: Number, z: Number) -> Patch:
    """A conical shade from radius `low` at `z` to `high` above it, open at both ends."""
    rows = np.stack([np.linspace(low, high, 5), z + np.linspace(0, height, 5)], axis=1)
    patch = revolve(rows, material, sides=56, coords="uv", texel=0.04)
    return grid(patch.points, material, coords=patch.coords, wrap=True, two_sided=True, texel=0.04)


def pendant(metal: str, shade: str, drop: Number) -> list[Patch]:
    """A lamp that hangs down from z = 0 on a cord; its rim is `drop` below, the bulb belongs 0.1 above the rim."""
    dome = smooth([(0.25, 0.0), (0.235, 0.09), (0.15, 0.17), (0.03, 0.2)], 6)
    patch = revolve(dome, shade, sides=64, coords="uv", texel=0.03)
    shell = grid(patch.points, shade, coords=patch.coords, wrap=True, two_sided=True, texel=0.03)
    cord = tube([(0, 0, 0.19 - drop), (0, 0, 0.0)], 0.006, metal, texel=0.06)
    return [*place([shell], (0, 0, -drop)), cord]


def plant(pot: str, leaf_material: str, stem: str, rng: np.random.Generator, leaves: int = 13) -> list[Patch]:
    """Large leaves on arching stems in a pot."""
    outside = smooth([(0.13, 0.0), (0.17, 0.03), (0.2, 0.2), (0.19, 0.34)], 6)
    parts = [
        revolve(np.vstack([outside, [(0.172, 0.345), (0.165, 0.29)]]), pot, sides=56, texel=0.03),
        *place([disc(0.168, "soil", texel=0.05)], (0, 0, 0.3)),
    ]
    for k in range(leaves):
        height, reach = rng.uniform(0.55, 1.25), rng.uniform(0.12, 0.38)
        path = smooth([(0.02, 0, 0.29), (0.3 * reach, 0, 0.6 * height), (reach, 0, height)], 6)
        size = rng.uniform(0.26, 0.38)
        blade = place([leaf(size, 0.5 * size, leaf_material, droop=0.45)], path[-1], tilt=(rng.uniform(-25, 25), -20))
        parts += place([tube(path, np.linspace(0.009, 0.005, len(path)), stem, texel=0.06), *blade], yaw=k * 137.5)
    return parts


def framed(width: Number, height: Number, picture: str, frame: str) -> list[Patch]:
    """A picture that hangs on a wall behind it at y = 0; its centre is the origin and it faces -y."""
    w, h, t = width, height, 0.022
    parts = place(
        box((w, 0.012, h), ("frame back",) * 3 + (picture,) + ("frame back",) * 2, centred=True, texel=0.04),
        (0, -0.008, 0),
    )
    for side in (-1, 1):
        parts += place(box((t, 0.03, h + 2 * t), frame, centred=True, texel=0.06), (side * 0.5 * (w + t), -0.015, 0))
        parts += place(box((w, 0.03, t), frame, centred=True, texel=0.06), (0, -0.015, side * 0.5 * (h + t)))
    return parts


def curtain(width: Number, height: Number, material: str, phase: Number) -> Patch:
    """A hanging curtain with folds, from z = 0 to `height`, centred on x = 0."""
    u, v = np.meshgrid(np.linspace(-0.5, 0.5, 61), np.linspace(0, 1, 9))
    fold = 0.035 * np.sin(2 * math.pi * 7 * u + phase + 0.5 * np.sin(5 * v)) * (0.7 + 0.3 * (1 - v))
    points = np.stack([u * width * (1 - 0.05 * v), fold, v * height], axis=-1)
    coords = np.stack([u * 1.6 * width, v * height, np.zeros_like(u)], axis=-1)
    return grid(points, material, coords=coords, two_sided=True, texel=0.07)


def sideboard(wood: str, front: str, metal: str) -> list[Patch]:
    """A low cabinet with three doors and thin legs, 1.5 m wide."""
    parts = place(box((1.5, 0.42, 0.55), wood, texel=0.08), (0, 0, 0.18))
    for k in range(3):
        x = 0.49 * (k - 1)
        parts += place(box((0.475, 0.02, 0.51), front, texel=0.04), (x, -0.22, 0.2))
        parts += place([sphere(0.014, metal, sides=16)], (x + 0.19, -0.244, 0.5))
    for x in (-0.66, 0.66):
        for y in (-0.15, 0.15):
            parts.append(tube([(1.04 * x, 1.1 * y, 0), (x, y, 0.18)], (0.012, 0.018), wood, texel=0.08))
    return parts


def bowl(radius: Number, outer: str, inner: str) -> list[Patch]:
    """An open bowl."""
    r = radius
    outside = smooth([(0.0, 0.0), (0.4 * r, 0.0), (0.75 * r, 0.16 * r), (r, 0.55 * r)], 7)
    inside = smooth([(r, 0.55 * r), (0.96 * r, 0.55 * r), (0.7 * r, 0.21 * r), (0.0, 0.08 * r)], 7)
    return [
        revolve(outside, outer, sides=40, coords="uv", texel=0.03),
        revolve(inside, inner, sides=40, texel=0.03),
    ]
