"""Tile lists against the rule they follow: gsplat's boxes, front to back, and nobody missing who reaches a pixel."""

import numpy as np
import pytest

from radcomp_plugins.splats.tiles import TILE, TileLists, build_tile_lists

WIDTH, HEIGHT = 70, 37


def make(cameras: int = 1, count: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """Splats of all sizes, many far longer than wide, around and in the image; some culled, some see-through."""
    rng = np.random.default_rng(seed)
    shape = (cameras, count)
    long, wide = np.exp(rng.uniform(-0.5, 4, shape)), np.exp(rng.uniform(-0.5, 1, shape))
    angle = rng.uniform(0, np.pi, shape)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b, c = (
        (cos / long) ** 2 + (sin / wide) ** 2,
        cos * sin * (long**-2 - wide**-2),
        (sin / long) ** 2 + (cos / wide) ** 2,
    )
    radii = np.ceil(3 * np.maximum(long, wide)) * (rng.random(shape) > 0.1)
    return {
        "radii": radii.astype(np.int32),
        "means2d": (rng.uniform(-0.2, 1.2, (*shape, 2)) * [WIDTH, HEIGHT]).astype(np.float32),
        "depths": rng.choice(np.geomspace(0.02, 50, count // 2), shape).astype(np.float32),
        "conics": np.stack([a, b, c], -1).astype(np.float32),
        "opacities": rng.choice([0.0, 0.003, 0.01, 0.2, 0.9, 1.0], shape).astype(np.float32),
        "colors": rng.random((*shape, 3)).astype(np.float32),
    }


def tile_list(lists: TileLists, camera: int, row: int, column: int) -> list[int]:
    tile = (camera * lists.tiles_y + row) * lists.tiles_x + column
    return lists.ids[lists.offsets[tile] : lists.offsets[tile + 1]].tolist()


@pytest.mark.parametrize("cameras", [1, 2])
def test_lists_hold_who_reaches_a_pixel_and_nobody_outside_the_box(cameras):
    data = make(cameras)
    lists = build_tile_lists(**data, width=WIDTH, height=HEIGHT)
    count = data["radii"].shape[1]
    dropped = 0
    for camera in range(cameras):
        mean, conic = data["means2d"][camera].astype(float), data["conics"][camera].astype(float)
        for row in range(lists.tiles_y):
            for column in range(lists.tiles_x):
                ys, xs = np.mgrid[
                    row * TILE : min(row * TILE + TILE, HEIGHT), column * TILE : min(column * TILE + TILE, WIDTH)
                ]
                dx, dy = mean[:, 0, None] - xs.ravel() - 0.5, mean[:, 1, None] - ys.ravel() - 0.5
                sigma = 0.5 * (conic[:, :1] * dx**2 + conic[:, 2:] * dy**2) + conic[:, 1:2] * dx * dy
                reaches = (data["opacities"][camera][:, None] * np.exp(-sigma) >= 1 / 255).any(1)
                radius = data["radii"][camera][:, None]
                low, high = np.floor((mean - radius) / TILE), np.ceil((mean + radius) / TILE)
                boxed = ((low <= [column, row]) & ([column, row] < high)).all(1) & (radius[:, 0] > 0)
                listed = np.zeros(count, bool)
                ids = np.array(tile_list(lists, camera, row, column), np.int64)
                listed[ids - camera * count] = True
                assert not (listed & ~boxed).any()
                assert not (boxed & reaches & ~listed).any()
                dropped += (boxed & ~listed).sum()
    assert dropped > 100, "tiles that a box touches and no pixel of which is reached are left out"


def test_lists_run_front_to_back_and_equal_depths_keep_their_order():
    data = make(2)
    lists = build_tile_lists(**data, width=WIDTH, height=HEIGHT)
    depths, ties = data["depths"].reshape(-1), 0
    for begin, end in zip(lists.offsets[:-1], lists.offsets[1:], strict=True):
        ids = lists.ids[begin:end]
        keys = list(zip(depths[ids].tolist(), ids.tolist(), strict=True))
        assert keys == sorted(keys)
        ties += int((np.diff(depths[ids]) == 0).sum())
    assert ties > 10


def test_longest_lists_come_first():
    lists = build_tile_lists(**make(), width=WIDTH, height=HEIGHT)
    lengths = np.diff(lists.offsets)[lists.work]
    assert (np.diff(lengths) <= 0).all() and sorted(lists.work) == list(range(len(lengths)))


def test_every_pair_has_a_number_of_its_own():
    lists = build_tile_lists(**make(2), width=WIDTH, height=HEIGHT)
    words = lists.splats.view(np.int32)
    numbers = []
    for tile in range(len(lists.work)):
        row, column = divmod(tile % (lists.tiles_x * lists.tiles_y), lists.tiles_x)
        for i in lists.ids[lists.offsets[tile] : lists.offsets[tile + 1]]:
            number = words[i, 10] + row * words[i, 9] + column
            assert lists.first[i] <= number < lists.first[i + 1]
            numbers.append(number)
    assert sorted(numbers) == list(range(len(lists.ids)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_colours_that_are_not_finite_are_left_out(value):
    data = make()
    victim = int(build_tile_lists(**data, width=WIDTH, height=HEIGHT).ids[0])
    data["colors"][0, victim, 1] = value
    assert victim not in build_tile_lists(**data, width=WIDTH, height=HEIGHT).ids


def test_nothing_visible():
    data = make()
    data["radii"][:] = 0
    lists = build_tile_lists(**data, width=WIDTH, height=HEIGHT)
    assert len(lists.ids) == 0 and (lists.offsets == 0).all()
