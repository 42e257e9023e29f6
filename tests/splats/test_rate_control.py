"""Goals are met, at the cheapest measured price, or refused in one line."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats import rate_control
from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest
from radcomp_plugins.splats.rate_control import Goal, Meter, Point, control, finite_scene, parse_size, psnr_floor
from radcomp_plugins.splats.virtual_views import virtual_views


def ball(n: int = 120, degree: int = 1) -> Gaussians:
    """Gaussians of falling size on a sphere, so that the last ones matter least."""
    generator = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    scales = torch.linspace(-1.0, -4.0, n)[:, None].expand(n, 3).contiguous()
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    rest = 0.1 * torch.randn(n, num_sh_rest(degree), 3, generator=generator)
    return Gaussians(means, quats, scales, torch.full((n,), 1.5), torch.randn(n, 3, generator=generator), rest)


class Counted:
    """Files whose size is known: 100 bytes, and per Gaussian 10 / coarse, 3 by SH degree and 1 for the palette."""

    moves = ("coarse", "palette", "degree")

    def __init__(self) -> None:
        self.scenes: list[tuple[Gaussians, Point]] = []

    def encode(self, gaussians: Gaussians, point: Point, significance: Tensor) -> bytes:
        assert len(significance) == len(gaussians) == point.count and gaussians.sh_degree == point.degree
        self.scenes.append((gaussians, point))
        size = 100 + int(point.count * (10 / point.coarse + 3 * point.degree)) + point.palette
        return len(self.scenes).to_bytes(4, "little") + bytes(size - 4)

    def decode(self, data: bytes) -> Gaussians:
        g, point = self.scenes[int.from_bytes(data[:4], "little") - 1]
        noise = torch.randn(g.sh0.shape, generator=torch.Generator().manual_seed(1))
        return replace(g, sh0=g.sh0 + 0.02 * point.coarse * noise)


@pytest.fixture
def meter() -> Meter:
    scene = ball()
    return Meter(scene, torch.linspace(1.0, 0.0, len(scene)), Counted(), virtual_views(scene, 3, 32))


@pytest.mark.parametrize("size", [2800, 1500, 700, 300])
def test_a_size_is_met_within_two_percent_and_never_exceeded(meter: Meter, size: int) -> None:
    found = control(meter, Goal(size=size))
    # A Gaussian more or less is several bytes.
    assert size * 0.98 - 24 <= found.size <= size and len(found.data) == found.size


@pytest.mark.parametrize("size, coarse, palette", [(4000, 0.342, 23), (10_000, 0.25, 32)])
def test_a_size_above_the_finest_of_the_search_is_used(meter: Meter, size: int, coarse: float, palette: int) -> None:
    found = control(meter, Goal(size=size))
    # The finest of the search has 2876 bytes. Beyond 5292 a longer palette would make nothing better.
    assert 0.98 * min(size, 5292) - 24 <= found.size <= size
    assert found.point.count == 120 and found.point.coarse == pytest.approx(coarse, rel=0.03)
    assert found.point.palette == palette and found.psnr > meter.measure(Point(120, 1, 0.5, 16)).psnr


def test_no_palette_is_clustered_that_takes_too_long(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_control, "CLUSTERING", 120 * 20)
    # Twice as long is too long, but all 120 vectors need no clustering.
    assert control(meter, Goal(size=10_000)).point == Point(120, 1, 0.25, 120)
    # Where these do not fit, steps alone are finer.
    found = control(meter, Goal(size=4000))
    assert found.point.palette == 16 and 0.25 < found.point.coarse < 0.5 and 0.98 * 4000 - 24 <= found.size <= 4000
    monkeypatch.setattr(rate_control, "CLUSTERING", 400 * 20)
    many = ball(400)
    wide = Meter(many, torch.linspace(1.0, 0.0, 400), Counted(), virtual_views(many, 1, 16))
    assert control(wide, Goal(count=400)).point == Point(400, 1, 1.0, 20)


def test_the_palette_begins_at_an_eighth_of_the_gaussians_and_ends_with_the_sh(meter: Meter) -> None:
    many = ball(400)
    wide = Meter(many, torch.linspace(1.0, 0.0, 400), Counted(), virtual_views(many, 1, 16))
    assert control(wide, Goal(count=400)).point == Point(400, 1, 1.0, 50)
    control(meter, Goal(size=300))
    assert isinstance(meter.codec, Counted)
    assert {point.palette for _, point in meter.codec.scenes if point.degree == 0} == {0}


class Lossless:
    """Files whose size is 1000 / coarse and a byte for each Gaussian, and from which the scene comes back as it was."""

    moves = ("coarse",)

    def __init__(self, original: Gaussians) -> None:
        self.original = original

    def encode(self, gaussians: Gaussians, point: Point, significance: Tensor) -> bytes:
        return bytes(int(1000 / point.coarse) + point.count)

    def decode(self, data: bytes) -> Gaussians:
        return self.original


def test_of_ways_that_lose_nothing_the_one_that_saves_most_is_taken() -> None:
    scene = ball()
    meter = Meter(scene, torch.ones(len(scene)), Lossless(scene), virtual_views(scene, 1, 16))
    # From 2120 bytes: 2084 with 84 Gaussians, 1548 with coarser steps.
    assert control(meter, Goal(size=1560)).point == Point(120, 1, 0.5 * 1.4, 16)


class Faint(Lossless):
    """Files whose size is 1000 / opacity and a byte for each Gaussian, and which lose nothing by it."""

    moves = ("opacity",)

    def encode(self, gaussians: Gaussians, point: Point, significance: Tensor) -> bytes:
        return bytes(int(1000 / point.opacity) + point.count)


def test_opacities_are_rounded_twice_and_four_times_as_coarsely_at_most() -> None:
    scene = ball()
    meter = Meter(scene, torch.ones(len(scene)), Faint(scene), virtual_views(scene, 1, 16))
    assert control(meter, Goal(size=370)).point == Point(120, 1, 0.5, 16, opacity=4.0)
    assert {point.opacity for point in meter.known} == {1.0, 2.0, 4.0}
    assert control(meter, Goal(size=620)).point == Point(120, 1, 0.5, 16, opacity=2.0)
    assert control(meter, Goal(size=369)).point.opacity == 4.0
    # Between two steps the factor is searched as well: 1000 / 1.15 + 120 bytes.
    between = control(meter, Goal(size=1000)).point
    assert 1.13 < between.opacity < 1.17 and between.count == 120


def test_more_bytes_give_more_quality(meter: Meter) -> None:
    found = [control(meter, Goal(size=size)).psnr for size in (400, 900, 2000)]
    assert found[0] < found[1] < found[2]


def test_a_quality_is_reached_with_fewer_bytes(meter: Meter) -> None:
    found = [control(meter, Goal(psnr=floor)) for floor in (40.0, 30.0, 25.0)]
    for floor, m in zip((40.0, 30.0, 25.0), found, strict=True):
        assert m.psnr >= floor
    assert found[0].size > found[1].size > found[2].size


def test_a_quality_beyond_the_search_begins_at_the_utmost(meter: Meter) -> None:
    floor = meter.measure(Point(120, 1, 0.5, 16)).psnr + 3.0
    found = control(meter, Goal(psnr=floor))
    assert found.psnr >= floor and found.point.coarse < 0.5


def test_a_count_is_a_limit_for_every_goal(meter: Meter) -> None:
    assert control(meter, Goal(count=50)).point == Point(50, 1, 1.0, 16)
    assert control(meter, Goal(count=50, size=600)).point.count <= 50
    assert control(meter, Goal(count=10**9)).point.count == 120


@pytest.mark.parametrize(
    "goal, message",
    [
        (Goal(size=20), r"20 bytes cannot be reached: the smallest file has \d+ bytes; ask for more"),
        (Goal(psnr=99.0), "99.00 dB cannot be reached: the finest file has"),
        (Goal(psnr=99.0, count=60), "cannot be reached with 60 Gaussians"),
        (Goal(psnr=40.0, size=150), "150 bytes cannot be reached: .* at 40.00 dB"),
        (Goal(count=0), "expected 1 or more"),
    ],
)
def test_goals_out_of_reach(meter: Meter, goal: Goal, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        control(meter, goal)
    assert "\n" not in str(error.value)


def test_the_cheaper_way_is_taken(meter: Meter) -> None:
    """With noise that hardly grows, coarser steps come before fewer Gaussians."""
    codec = meter.codec
    assert isinstance(codec, Counted)
    found = control(meter, Goal(size=1900))
    assert found.point.coarse > 0.6 and found.point.count > 100


@pytest.mark.parametrize(
    "text, size",
    [("5MB", 5_000_000), ("800kB", 800_000), ("1.5MiB", 1572864), ("120000", 120_000), ("7 b", 7),
     ("2KiB", 2048), ("1gb", 10**9), ("1 GiB", 2**30)]
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5XB", "-3kB", "0", "nan", "infMB", "1e300"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse_size(text)


def test_a_loss_is_a_floor() -> None:
    floor = psnr_floor(0.3, 30.0)
    mse = 10**-3.0 + 10 ** (-floor / 10)
    assert -10 * math.log10(mse) == pytest.approx(29.7)
    with pytest.raises(InputError, match="loss"):
        psnr_floor(0.0)


def test_what_is_not_finite_is_left_out() -> None:
    g = ball(5)
    g.means[2, 0] = float("nan")
    assert len(finite_scene(g)) == 4
    g.means[:, 0] = float("inf")
    with pytest.raises(InputError, match="nothing to compress"):
        finite_scene(g)
