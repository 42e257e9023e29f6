"""The streaming simulator on cases whose outcome can be worked out with a pencil."""

import gzip

import numpy as np
import pytest

from benchmarks.streaming import (
    PATHS,
    VIEWERS,
    Line,
    Scene,
    Simulation,
    Sizes,
    Viewer,
    make_path,
    read_sizes,
    storey,
)
from radcomp_plugins.errors import InputError

LINE = Line(megabits=8.0, round_trip=0.0)
"""A megabyte a second."""
TICK = 0.11
"""Seconds by which a decision may come late: they are made every 0.1."""


def row_of_cells(count: int, wire: tuple[float, ...] = (10e6,), shared: float = 0.0) -> Scene:
    """Cells of 10 m along x, their centres at 5, 15, 25, ..."""
    centres = np.array([[10.0 * k + 5, 0.0, 0.0] for k in range(count)])
    return Scene(centres, 10.0, wire, wire, shared)


def go(scene: Scene, corners: list[tuple[float, float]], viewer: Viewer, line: Line = LINE):
    """Simulate a path of (time, x) corners, uploads taking no time."""
    seconds, points = np.array([t for t, _ in corners]), np.array([[x, 0.0, 0.0] for _, x in corners])
    instant = Viewer(**{**viewer.__dict__, "upload": np.inf})
    return Simulation(scene, seconds, points, line, instant).run()


def test_the_first_picture_takes_networks_submodel_round_trips_and_upload():
    scene = row_of_cells(1, shared=2e6)
    still = np.array([0.0, 30.0]), np.array([[5.0, 0, 0], [5.0, 0, 0]])
    report = Simulation(scene, *still, Line(8.0, round_trip=0.5), Viewer("none", upload=20e6)).run()
    assert report.first_picture == pytest.approx(0.5 + 2 + 0.5 + 10 + 0.5)
    assert (report.stalls, report.unseen, report.peak) == (0, 0, 10e6)
    assert report.bytes == pytest.approx(12e6)


def test_without_prefetch_every_new_cell_is_a_stall_as_long_as_its_transfer():
    # Once there is a picture: 20 s in the first cell, then on into the second.
    corners = [(0.0, 5.0), (20.0, 5.0), (20.0, 15.0), (40.0, 15.0)]
    report = go(row_of_cells(2), corners, Viewer("none", put_off="none"))
    assert (report.first_picture, report.stalls) == (pytest.approx(10), 1)
    assert (report.stalled, report.longest) == (pytest.approx(10), pytest.approx(10))
    assert report.bytes == pytest.approx(20e6)


@pytest.mark.parametrize(("stay", "stalled"), [(20.0, 0.0), (7.0, 3.0)])
def test_with_prefetch_the_stall_is_what_is_left_of_the_transfer(stay, stalled):
    corners = [(0.0, 5.0), (stay, 5.0), (stay, 15.0), (40.0, 15.0)]
    report = go(row_of_cells(2), corners, Viewer("nearest"))
    assert report.stalls == (1 if stalled else 0)
    assert report.stalled == pytest.approx(stalled, abs=TICK)
    assert report.bytes == pytest.approx(20e6)


def test_motion_fetches_what_lies_ahead_and_nearness_what_lies_close():
    # From 12 on at 1 m/s, into the next cell after 8 s. Motion fetches that one at once: 2 s late. Nearness first has
    # 3 s of the cell behind, until the camera has passed the middle: 5 s late.
    corners = [(0.0, 12.0), (18.0, 30.0)]
    assert go(row_of_cells(3), corners, Viewer("velocity")).stalled == pytest.approx(2, abs=2 * TICK)
    assert go(row_of_cells(3), corners, Viewer("nearest")).stalled == pytest.approx(5, abs=2 * TICK)


def test_a_cache_of_one_loads_again_what_it_had():
    corners = [(0.0, 5.0), (1.0, 5.0), (1.0, 15.0), (21.0, 15.0), (21.0, 5.0), (41.0, 5.0)]
    small = go(row_of_cells(2), corners, Viewer("nearest", cache=10e6))
    assert (small.stalls, small.stalled) == (2, pytest.approx(20))
    assert (small.bytes, small.again, small.peak) == (pytest.approx(30e6), pytest.approx(10e6), 10e6)
    large = go(row_of_cells(2), corners, Viewer("none", cache=20e6))
    assert (large.stalls, large.again, large.peak) == (1, 0, 20e6)


def test_a_full_cache_forgets_what_was_used_longest_ago():
    # Cells 0, 1, 0, 2, 0: with room for two, it is cell 1 that goes.
    stays = [5.0, 15.0, 5.0, 25.0, 5.0]
    corners = [(20.0 * k + extra, x) for k, x in enumerate(stays) for extra in (0.0, 20.0)]
    report = go(row_of_cells(3), corners, Viewer("none", cache=20e6))
    assert (report.stalls, report.again) == (2, 0)


@pytest.mark.parametrize(
    ("put_off", "stalled"),
    # Into cell 1 at 2 s, when cell 2 (a guess: it lies ahead) has 2 MB: none waits for the other 8 first.
    [("none", 8 + 10), ("guesses", 10), ("all", 10)],
)
def test_guesses_make_way(put_off, stalled):
    scene = row_of_cells(3)
    corners = [(0.0, 25.0), (0.0, 26.0), (2.0, 26.0), (2.0, 5.0), (60.0, 5.0)]
    report = go(scene, corners, Viewer("nearest", put_off=put_off))
    assert report.stalled == pytest.approx(stalled, abs=TICK)


@pytest.mark.parametrize(("put_off", "longest"), [("guesses", 8 + 10), ("all", 10)])
def test_a_needed_transfer_is_ended_unless_all_make_way(put_off, longest):
    # Two seconds in cell 1, whose transfer has then begun, and on into cell 2.
    corners = [(0.0, 5.0), (1.0, 5.0), (1.0, 15.0), (3.0, 15.0), (3.0, 25.0), (60.0, 25.0)]
    report = go(row_of_cells(3), corners, Viewer("none", put_off=put_off))
    assert report.stalls == 1  # the camera never sees its own cell from the first border to the end of the transfer
    assert report.longest == pytest.approx(2 + longest, abs=TICK)


def test_what_is_put_off_keeps_its_bytes():
    # 2 s of cell 1 (as it is near), 10 s of cell 5, and 1 of a cell beside it; then the last 8 s of cell 1.
    corners = [(0.0, 5.0), (2.0, 5.0), (2.0, 55.0), (13.0, 55.0), (13.0, 15.0), (60.0, 15.0)]
    report = go(row_of_cells(6), corners, Viewer("nearest", reach=1.2))
    assert report.first_picture == pytest.approx(10)
    assert report.longest == pytest.approx(10, abs=TICK) and report.stalled == pytest.approx(10 + 8, abs=2 * TICK)


def test_a_coarse_level_ends_the_stall_and_is_counted():
    corners = [(0.0, 5.0), (15.0, 5.0), (15.0, 15.0), (60.0, 15.0)]
    report = go(row_of_cells(2, wire=(1e6, 10e6)), corners, Viewer("none"))
    assert report.first_picture == pytest.approx(1)
    assert (report.stalls, report.stalled) == (1, pytest.approx(1))
    assert report.coarse == pytest.approx(10 + 10)


def test_simulations_are_repeatable_and_paths_keep_to_the_scene():
    scene = storey(Sizes(wire=5e6, memory=8e6, network=1e5), cells=3, cell=4.0)
    assert len(scene.centres) == 9 and scene.shared == pytest.approx(9e5)
    for name in PATHS:
        seconds, points = make_path(name, scene, 40.0)
        assert seconds[-1] == 40 and (np.diff(seconds) >= 0).all() and len(seconds) == len(points)
        assert points[:, :2].min() >= 0 and points[:, :2].max() <= 12
        runs = [Simulation(scene, seconds, points, Line(20.0), VIEWERS["motion"]).run() for _ in range(2)]
        assert runs[0] == runs[1] and runs[0].bytes > 0
    split = storey(Sizes(5e6, 8e6, 1e5), 3, 4.0, coarse=0.25, split=True)
    assert (
        split.shared == 0 and split.wire == pytest.approx((1.35e6, 5e6)) and split.memory == pytest.approx((2e6, 8e6))
    )


def test_sizes_are_read_from_an_asset(tmp_path):
    for index, texels in ((0, 1000), (7, 3000)):
        folder = tmp_path / f"sm_{index:03d}"
        folder.mkdir()
        (folder / "plane_rgb_0.raw.gz").write_bytes(gzip.compress(bytes(texels)))
        (folder / "occupancy_grid_8_000.raw").write_bytes(bytes(64))
        (folder / "occupancy_grid_16_000.raw").write_bytes(bytes(8))  # no viewer asks for it
        (folder / "deferred_mlp.json.gz").write_bytes(gzip.compress(b"{}"))
    sizes = read_sizes(tmp_path)
    packed = [len(gzip.compress(bytes(texels))) + 64 for texels in (1000, 3000)]
    assert sizes.memory == 2000 + 64 and sizes.wire == sum(packed) / 2
    assert sizes.network == len(gzip.compress(b"{}")) / 2
    (tmp_path / "sm_007" / "deferred_mlp.json.gz").unlink()
    with pytest.raises(InputError, match="sm_007"):
        read_sizes(tmp_path)
    with pytest.raises(InputError, match="no folder sm_000"):
        read_sizes(tmp_path / "sm_000")
