"""The fused renderer for the CPU: passes over all rays, in which each network is asked once about all its samples.

A pass marches every active ray to its next few occupied samples, sorts them by network, evaluates them, and adds them
up; rays through which no more light comes are left out of the next pass (Reiser et al. 2021, section 3.4). Threads have
rays of their own, and a ray's result does not depend on which others are drawn with it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.threads import run_striped
from radcomp_plugins.kilonerf.bricks import make_bricks
from radcomp_plugins.kilonerf.composite_cpu import composite, finish, sort_lanes
from radcomp_plugins.kilonerf.evaluate_cpu import BLOCK, evaluate, pack_weights
from radcomp_plugins.kilonerf.march_cpu import enter_pixels, enter_rays, march
from radcomp_plugins.kilonerf.scene import KiloScene

TERMINATION = 0.01
"""Light below which a ray ends (Reiser et al. 2021)."""
_BLOCK = 2048
"""Rays in a row that one thread draws."""
_AT_ONCE = 2**18
"""Rays of a thread that are on their way at once: bounds memory, at 44 bytes a lane, to about 50 MB."""
_MOST_PER_PASS = 16
STAGES = ("enter", "march", "sort", "evaluate", "composite")
"""What threads spend their time on, as `Counters.seconds` counts it."""


@dataclass(frozen=True)
class RenderSettings:
    """How a scene is drawn.

    Attributes:
        termination: light below which a ray ends, 0 to 1; 0 follows every ray to its end.
        steps: samples in one of the grid's steps; the networks were trained for 1.
        samples_per_pass: samples of a ray that are evaluated before it is asked whether it goes on. More of them fill
            the networks' batches, and are wasted behind surfaces. When so few rays are left that batches would stay
            half empty, each gets up to 16.
        skip: whether empty voxels are skipped; see `march_cpu.march`.
    """

    termination: float = TERMINATION
    steps: float = 1.0
    samples_per_pass: int = 2
    skip: bool = True


@dataclass
class Counters:
    """What drawing took.

    Attributes:
        rays: that were drawn.
        hit: rays that passed through the box of occupied voxels.
        samples: that counted.
        lanes: questions to networks, those behind surfaces and those of blended cells included.
        blocks: batches of lanes.
        passes: of the thread that had most.
        seconds: of all threads together, by stage.
    """

    rays: int = 0
    hit: int = 0
    samples: int = 0
    lanes: int = 0
    blocks: int = 0
    passes: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def add(self, other: "Counters") -> None:
        """Take in another thread's."""
        self.passes = max(self.passes, other.passes)
        for name in ("rays", "hit", "samples", "lanes", "blocks"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, seconds in other.seconds.items():
            self.seconds[name] += seconds


@dataclass
class Drawn:
    """What rays see, in their order.

    Attributes:
        rgb: [N, 3] float32 colour in front of the background, 0 to 1.
        accumulation: [N] float32 share of light that the scene holds back.
        depth: [N] float32 mean distance along the ray, scene units; 0 where nothing was seen.
        samples: [N] int32 samples that counted.
        network: [N] int32 the network that gave most, -1 where none did.
        counters: what it took.
    """

    rgb: NDArray[np.float32]
    accumulation: NDArray[np.float32]
    depth: NDArray[np.float32]
    samples: NDArray[np.int32]
    network: NDArray[np.int32]
    counters: Counters


Enter = Callable[..., int]
"""One of `march_cpu`'s kernels with its first arguments given but for the rays."""


class CpuRenderer:
    """A scene, ready to be drawn on the CPU.

    Attributes:
        scene: what is drawn.
    """

    def __init__(self, scene: KiloScene) -> None:
        """Pack the networks and the occupancy."""
        grid = scene.grid
        self.scene = scene
        self._bricks = make_bricks(grid)
        self._parameters = pack_weights(scene.weights, scene.shape)
        self._corner = grid.box[0].astype(np.float32)
        self._per_unit = (grid.voxels_per_cell / grid.cell_size).astype(np.float32)
        self._low, self._high = self._bricks.box.astype(np.float32)

    def rays(
        self,
        origins: NDArray[np.floating],
        directions: NDArray[np.floating],
        starts: NDArray[np.floating] | None = None,
        ends: NDArray[np.floating] | None = None,
        *,
        settings: RenderSettings | None = None,
    ) -> Drawn:
        """Draw rays.

        Args:
            origins: [N, 3], scene frame.
            directions: [N, 3], unit length.
            starts: [N] distance at which steps begin; the scene's `near` by default.
            ends: [N] distance behind which there are no samples; none by default.
            settings: see `RenderSettings`.
        """
        arrays, settings = self._ray_arrays(origins, directions, starts, ends), settings or RenderSettings()
        step = np.float32(self.scene.grid.step / settings.steps)

        def enter(rays: NDArray[np.int64], *out: NDArray) -> int:
            return enter_rays(rays, *arrays, step, self._low, self._high, *out)  # pyright: ignore[reportCallIssue]

        return self._draw(len(origins), enter, settings, None)

    def picture(
        self,
        c2w: NDArray[np.floating],
        fx: float,
        fy: float,
        cx: float,
        cy: float,
        width: int,
        height: int,
        *,
        settings: RenderSettings | None = None,
    ) -> Drawn:
        """Draw a pinhole camera's pixels, row by row.

        Args:
            c2w: [3, 4] camera-to-scene, OpenGL convention: x right, y up, looking along -z.
            fx: focal length, pixels.
            fy: focal length, pixels.
            cx: principal point, pixels from the picture's left edge.
            cy: principal point, pixels from its upper edge.
            width: pixels.
            height: pixels.
            settings: see `RenderSettings`.
        """
        settings = settings or RenderSettings()
        pose = np.ascontiguousarray(c2w, np.float32)[:3]
        focal, centre = np.array([fx, fy], np.float32), np.array([cx, cy], np.float32)
        near, step = np.float32(self.scene.near), np.float32(self.scene.grid.step / settings.steps)

        def enter(rays: NDArray[np.int64], *out: NDArray) -> int:
            return enter_pixels(rays, width, pose, focal, centre, near, step, self._low, self._high, *out)

        return self._draw(width * height, enter, settings, None)

    def lit_samples(
        self,
        origins: NDArray[np.floating],
        directions: NDArray[np.floating],
        starts: NDArray[np.floating] | None = None,
        ends: NDArray[np.floating] | None = None,
        *,
        settings: RenderSettings | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Samples that count, for training on them: occupied, and reached by at least `settings.termination` of light.

        Args: those of `rays`.

        Returns:
            Offsets [N + 1] of each ray's first sample, then their number M; and distances [M] along the rays, ascending
            in each.
        """
        arrays, settings = self._ray_arrays(origins, directions, starts, ends), settings or RenderSettings()
        step = np.float32(self.scene.grid.step / settings.steps)
        parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []

        def enter(rays: NDArray[np.int64], *out: NDArray) -> int:
            return enter_rays(rays, *arrays, step, self._low, self._high, *out)  # pyright: ignore[reportCallIssue]

        self._draw(len(origins), enter, settings, parts)
        rays = np.concatenate([np.zeros(0, np.int64), *(ray for ray, _ in parts)])
        away = np.concatenate([np.zeros(0, np.float32), *(t for _, t in parts)])
        order = np.lexsort((away, rays))
        rays, away = rays[order], away[order]
        # A sample of blended cells has several lanes.
        fresh = np.ones(len(rays), np.bool_)
        fresh[1:] = (rays[1:] != rays[:-1]) | (away[1:] != away[:-1])
        counts = np.bincount(rays[fresh], minlength=len(origins))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), away[fresh]

    def _ray_arrays(self, origins: NDArray, directions: NDArray, starts: NDArray | None, ends: NDArray | None) -> list:
        count = len(origins)
        starts = np.full(count, self.scene.near, np.float32) if starts is None else starts
        ends = np.full(count, np.inf, np.float32) if ends is None else ends
        arrays = [np.ascontiguousarray(array, np.float32) for array in (origins, directions, starts, ends)]
        if [array.shape for array in arrays] != [(count, 3), (count, 3), (count,), (count,)]:
            raise ValueError(f"rays have shapes {[array.shape for array in arrays]}, expected [N, 3] twice, [N] twice")
        return arrays

    def _draw(self, count: int, enter: Enter, settings: RenderSettings, lit: list | None) -> Drawn:
        background = self.scene.background.astype(np.float32)
        rgb = np.empty((count, 3), np.float32)
        rgb[:] = background
        accumulation, depth = np.zeros(count, np.float32), np.zeros(count, np.float32)
        samples, network = np.zeros(count, np.int32), np.full(count, -1, np.int32)
        out = rgb, accumulation, depth, samples, network
        found: list[Counters] = []

        def stripe(start: int, stride: int) -> None:
            blocks = np.arange(start, -(-count // _BLOCK), stride)
            per_chunk = max(_AT_ONCE // _BLOCK, 1)
            for begin in range(0, len(blocks), per_chunk):
                chunk = blocks[begin : begin + per_chunk]
                rays = (chunk[:, None] * _BLOCK + np.arange(_BLOCK)).reshape(-1)
                found.append(self._passes(rays[rays < count], enter, settings, background, out, lit))

        run_striped(stripe)
        total = Counters()
        for counters in found:
            total.add(counters)
        return Drawn(*out, total)

    def _passes(
        self, rays: NDArray[np.int64], enter: Enter, settings: RenderSettings, background: NDArray, out: tuple,
        lit: list | None,
    ) -> Counters:  # fmt: skip
        """Draw rays from beginning to end in this thread."""
        grid, scene, bricks, size = self.scene.grid, self.scene, self._bricks, len(rays)
        clock = _Clock()
        ids, starts = np.empty(size, np.int64), np.empty(size, np.float32)
        origins, directions = np.empty((size, 3), np.float32), np.empty((size, 3), np.float32)
        first, last = np.empty(size, np.int32), np.empty(size, np.int32)
        hit = count = enter(rays, ids, origins, directions, starts, first, last)
        counters = Counters(rays=size, hit=hit)
        each, full = settings.samples_per_pass, BLOCK * grid.num_networks
        capacity = hit * each
        room = capacity * (8 if grid.overlap > 0 else 1)
        positions, values = np.empty((room, 3), np.float32), np.empty((room, 4), np.float32)
        weights, away = np.empty(room, np.float32), np.empty(room, np.float32)
        owners, networks, order = (np.empty(room, np.int32) for _ in range(3))
        counted, lanes, active = np.empty(room, np.bool_), np.empty(hit, np.int32), np.arange(hit, dtype=np.int32)
        histogram = np.zeros(grid.num_networks, np.int64)
        network_starts = np.zeros(grid.num_networks + 1, np.int64)
        light, color, depth = np.ones(hit, np.float32), np.zeros((hit, 3), np.float32), np.zeros(hit, np.float32)
        samples, heaviest = np.zeros(hit, np.int32), np.zeros(hit, np.float32)
        network = np.full(hit, -1, np.int32)
        step, bits = np.float32(grid.step / settings.steps), grid.voxels_per_cell.bit_length() - 1
        shape, termination = scene.shape, np.float32(settings.termination)
        clock.lap(counters, "enter")
        while count:
            # A network's batch is full with BLOCK lanes: more than that for all of them only adds waste.
            most = min(max(full // count, each), max(_MOST_PER_PASS, each), capacity // count)
            total = march(
                active, count, origins, directions, starts, first, last, step, self._corner, self._per_unit,
                bricks.distance, bricks.bits, grid.network_of_cell, bits, np.float32(grid.overlap), settings.skip, most,
                positions, owners, networks, weights, away, lanes, histogram,
            )  # fmt: skip
            clock.lap(counters, "march")
            sort_lanes(networks, total, histogram, network_starts, order)
            clock.lap(counters, "sort")
            counters.blocks += evaluate(
                network_starts, order, positions, owners, directions, np.float32(1.0 / settings.steps),
                shape.width, shape.position_octaves, shape.direction_octaves, self._parameters, values,
            )  # fmt: skip
            clock.lap(counters, "evaluate")
            count = composite(
                active, count, lanes, first, last, values, weights, away, networks, termination,
                light, color, depth, samples, heaviest, network, counted,
            )  # fmt: skip
            if lit is not None:
                rows = np.flatnonzero(counted[:total])
                lit.append((ids[owners[rows]], away[rows]))
            clock.lap(counters, "composite")
            counters.lanes += total
            counters.passes += 1
        finish(hit, ids, background, light, color, depth, samples, network, *out)
        counters.samples = int(samples.sum())
        clock.lap(counters, "composite")
        return counters


class _Clock:
    """Seconds that this thread has worked since it was last asked, whatever else the machine does."""

    def __init__(self) -> None:
        self.since = time.thread_time()

    def lap(self, counters: Counters, stage: str) -> None:
        now = time.thread_time()
        counters.seconds[stage] += now - self.since
        self.since = now
