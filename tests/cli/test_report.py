"""The report of a demo: schema, files, determinism, and what the page and the pictures show."""

import csv
import html.parser
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from radcomp_plugins.cli.figures import MAX_ERROR, RatePoint, Tile, megabytes, plot_rates, sheet, worst_window
from radcomp_plugins.cli.measure import ViewScore, average, frame_times
from radcomp_plugins.cli.report import ViewPictures, method_entry, pick_views, write_report
from radcomp_plugins.cli.report_html import render_html, signed
from radcomp_plugins.core.metrics import Lpips

HEIGHT, WIDTH = 24, 32


def scene(seed: int, noise: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, WIDTH)[None, :, None].expand(HEIGHT, WIDTH, 3)
    return (ramp + noise * torch.randn(HEIGHT, WIDTH, 3, generator=generator)).clamp(0, 1)


def example() -> tuple[dict[str, Any], dict[str, list[ViewPictures]]]:
    """A report with one method and two views, from fixed numbers."""
    quality = {"lpips": None, "lpips_reason": "weights not available: <offline>", "frame_width": 32, "frame_height": 24}
    teacher = {"path": "teacher.ply", "bytes": 6_200_000, "psnr": 33.1, "ssim": 0.97, "gaussians": 25_000, **quality}
    asset = {"path": "lightgaussian/scene.sog", "bytes": 310_000, "psnr": 32.9, "ssim": 0.965, "gaussians": 12_500}
    stage = {"stage": "teacher", "gaussians": 25_000, "sh_degree": 3, "estimated_bytes": 1_500_000}
    later = {"stage": "prune 1/2", "gaussians": 17_000, "sh_degree": 3, "estimated_bytes": 900_000}
    report = {
        "schema_version": 1,
        "device": "a <processor>, 2 threads",
        "versions": {"python": "3.11", "radcomp": "0.1.0"},
        "scene": {"name": "still & life", "train_views": 7, "test_views": 2, "width": WIDTH, "height": HEIGHT},
        "methods": {
            "lightgaussian": method_entry(
                teacher={**teacher, "frame_ms": 12.0, "sh_degree": 3},
                asset={**asset, **quality, "frame_ms": 6.0, "sh_degree": 2, "run": "lightgaussian/run/config.yml"},
                seconds={"scene": 8.0, "teacher": 120.0, "lightgaussian": 80.0},
                stages=[{**stage, "psnr": 33.1, "ssim": 0.97}, {**later, "psnr": 33.0, "ssim": 0.968}],
            )
        },
    }
    views = [
        ViewPictures(f"frame {index}", "median PSNR", scene(index, 0), scene(index, 0.02), scene(index, 0.05))
        for index in range(2)
    ]
    return report, {"lightgaussian": views}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report, pictures = example()
    write_report(folder, report, pictures)
    return folder


class Page(html.parser.HTMLParser):
    """Collects what a page refers to, and checks that its elements nest."""

    VOID = {"meta", "img", "input", "source", "link", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset"):
                self.references.append(unquote(value or ""))
            if name == "style" and "url('" in (value or ""):
                self.references.append(unquote(str(value).split("url('")[1].split("')")[0]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_json_has_the_schema_of_the_design(written):
    report = json.loads((written / "report.json").read_text())
    assert report["schema_version"] == 1
    assert set(report) >= {"device", "versions", "scene", "methods"}
    entry = report["methods"]["lightgaussian"]
    assert set(entry) >= {"teacher", "asset", "ratio", "delta_psnr", "seconds"}
    assert set(entry["teacher"]) >= {"psnr", "ssim", "lpips", "bytes"}
    assert set(entry["asset"]) >= {"path", "bytes", "psnr", "ssim", "lpips"}
    assert entry["ratio"] == pytest.approx(20.0)
    assert entry["delta_psnr"] == pytest.approx(-0.2)
    assert all(isinstance(value, float) for value in entry["seconds"].values())
    # 8-bit files of the views have the PSNR that the report states for them.
    view = entry["views"][0]
    truth, asset = (np.asarray(Image.open(written / view["files"][part])) / 255 for part in ("truth", "asset"))
    assert -10 * np.log10(np.mean((truth - asset) ** 2)) == pytest.approx(view["asset_psnr"], abs=0.02)


def test_every_reference_of_the_page_is_a_file_beside_it(written):
    page = Page((written / "report.html").read_text())
    assert len(page.references) > 20
    for reference in page.references:
        assert not reference.startswith(("http", "/", ".."))
        assert (written / reference).is_file(), reference
    assert "still & life" in page.text
    assert "20.0\N{MULTIPLICATION SIGN} smaller" in page.text
    assert "2.00\N{MULTIPLICATION SIGN} faster" in page.text
    assert "50% pruned" in page.text
    assert "weights not available: <offline>" in page.text
    assert "310,000" in page.text
    assert "decoded scene.sog" in page.text


def test_the_same_numbers_give_the_same_bytes(written, tmp_path):
    report, pictures = example()
    write_report(tmp_path, report, pictures)
    names = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert len(names) == 3 + 3 + 2 * 6
    for name in names:
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name


def test_a_method_without_views_and_stages_has_a_page(written):
    report, _ = example()
    report["methods"]["lightgaussian"]["stages"] = []
    del report["methods"]["lightgaussian"]["asset"]["frame_ms"]
    assert "faster" not in Page(render_html(report)).text


def test_rates_are_the_numbers_of_the_plot(written):
    with open(written / "images/size_psnr.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == ["teacher", "stage", "stage", "asset"]
    assert [int(row["bytes"]) for row in rows] == [6_200_000, 1_500_000, 900_000, 310_000]
    assert float(rows[-1]["psnr"]) == 32.9


def test_a_plot_of_two_methods_is_drawn_in_both_themes(tmp_path):
    points = [RatePoint(name, name, "asset", size, 30.0, 0.9, 1) for name, size in (("a", 10_000), ("b", 10_000_000))]
    for dark in (False, True):
        plot_rates(points, tmp_path / f"{dark}.png", dark=dark)
    light, night = (np.asarray(Image.open(tmp_path / f"{dark}.png").convert("L")) for dark in (False, True))
    assert light.mean() > 200 > 60 > night.mean()


def test_pick_views_names_the_typical_the_most_lost_and_the_worst():
    teacher = [ViewScore(psnr, 0.9, None) for psnr in (30.0, 35.0, 33.0, 40.0, 34.0)]
    asset = [ViewScore(psnr, 0.9, None) for psnr in (29.9, 34.9, 32.9, 36.0, 33.9)]
    assert pick_views(teacher, asset) == {
        4: "median PSNR",
        3: "largest loss against the teacher",
        0: "lowest PSNR",
    }
    only = pick_views(teacher[:1], asset[:1])
    assert only == {0: "median PSNR, largest loss against the teacher, lowest PSNR"}


def test_worst_window_finds_the_largest_mean_error():
    error = torch.zeros(40, 60)
    error[20:26, 30:42] = 1.0
    left, top, width, height = worst_window(error, share=0.3)
    assert (width, height) == (12, 8)
    # Eight rows hold the six of the patch wherever they begin from row 18 to 20; the first one counts.
    assert (left, top) == (30, 18)
    assert worst_window(torch.ones(3, 3), share=0.01) == (0, 0, 1, 1)
    assert worst_window(torch.ones(3, 3), share=1.0) == (0, 0, 3, 2)


def test_a_sheet_has_a_card_for_each_tile_with_the_crop_below():
    images = [torch.full((HEIGHT, WIDTH, 3), value) for value in (0.2, 0.8)]
    images[1][4:9, 6:14] = torch.tensor([1.0, 0.0, 0.0])
    picture = sheet([Tile(str(index), "x", image) for index, image in enumerate(images)], (6, 4, 8, 5), tile_width=160)
    assert picture.mode == "RGBA"
    assert picture.width == 2 * 160 + 12
    pixels = np.asarray(picture)
    assert tuple(pixels[-40, 80, :3]) == (51, 51, 51)
    assert tuple(pixels[-40, 172 + 80, :3]) == (255, 0, 0)
    assert pixels[0, 166, 3] == 0


def test_lpips_is_null_with_the_reason():
    scores = [ViewScore(30.0, 0.9, None), ViewScore(32.0, 0.8, None)]

    unavailable = Lpips()
    unavailable.reason = "offline"
    assert average(scores, unavailable) == {
        "psnr": 31.0,
        "ssim": pytest.approx(0.85),
        "lpips": None,
        "lpips_reason": "offline",
    }
    assert "--lpips" in average(scores, None)["lpips_reason"]


def test_frame_times_are_of_each_scene(monkeypatch):
    from radcomp_plugins.cli import measure
    from radcomp_plugins.splats.evaluate import HeldOutView
    from radcomp_plugins.splats.gaussians import Gaussians
    from radcomp_plugins.splats.views import PinholeView

    def blob(count: int) -> Gaussians:
        return Gaussians(
            torch.zeros(count, 3), torch.ones(count, 4), torch.zeros(count, 3), torch.zeros(count),
            torch.zeros(count, 3), torch.zeros(count, 0, 3),
        )  # fmt: skip

    drawn = []
    monkeypatch.setattr(measure, "TIMING_SECONDS", 0.0)
    monkeypatch.setattr(measure, "picture", lambda scene, view, background: drawn.append(len(scene)))
    view = HeldOutView(PinholeView(torch.eye(4), torch.eye(3), 8, 8), torch.zeros(8, 8, 3))
    times = frame_times({"a": blob(1), "b": blob(2)}, [view, view], torch.zeros(3))
    assert set(times) == {"a", "b"} and min(times.values()) >= 0
    assert drawn == [1, 2] * (measure.WARM_UP_FRAMES + 2)


def test_numbers_are_written_for_readers():
    assert [megabytes(count) for count in (6_204_567, 343_210, 61_000_000, 123_456_789)] == [
        "6.20 MB", "0.343 MB", "61 MB", "123 MB",
    ]  # fmt: skip
    assert signed(-0.214) == "\N{MINUS SIGN}0.21" and signed(0.3) == "+0.30" and signed(-0.001) == "+0.00"
    assert 0 < MAX_ERROR <= 1
