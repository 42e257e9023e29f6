"""Streaming a large SMERF scene over a slow line, in simulation: when is there a picture, and where does it stall.

    python benchmarks/streaming.py --output-dir outputs/streaming                  # sizes from the table below
    python benchmarks/streaming.py --output-dir outputs/streaming --asset FOLDER   # sizes of an exported asset

A camera moves through 5 x 5 cells of a 5^3 scene (one storey). The viewer draws the submodel of the nearest cell; until
that one has arrived it draws the one before, and the camera waits for what it should see: a stall. The simulation is
one of discrete events (a frame's decision, the end of a transfer, the end of an upload to the GPU), without chance:
the paths are drawn from fixed seeds. One transfer runs at a time and has the whole line; one that is put off keeps the
bytes it has got. Writes streaming.csv and streaming.png.
"""

import csv
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from numpy.typing import NDArray

from radcomp_plugins.errors import InputError

Prefetch = Literal["none", "nearest", "velocity"]
Item = tuple[int, int]
"""A transfer: submodel and level of detail; submodel -1 is what every viewer needs first."""
SHARED: Item = (-1, 0)

VIEWED = ("plane_", "sparse_grid_", "occupancy_grid_8_", "distance_grid_8_", "scene_params.")
NETWORK = "deferred_mlp.json"
PATIENCE = 600.0
"""Seconds after which a user who has seen nothing gives up."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a submodel.

    Attributes:
        wire: on the line, compressed, without the networks.
        memory: in memory, as textures.
        network: on the line, of one submodel's appearance network; the official layout has all of them in one file.
    """

    wire: float
    memory: float
    network: float


TABLE = {
    "T=1024, S=256": Sizes(wire=41e6, memory=65e6, network=1.17e6),
    "T=2048, S=512": Sizes(wire=165e6, memory=276e6, network=1.17e6),
}
"""The one real asset we could measure (the bicycle of lufla/SMERF_VR, T = 512, S = 256, 6,048 blocks), taken up to
larger grids: its planes of 3.65 MB by the square of T, its blocks of 26.3 MB by the square of S (they follow surfaces),
its occupancy and distances of 0.05 MB by the square of T, and 9.4 bytes of a packed JSON for each number of a network
of 5^3 sets of 16 wide layers. The memory counts every texel."""


@dataclass(frozen=True)
class Scene:
    """Where the submodels are, and what they weigh.

    Attributes:
        centres: [N, 3] of the live cells, metres.
        cell: side of a cell, metres.
        wire: bytes of each level of a submodel, coarse to fine, on the line.
        memory: the same in memory.
        shared: bytes that come before the first submodel: the networks of all.
    """

    centres: NDArray[np.float64]
    cell: float
    wire: tuple[float, ...]
    memory: tuple[float, ...]
    shared: float

    def bytes_of(self, item: Item) -> float:
        """On the line."""
        return self.shared if item == SHARED else self.wire[item[1]]


@dataclass(frozen=True)
class Line:
    """What the bytes come over.

    Attributes:
        megabits: per second, 10^6.
        round_trip: seconds before the first byte of each transfer.
    """

    megabits: float
    round_trip: float = 0.04


@dataclass(frozen=True)
class Viewer:
    """How a viewer decides.

    Attributes:
        prefetch: what it fetches while it has all it needs: nothing; the cells around, nearest first; or those that
            the camera will come to at its present velocity, in that order, then the nearest.
        cache: bytes of submodels in memory.
        tick: seconds between decisions.
        upload: bytes of memory that become textures in a second.
        horizon: seconds that the camera's motion is thought to go on for.
        reach: cells around, in cell sides (largest norm), that are worth fetching.
        put_off: which transfers wait while a more wanted one goes first: none, as in the official viewer, which ends
            what it began; those that were no more than a guess; or all.
    """

    prefetch: Prefetch = "velocity"
    cache: float = 2e9
    tick: float = 0.1
    upload: float = 400e6
    horizon: float = 20.0
    reach: float = 1.6
    put_off: Literal["none", "guesses", "all"] = "guesses"


@dataclass
class Report:
    """What a simulation measured.

    Attributes:
        first_picture: seconds until anything is drawn; infinite if nothing ever is.
        stalls: times that the camera came to a cell whose submodel was not there.
        stalled: seconds of that, after the first picture.
        longest: seconds of the longest of them.
        coarse: seconds in which only a coarse level was there, after the first picture.
        bytes: received in all.
        again: of those, bytes of what had been in memory before.
        unseen: of those, bytes of submodels the camera never was in.
        peak: largest number of bytes in memory.
    """

    first_picture: float = math.inf
    stalls: int = 0
    stalled: float = 0.0
    longest: float = 0.0
    coarse: float = 0.0
    bytes: float = 0.0
    again: float = 0.0
    unseen: float = 0.0
    peak: float = 0.0


@dataclass
class _State:
    """The viewer at one moment."""

    received: dict[Item, float] = field(default_factory=dict)
    resident: dict[Item, None] = field(default_factory=dict)  # oldest use first
    uploading: dict[Item, float] = field(default_factory=dict)  # when done
    ever: set[Item] = field(default_factory=set)
    homes: set[int] = field(default_factory=set)
    total: dict[int, float] = field(default_factory=dict)  # bytes of each submodel, whatever became of them
    current: Item | None = None
    needed: bool = False  # whether the camera's own cell had nothing without it when it began
    opens: float = 0.0  # when its first byte comes
    stalled_since: float | None = None


class Simulation:
    """A viewer on a path.

    Args:
        scene: the submodels.
        seconds: [M] times of the path's corners, not descending; equal ones are a jump.
        points: [M, 3] the camera there, metres; straight and even between.
        line: what the bytes come over.
        viewer: how it decides.
    """

    def __init__(
        self, scene: Scene, seconds: NDArray[np.float64], points: NDArray[np.float64], line: Line, viewer: Viewer
    ) -> None:
        self.scene, self.line, self.viewer = scene, line, viewer
        self.seconds, self.points = seconds, points
        self.rate = line.megabits * 1e6 / 8
        self.levels = len(scene.wire)
        self.state, self.report = _State(), Report()

    @property
    def begin(self) -> float:
        """When the camera sets out: nobody walks about before there is a picture."""
        return self.report.first_picture

    def run(self) -> Report:
        """Go the whole path, once there is something to see."""
        tick, last = self.viewer.tick, self.seconds[-1]
        for k in range(round((last + PATIENCE) / tick)):
            now, end = k * tick, (k + 1) * tick
            if now >= self.begin + last:
                break
            ranked = self._ranked(now)
            self._note_home(ranked[0], now)
            while now < end:
                self._choose(ranked, now)
                event = self._next_event(now, end)
                self._spend(ranked[0], now, event)
                now = event
                self._complete(ranked, now)
        if self.state.stalled_since is not None:
            self._end_stall(self.begin + last)
        total, homes = self.state.total, self.state.homes
        self.report.unseen = sum(count for submodel, count in total.items() if submodel >= 0 and submodel not in homes)
        return self.report

    def position(self, now: float) -> NDArray[np.float64]:
        """The camera, metres."""
        now = max(now - self.begin, 0.0)
        right = min(int(np.searchsorted(self.seconds, now, side="right")), len(self.seconds) - 1)
        begin, end = self.seconds[right - 1], self.seconds[right]
        share = 1.0 if end == begin else min((now - begin) / (end - begin), 1.0)
        return (1 - share) * self.points[right - 1] + share * self.points[right]

    def velocity(self, now: float) -> NDArray[np.float64]:
        """Of the camera as a viewer sees it: what it went since the last decision, metres per second."""
        before = max(now - self.viewer.tick, 0.0)
        step = self.position(now) - self.position(before)
        return np.zeros(3) if np.abs(step).max() > 2 * self.scene.cell else step / self.viewer.tick

    def _ranked(self, now: float) -> list[int]:
        """Submodels in the order that they are wanted; the first is that of the camera's own cell."""
        position = self.position(now)
        away = np.abs(self.scene.centres - position).max(axis=1)
        order = [int(i) for i in np.argsort(away, kind="stable")]
        home = order[0]
        if self.viewer.prefetch == "none":
            return [home]
        near = [i for i in order if away[i] <= self.viewer.reach * self.scene.cell]
        if self.viewer.prefetch == "velocity":
            near = list(dict.fromkeys([*self._ahead(position, now), *near]))
        return list(dict.fromkeys([home, *near]))

    def _ahead(self, position: NDArray[np.float64], now: float) -> list[int]:
        """Submodels that the camera comes to if it goes on as it does, in order."""
        velocity = self.velocity(now)
        speed = float(np.abs(velocity).max())
        if speed == 0:
            return []
        # Four looks a cell, and not beyond the scene: the nearest cell to what lies outside says nothing.
        times = np.arange(0.0, self.viewer.horizon, self.scene.cell / speed / 4)
        points = position + times[:, None] * velocity
        away = np.abs(self.scene.centres[None] - points[:, None]).max(axis=2)
        inside = away.min(axis=1) <= 0.5 * self.scene.cell + 1e-9
        return list(dict.fromkeys(int(i) for i in away.argmin(axis=1)[inside]))

    def _wanted(self, ranked: list[int]) -> Iterator[Item]:
        """What should be in memory, most wanted first, and no more than fits."""
        yield SHARED
        home = ranked[0]
        room = self.viewer.cache
        for item in [(home, level) for level in range(self.levels)]:
            room -= self.scene.memory[item[1]]
            yield item
        # Coarse ones of all before a fine one of any: one coarse picture more is worth more than a finer one.
        for level in range(self.levels):
            for submodel in ranked[1:]:
                if self.scene.memory[level] > room:
                    return
                room -= self.scene.memory[level]
                yield submodel, level

    def _choose(self, ranked: list[int], now: float) -> None:
        """Begin the most wanted transfer that is not done, which may put off the current one."""
        state = self.state
        if state.current is not None and (
            self.viewer.put_off == "none" or (self.viewer.put_off == "guesses" and state.needed)
        ):
            return
        there = state.resident.keys() | state.uploading.keys()
        item = next((item for item in self._wanted(ranked) if item not in there), None)
        if item != state.current:
            state.current, state.opens = item, now + self.line.round_trip
            # A finer level of what is there already waits for the first one of anything that is not.
            state.needed = item is not None and item[0] in (-1, ranked[0]) and item[1] == 0

    def _next_event(self, now: float, end: float) -> float:
        state, times = self.state, [end, *self.state.uploading.values()]
        if state.current is not None:
            missing = self.scene.bytes_of(state.current) - state.received.get(state.current, 0.0)
            times.append(max(now, state.opens) + missing / self.rate)
        return min(times)

    def _spend(self, home: int, begin: float, end: float) -> None:
        """Bytes and waiting between two events."""
        state, report = self.state, self.report
        if state.current is not None:
            got = max(0.0, end - max(begin, state.opens)) * self.rate
            state.received[state.current] = state.received.get(state.current, 0.0) + got
            report.bytes += got
            state.total[state.current[0]] = state.total.get(state.current[0], 0.0) + got
            if state.current in state.ever:
                report.again += got
        level = max((item[1] for item in state.resident if item[0] == home), default=-1)
        if report.first_picture < math.inf and 0 <= level < self.levels - 1:
            report.coarse += end - begin

    def _complete(self, ranked: list[int], now: float) -> None:
        """End the transfer and the uploads that are due."""
        state, scene = self.state, self.scene
        current = state.current
        if current is not None and scene.bytes_of(current) - state.received.get(current, 0.0) < 0.5:
            seconds = 0.0 if current == SHARED else scene.memory[current[1]] / self.viewer.upload
            state.uploading[current] = now + seconds
            state.current = None
        for item in [item for item, done in state.uploading.items() if done <= now + 1e-12]:
            del state.uploading[item]
            state.ever.add(item)
            state.resident[item] = None
            self._evict(ranked)
            if item != SHARED:
                self.report.first_picture = min(self.report.first_picture, now)
            if item[0] == ranked[0]:
                self._end_stall(now)

    def _evict(self, ranked: list[int]) -> None:
        """Forget what is wanted least until the rest fits: what was used longest ago of what nobody wants, first."""
        state, wanted = self.state, list(self._wanted(ranked))
        memory = sum(self.scene.memory[level] for submodel, level in state.resident if submodel >= 0)
        spare = [item for item in state.resident if item not in wanted]
        while memory > self.viewer.cache and spare:
            item = spare.pop(0)
            del state.resident[item]
            state.received[item] = 0.0
            memory -= self.scene.memory[item[1]]
        self.report.peak = max(self.report.peak, memory)

    def _note_home(self, home: int, now: float) -> None:
        """The camera's cell at a decision: it begins a stall if nothing of it is there."""
        state = self.state
        state.homes.add(home)
        there = [item for item in state.resident if item[0] == home]
        for item in there:  # used now
            del state.resident[item]
            state.resident[item] = None
        if there:
            self._end_stall(now)
        elif state.stalled_since is None and self.report.first_picture < math.inf:
            state.stalled_since = now
            self.report.stalls += 1

    def _end_stall(self, now: float) -> None:
        if self.state.stalled_since is not None:
            waited = now - self.state.stalled_since
            self.report.stalled += waited
            self.report.longest = max(self.report.longest, waited)
            self.state.stalled_since = None


# Sizes and scenes ----------------------------------------------------------------------------------------------------


def read_sizes(folder: Path) -> Sizes:
    """Mean sizes of an exported asset's submodels: what the viewer loads of each `sm_XXX`, as `os.stat` has it.

    Raises:
        InputError: no folder `sm_XXX`, or one without the files of a submodel.
    """
    submodels = sorted(path for path in folder.glob("sm_[0-9][0-9][0-9]") if path.is_dir())
    if not submodels:
        raise InputError(f"{folder}: has no folder sm_000 or the like, expected an exported SMERF asset")
    wire = memory = network = 0.0
    for submodel in submodels:
        names = sorted({path.name.removesuffix(".gz") for path in submodel.iterdir()})
        viewed = [name for name in names if name.startswith(VIEWED)]
        if NETWORK not in names or not any(name.startswith("plane_") for name in viewed):
            raise InputError(f"{submodel}: has no {NETWORK} or no planes, expected a submodel's files")
        for name in viewed:
            packed = submodel / f"{name}.gz"
            wire += os.stat(packed if packed.exists() else submodel / name).st_size
            memory += unpacked_bytes(submodel / name)
        packed = submodel / f"{NETWORK}.gz"
        network = os.stat(packed if packed.exists() else submodel / NETWORK).st_size / len(submodels)
    return Sizes(wire / len(submodels), memory / len(submodels), network)


def unpacked_bytes(path: Path) -> int:
    """Bytes of a file, or what the trailer of its packed form says they are."""
    packed = path.with_name(f"{path.name}.gz")
    if not packed.exists():
        return os.stat(path).st_size
    with open(packed, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


def storey(sizes: Sizes, cells: int, cell: float, coarse: float | None = None, split: bool = False) -> Scene:
    """A storey of cells x cells live submodels of the same size.

    Args:
        sizes: of a submodel.
        cells: along a side.
        cell: side of a cell, metres.
        coarse: share of a submodel's bytes that its coarse level has; None for no such level.
        split: whether each submodel brings its own network, or all come first, as in the official layout.
    """
    grid = (np.indices((cells, cells)).reshape(2, -1).T + 0.5) * cell
    centres = np.concatenate([grid, np.full((len(grid), 1), cell / 2)], axis=1)
    levels = (coarse, 1.0) if coarse else (1.0,)
    own = sizes.network if split else 0.0
    wire = tuple(share * sizes.wire + (own if k == 0 else 0.0) for k, share in enumerate(levels))
    memory = tuple(share * sizes.memory for share in levels)
    return Scene(centres, cell, wire, memory, 0.0 if split else sizes.network * len(grid))


# Camera paths --------------------------------------------------------------------------------------------------------

CameraPath = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Times [M] and points [M, 3] of a path's corners."""
PATHS = ("stroll", "walk", "fly", "jump")


def make_path(name: str, scene: Scene, seconds: float, seed: int = 0) -> CameraPath:
    """A camera path from the scene's first cell on.

    `stroll`: from a cell to one beside it at 1 m/s, with a stop of 8 s in each; `walk`: the same without stops at
    1.4 m/s; `fly`: straight to a random cell at 5 m/s, and on; `jump`: every 12 s at once to a random cell.

    Args:
        name: one of `PATHS`.
        scene: a storey.
        seconds: length of the path.
        seed: of the random choices.
    """
    rng = np.random.default_rng(seed)
    speed, stop = {"stroll": (1.0, 8.0), "walk": (1.4, 0.0), "fly": (5.0, 0.0), "jump": (math.inf, 12.0)}[name]
    # Not quite at the centres: from there all cells around are equally near.
    aims = scene.centres + rng.uniform(-0.2, 0.2, scene.centres.shape) * scene.cell
    at, times, points = 0, [0.0], [aims[0]]
    seen = {0}
    while times[-1] < seconds:
        if stop:
            times.append(times[-1] + stop)
            points.append(aims[at])
        away = np.abs(scene.centres - scene.centres[at]).sum(axis=1)
        beside = np.flatnonzero((away > 0) & ((away < 1.5 * scene.cell) if name in ("stroll", "walk") else True))
        # Nobody walks to and fro between two rooms while there are others to see.
        fresh = [int(i) for i in beside if int(i) not in seen] or [int(i) for i in beside]
        at = int(rng.choice(fresh))
        seen.add(at)
        times.append(times[-1] + float(np.linalg.norm(aims[at] - points[-1])) / speed)
        points.append(aims[at])
    return np.minimum(times, seconds), np.array(points)


VIEWERS = {
    "no prefetch": Viewer("none", put_off="none"),
    "nearest": Viewer("nearest"),
    "motion": Viewer("velocity"),
    "motion, 1.5 s ahead": Viewer("velocity", horizon=1.5, reach=0.0, put_off="all"),
}
"""What is compared. The first is the official viewer; the last looks only where the camera will be in 1.5 s, and gives
up what it is fetching, keeping what it has got, whenever another cell is needed."""
COARSE = 1 / 16
"""Bytes of a coarse level, of those of its submodel: a quarter of the planes' resolution, and of the blocks'."""


# The benchmark -------------------------------------------------------------------------------------------------------


@dataclass
class Streaming:
    """Simulate streaming of a 5^3 scene, and of one with ten times as many submodels."""

    output_dir: Path
    """Where streaming.csv and streaming.png are written."""
    asset: Path | None = None
    """Exported SMERF asset whose submodels' sizes are taken; the table of this file otherwise."""
    minutes: float = 3.0
    """Length of each path."""
    cell: float = 3.5
    """Side of a cell in metres: 25 of them are 300 square metres, the paper's largest scene."""
    megabits: tuple[float, ...] = (5.0, 20.0, 100.0)
    """Lines, 10^6 bits per second."""
    cache: float = 2e9
    """Bytes of submodels that a viewer keeps."""

    def main(self) -> None:
        """Run all simulations, write the table and the plot."""
        sizes = {self.asset.name: read_sizes(self.asset)} if self.asset else TABLE
        rows = [row for name, size in sizes.items() for row in self.simulate(name, size)]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with open(self.output_dir / "streaming.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        plot(rows, self.output_dir / "streaming.png")
        CONSOLE.print(f"{len(rows)} simulations: {self.output_dir / 'streaming.csv'}")

    def simulate(self, name: str, sizes: Sizes) -> Iterator[dict[str, Any]]:
        """Rows of the table for submodels of one size."""
        building, large = storey(sizes, 5, self.cell), storey(sizes, 16, self.cell)
        for policy, viewer in VIEWERS.items():
            yield from self.rows(name, "25", policy, building, replace(viewer, cache=self.cache))
        best = replace(VIEWERS["motion"], cache=self.cache)
        for count in (2, 4, 8):
            fitted = replace(best, cache=count * sizes.memory)
            yield from self.rows(name, "25", f"motion, cache of {count}", building, fitted)
        yield from self.rows(name, "256", "motion", large, best)
        for label, coarse in (("own networks", None), ("own networks, coarse level", COARSE)):
            for cells, title in ((5, "25"), (16, "256")):
                scene = storey(sizes, cells, self.cell, coarse, split=True)
                yield from self.rows(name, f"{title}, {label}", "motion", scene, best)

    def rows(self, name: str, label: str, policy: str, scene: Scene, viewer: Viewer) -> Iterator[dict[str, Any]]:
        """One row for each path and line."""
        for path in PATHS:
            seconds, points = make_path(path, scene, 60 * self.minutes)
            for megabits in self.megabits:
                report = Simulation(scene, seconds, points, Line(megabits), viewer).run()
                figures = {key: round(value, 2) for key, value in asdict(report).items()}
                setting = {"size": name, "scene": label, "viewer": policy, "path": path, "megabits": megabits}
                setting["seconds"] = 60 * self.minutes
                yield {**setting, **figures}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Share of each path that is a stall, by line and viewer, and the seconds to the first picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["size"] for row in rows))
    megabits = sorted({row["megabits"] for row in rows})
    figure, axes = pyplot.subplots(len(names), len(megabits), figsize=(12, 3.4 * len(names)), squeeze=False)
    shown = [
        ("25", "no prefetch", "no prefetch", "#b0b0b0"),
        ("25", "nearest", "the nearest", "#7aa6c2"),
        ("25", "motion", "by motion", "#1f5f8b"),
        ("25, own networks, coarse level", "motion", "by motion, coarse level first", "#e08a1e"),
    ]
    for name, line_axes in zip(names, axes, strict=True):
        for rate, axis in zip(megabits, line_axes, strict=True):
            for k, (scene, viewer, label, colour) in enumerate(shown):
                wanted = {"size": name, "scene": scene, "viewer": viewer, "megabits": rate}
                found = {row["path"]: row for row in rows if wanted.items() <= row.items()}
                heights = [100 * found[p]["stalled"] / found[p]["seconds"] for p in PATHS]
                first = found[PATHS[0]]["first_picture"]
                label = f"{label}: first picture after {first:.1f} s"
                axis.bar(np.arange(len(PATHS)) + 0.2 * (k - 1.5), heights, 0.2, label=label, color=colour)
            axis.set_xticks(range(len(PATHS)), PATHS)
            axis.set_title(f"{name}, {rate:g} Mbit/s", fontsize=9)
            axis.set_ylim(0, 150)  # room for the legend
            axis.set_yticks(range(0, 101, 25))
            axis.legend(fontsize=6, frameon=False, loc="upper center")
            axis.spines[["top", "right"]].set_visible(False)
        line_axes[0].set_ylabel("% of the way without its submodel")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    tyro.cli(Streaming).main()
