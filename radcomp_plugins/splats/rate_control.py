"""Rate control: the scene and the settings of a file that meet a size or a quality, found by measuring.

Nothing is preset: from the finest settings, each step tries every way to make the file smaller (fewer Gaussians,
coarser steps, a shorter SH palette, a lower SH degree), writes and decodes the file, draws it, and goes the way that
loses the least quality per byte saved. Where the limit is crossed, the number of Gaussians is searched by bisection.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.comparison import SceneComparison
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.reduce import Reducer
from radcomp_plugins.splats.views import PinholeView

SIZE_TOLERANCE = 0.02
KEEP_STEP, COARSER_STEP, PALETTE_STEP = 0.7, 1.4, 0.5
SMALLEST_PALETTE = 16
COARSEST = 8.0
OPACITY_STEP, COARSEST_OPACITY = 2.0, 4.0
FINEST, UTMOST = 0.5, 0.25
CLUSTERING = 2**30
"""Gaussians times palette entries that the search clusters at once: 15 s of two quiet cores at SH degree 3."""
MAX_STEPS = 40
MAX_BISECTIONS = 12

ASSUMED_TEACHER_PSNR = 30.0


@dataclass(frozen=True)
class Point:
    """One choice of everything that a file's size depends on.

    Attributes:
        count: Gaussians kept.
        degree: of their SH.
        coarse: factor of the quantisers' default steps.
        palette: length of the SH palette; 0 at degree 0.
        opacity: factor of the step of opacities, on top of `coarse`. What faint Gaussians are worth differs most from
            scene to scene: twice the step saves 1 %, and loses 1 dB of one scene and nothing of another.
    """

    count: int
    degree: int
    coarse: float
    palette: int
    opacity: float = 1.0


@dataclass(frozen=True)
class Measured:
    """A point with what it costs and gives.

    Attributes:
        point: The choice.
        size: Bytes of the file.
        psnr: of the decoded file against the original's pictures, dB.
        data: The file.
    """

    point: Point
    size: int
    psnr: float
    data: bytes


@dataclass(frozen=True)
class Goal:
    """What is asked for; at least one limit.

    Attributes:
        size: Bytes that must not be exceeded; the file comes within 2 % of it.
        psnr: dB against the original's pictures that must be reached, with as few bytes as can be.
        count: Gaussians that must not be exceeded.
    """

    size: int | None = None
    psnr: float | None = None
    count: int | None = None


@runtime_checkable
class Codec(Protocol):
    """A file format as rate control sees it."""

    @property
    def moves(self) -> Sequence[str]:
        """Names of the fields of `Point`, besides `count`, that change its files."""
        ...

    def encode(self, gaussians: Gaussians, point: Point, significance: Float[Tensor, " N"]) -> bytes:
        """The whole file."""
        ...

    def decode(self, data: bytes) -> Gaussians:
        """What it holds."""
        ...


def psnr_floor(max_loss: float, teacher_psnr: float = ASSUMED_TEACHER_PSNR) -> float:
    """PSNR against the original's own pictures that costs `max_loss` dB of its PSNR against photos.

    The two errors are taken as independent, so that their squares add up: the compressed scene's mean squared error is
    10^(-teacher/10) + 10^(-floor/10).

    Args:
        max_loss: dB, above 0.
        teacher_psnr: of the original against photos, dB; where there are none, 30 is a usual value.
    """
    if not 0 < max_loss < 100:
        raise InputError(f"a loss of {max_loss} dB: expected more than 0 and less than 100")
    return teacher_psnr - 10 * math.log10(10 ** (max_loss / 10) - 1)


def parse_size(text: str) -> int:
    """Bytes in a size such as 5MB, 800kB, 1.5MiB or 120000.

    Raises:
        InputError: No such number or unit, or not above 0.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.strip().rstrip("bBkKmMgGiI ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        value = float(number) * units[unit]
    except (ValueError, KeyError) as error:
        raise InputError(f"size {text!r}: expected a number of bytes such as 5MB, 800kB or 1.5MiB") from error
    if not 1 <= value < 2**50:
        raise InputError(f"size {text!r}: expected at least one byte")
    return int(value)


class Meter:
    """Measures points of one scene; remembers those it has measured.

    Args:
        original: The scene.
        significance: of each of its Gaussians.
        codec: The format.
        views: Cameras to compare in.
        reference: The scene whose pictures are the truth; None takes `original`.
        merging: Whether Gaussians may be merged, where that looks better than dropping some.
    """

    def __init__(
        self,
        original: Gaussians,
        significance: Float[Tensor, " N"],
        codec: Codec,
        views: Sequence[PinholeView],
        reference: Gaussians | None = None,
        merging: bool = True,
    ) -> None:
        self.original, self.significance, self.codec = original, significance, codec
        self.views = views
        self.comparison = SceneComparison(original if reference is None else reference, views)
        self.reducer = Reducer(original, significance, self.psnr_of, merging)
        self.known: dict[Point, Measured] = {}

    def encode(self, point: Point) -> bytes:
        """The file of a point."""
        reduced = self.reducer.at(point.count)
        scene = reduced.scene.with_sh_degree(min(point.degree, self.original.sh_degree))
        return self.codec.encode(scene, point, reduced.significance)

    def measure(self, point: Point) -> Measured:
        """The point, written, decoded and drawn."""
        if point not in self.known:
            data = self.encode(point)
            # What it decodes to is not kept: forty scenes of a million Gaussians would not fit into memory.
            self.known[point] = Measured(point, len(data), self.psnr_of(self.codec.decode(data)), data)
        return self.known[point]

    def psnr_of(self, decoded: Gaussians) -> float:
        """Over all views, on black and on white alike."""
        return self.comparison.psnr_of(decoded)


def control(meter: Meter, goal: Goal, progress: Callable[[Measured], None] | None = None) -> Measured:
    """The file that meets a goal at the least measured cost.

    Raises:
        InputError: No setting reaches the goal; the line says what can be reached.
    """
    best = meter.measure(_finest(meter, goal))
    if goal.psnr is not None and best.psnr < goal.psnr:
        best = meter.measure(_utmost(best.point))
    if goal.psnr is not None and best.psnr < goal.psnr:
        limit = f" with {best.point.count} Gaussians" if goal.count is not None else ""
        raise InputError(f"{goal.psnr:.2f} dB cannot be reached{limit}: the finest file has {best.psnr:.2f} dB; ask "
                         f"for less")  # fmt: skip
    if goal.size is None and goal.psnr is None:
        return best
    if goal.size is not None and goal.psnr is None:
        best = _grown(meter, best, goal.size, progress)
    for _ in range(MAX_STEPS):
        if progress is not None:
            progress(best)
        if goal.size is not None and best.size <= goal.size:
            return best
        tried = [meter.measure(point) for point in _moves(best.point, meter.codec.moves)]
        if goal.psnr is not None:
            tried = [m for m in tried if m.psnr >= goal.psnr]
        smaller = [m for m in tried if m.size < best.size]
        if not smaller:
            break
        chosen = min(smaller, key=lambda m: _price(best, m))
        if goal.size is not None and chosen.size < (1 - SIZE_TOLERANCE) * goal.size:
            return _fit_size(meter, best, chosen, goal)
        best = chosen
    if goal.size is not None and best.size > goal.size:
        raise InputError(f"{goal.size} bytes cannot be reached: the smallest file has {best.size} bytes"
                         + ("" if goal.psnr is None else f" at {goal.psnr:.2f} dB") + "; ask for more")  # fmt: skip
    return best if goal.psnr is None else _fit_quality(meter, best, goal.psnr)


def _finest(meter: Meter, goal: Goal) -> Point:
    count = len(meter.original) if goal.count is None else min(goal.count, len(meter.original))
    if count < 1:
        raise InputError(f"at most {goal.count} Gaussians: expected 1 or more")
    degree = meter.original.sh_degree
    palette = min(max(count // 8, SMALLEST_PALETTE), 65536, max(CLUSTERING // count, SMALLEST_PALETTE)) if degree else 0
    wants_less = goal.size is not None or goal.psnr is not None
    return Point(count, degree, FINEST if wants_less else 1.0, palette)


def _utmost(point: Point) -> Point:
    """As near to the original as files go: only where the finest of the search does not do, for it takes long."""
    return replace(point, coarse=UTMOST, palette=min(point.count, 65536) if point.degree else 0)


def _grown(meter: Meter, best: Measured, size: int, progress: Callable[[Measured], None] | None) -> Measured:
    """Finer settings than the finest of the search, doubled while they fit: more than was needed was asked for."""
    while best.size < (1 - SIZE_TOLERANCE) * size:
        point = replace(
            best.point, coarse=max(best.point.coarse / 2, UTMOST), palette=_longer_palette(meter, best.point)
        )
        finer = best if point == best.point else meter.measure(point)
        if finer.psnr <= best.psnr:
            return best
        if finer.size > size:
            if point.count * point.palette > CLUSTERING:
                point = replace(point, palette=best.point.palette)
            return best if point == best.point else _along(meter, point, best, Goal(size=size))
        if progress is not None:
            progress(best)
        best = finer
    return best


def _longer_palette(meter: Meter, point: Point) -> int:
    """Twice as long where that can be clustered in time; else all different SH vectors, if there is room for them."""
    doubled = min(2 * point.palette, point.count, 65536)
    if doubled * point.count <= CLUSTERING:
        return doubled
    different = meter.original.different_sh()
    return max(different, point.palette) if different <= 65536 else point.palette


def _moves(point: Point, fields: Sequence[str]) -> list[Point]:
    """The ways to a smaller file."""
    moves = []
    if point.count > 1:
        moves.append(replace(point, count=max(1, int(point.count * KEEP_STEP))))
    if "coarse" in fields and point.coarse < COARSEST:
        moves.append(replace(point, coarse=point.coarse * COARSER_STEP))
    if "opacity" in fields and point.opacity < COARSEST_OPACITY:
        moves.append(replace(point, opacity=point.opacity * OPACITY_STEP))
    if "palette" in fields and point.degree and point.palette > SMALLEST_PALETTE:
        moves.append(replace(point, palette=max(SMALLEST_PALETTE, int(point.palette * PALETTE_STEP))))
    if "degree" in fields and point.degree:
        moves.append(replace(point, degree=point.degree - 1, palette=point.palette if point.degree > 1 else 0))
    return moves


def _price(before: Measured, after: Measured) -> float:
    """Growth of the mean squared error per logarithm of bytes saved: what a rate-distortion curve's slope is here."""
    lost = 10 ** (-after.psnr / 10) - 10 ** (-before.psnr / 10)
    saved = math.log(before.size / after.size)
    # A move that costs nothing is the better the more it saves.
    return lost / saved if lost > 0 else lost * saved - saved


def _fit_size(meter: Meter, over: Measured, under: Measured, goal: Goal) -> Measured:
    """Between a file that is too large and one that is too small.

    The way from one to the other is searched first; where it has no steps between (a lower SH degree), the larger
    file's settings with fewer Gaussians, and the smaller one's with more.
    """
    assert goal.size is not None
    found = [_along(meter, over.point, under, goal)]
    if found[0].size < (1 - SIZE_TOLERANCE) * goal.size:
        found += [m for m in (fit_size(meter, p, goal) for p in (over.point, under.point)) if m is not None]
    found = [m for m in found if goal.psnr is None or m.psnr >= goal.psnr]
    near = [m for m in found if m.size >= (1 - SIZE_TOLERANCE) * goal.size]
    return max(near or [*found, under], key=lambda m: m.psnr)


def _along(meter: Meter, over: Point, under: Measured, goal: Goal) -> Measured:
    """The largest file that fits on the way from a point that is too large to one that is not."""
    assert goal.size is not None
    if over.degree != under.point.degree:
        return under
    low, high, fits = 0.0, 1.0, under.point
    for _ in range(MAX_BISECTIONS):
        middle = 0.5 * (low + high)
        point = replace(
            over,
            count=_mix(over.count, under.point.count, middle),
            coarse=over.coarse * (under.point.coarse / over.coarse) ** middle,
            palette=_mix(over.palette, under.point.palette, middle),
            opacity=over.opacity * (under.point.opacity / over.opacity) ** middle,
        )
        size = len(meter.encode(point))
        if size > goal.size:
            low = middle
            continue
        high, fits = middle, point
        if size >= (1 - SIZE_TOLERANCE / 2) * goal.size:
            break
    return meter.measure(fits)


def _mix(a: int, b: int, share: float) -> int:
    """A whole number `share` of the way from a to b, by ratio."""
    return round(a * (b / a) ** share) if a and b else b


def fit_size(meter: Meter, point: Point, goal: Goal) -> Measured | None:
    """The point with as many Gaussians as fit into the size, to within 2 %."""
    assert goal.size is not None
    low, high = 0, len(meter.original) if goal.count is None else min(goal.count, len(meter.original))
    count = point.count
    size = len(meter.encode(point))
    fits = point if size <= goal.size else None
    for _ in range(MAX_BISECTIONS):
        if size <= goal.size:
            low = count
        else:
            high = count - 1
        if low >= high or (fits is not None and size <= goal.size and size >= (1 - SIZE_TOLERANCE / 2) * goal.size):
            break
        # Bytes grow nearly in proportion to the count, so the secant is close at once; kept inside the bracket.
        guess = int(count * (1 - SIZE_TOLERANCE / 4) * goal.size / size)
        count = guess if low < guess < high else (low + high + 1) // 2
        candidate = replace(point, count=count)
        size = len(meter.encode(candidate))
        if size <= goal.size and (fits is None or count > fits.count):
            fits = candidate
    return None if fits is None else meter.measure(fits)


def _fit_quality(meter: Meter, best: Measured, floor: float) -> Measured:
    """Fewer Gaussians, by bisection, as long as the floor holds; `best` holds it."""
    low, high = int(best.point.count * KEEP_STEP), best.point.count
    for _ in range(4):
        if high - low < max(2, best.point.count // 100):
            break
        middle = (low + high) // 2
        tried = meter.measure(replace(best.point, count=middle))
        if tried.psnr >= floor:
            high = middle
            best = tried if tried.size < best.size else best
        else:
            low = middle
    return best


def finite_scene(gaussians: Gaussians) -> Gaussians:
    """The Gaussians that can be drawn.

    Raises:
        InputError: None is left.
    """
    good = gaussians.finite()
    if not bool(good.any()):
        raise InputError("the scene has no Gaussian without NaN or infinity: nothing to compress")
    return gaussians if bool(good.all()) else gaussians.select(good)
