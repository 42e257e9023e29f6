"""The report of a demo: report.json, pictures of some held-out views, the plot, and report.html over all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.cli.figures import (
    MAX_ERROR,
    RatePoint,
    Tile,
    megabytes,
    plot_rates,
    save_png,
    sheet,
    title_of,
    to_image,
    worst_window,
    write_rates,
)
from radcomp_plugins.cli.measure import ViewScore
from radcomp_plugins.cli.report_html import render_html
from radcomp_plugins.core.files import atomic_write, write_json
from radcomp_plugins.core.metrics import error_map, psnr

SCHEMA_VERSION = 1
IMAGES = "images"
TEASER = "teaser.png"


@dataclass(frozen=True)
class ViewPictures:
    """One held-out view as the photo, the teacher and the decoded asset have it.

    Attributes:
        name: file name of the photo, without its suffix.
        why: why this view is shown.
        truth, teacher, asset: [H, W, 3] in [0, 1].
    """

    name: str
    why: str
    truth: Float[Tensor, "H W 3"]
    teacher: Float[Tensor, "H W 3"]
    asset: Float[Tensor, "H W 3"]


def pick_views(teacher: Sequence[ViewScore], asset: Sequence[ViewScore]) -> dict[int, str]:
    """Which views to show, and why: the typical one, where compression lost most, and the worst; good news and bad.

    Returns:
        Index of the view -> reason, each view once.
    """
    by_psnr = sorted(range(len(asset)), key=lambda index: asset[index].psnr)
    by_loss = max(range(len(asset)), key=lambda index: teacher[index].psnr - asset[index].psnr)
    reasons = [
        (by_psnr[len(by_psnr) // 2], "median PSNR"),
        (by_loss, "largest loss against the teacher"),
        (by_psnr[0], "lowest PSNR"),
    ]
    picked: dict[int, str] = {}
    for index, reason in reasons:
        picked[index] = f"{picked[index]}, {reason}" if index in picked else reason
    return picked


def method_entry(
    *, teacher: dict[str, Any], asset: dict[str, Any], seconds: dict[str, float], stages: list[dict[str, Any]]
) -> dict[str, Any]:
    """One method of report.json.

    Args:
        teacher: psnr, ssim, lpips and bytes of the uncompressed file, and whatever else is known of it.
        asset: the same of the compressed file, and its path.
        seconds: stage of the demo -> seconds.
        stages: rows of the method's own stage report.
    """
    return {
        "teacher": teacher,
        "asset": asset,
        "ratio": teacher["bytes"] / asset["bytes"],
        "delta_psnr": asset["psnr"] - teacher["psnr"],
        "seconds": seconds,
        "stages": stages,
        "views": [],
    }


def rate_points(methods: dict[str, Any]) -> list[RatePoint]:
    """The points of the plot: each method's teacher, its stages by their estimated bytes, and its decoded file."""

    def point(method: str, label: str, kind: str, size: int, row: dict[str, Any]) -> RatePoint:
        return RatePoint(method, label, kind, size, row["psnr"], row["ssim"], row.get("gaussians", 0))

    points = []
    for name, entry in methods.items():
        teacher, asset = entry["teacher"], entry["asset"]
        points.append(point(name, "teacher", "teacher", teacher["bytes"], teacher))
        points += [point(name, row["stage"], "stage", row["estimated_bytes"], row) for row in entry["stages"]]
        points.append(point(name, title_of(name), "asset", asset["bytes"], asset))
    return points


def view_images(folder: Path, method: str, entry: dict[str, Any], pictures: ViewPictures) -> dict[str, Any]:
    """Write the pictures of one view; returns its entry in the report: PSNRs, files and the crop in pixels."""
    stem = f"{method}_{pictures.name}"
    error = (pictures.truth - pictures.asset).abs().mean(-1)
    box = worst_window(error)
    parts = {
        "truth": pictures.truth,
        "teacher": pictures.teacher,
        "asset": pictures.asset,
        "teacher_error": error_map(pictures.truth, pictures.teacher, MAX_ERROR),
        "asset_error": error_map(pictures.truth, pictures.asset, MAX_ERROR),
    }
    files = {part: f"{IMAGES}/{stem}_{part}.png" for part in parts}
    for part, image in parts.items():
        save_png(to_image(image), folder / files[part])
    files["sheet"] = f"{IMAGES}/{stem}_side_by_side.png"
    save_png(sheet(view_tiles(method, entry, pictures), box), folder / files["sheet"])
    return {
        "name": pictures.name,
        "why": pictures.why,
        "teacher_psnr": float(psnr(pictures.truth, pictures.teacher)),
        "asset_psnr": float(psnr(pictures.truth, pictures.asset)),
        "width": pictures.truth.shape[1],
        "height": pictures.truth.shape[0],
        "crop": list(box),
        "max_error": MAX_ERROR,
        "files": files,
    }


def view_tiles(method: str, entry: dict[str, Any], pictures: ViewPictures, teacher_error: bool = True) -> list[Tile]:
    """The columns of a sheet: photo, teacher, compressed, and the error maps."""
    versions = {"teacher": ("Teacher", pictures.teacher), "asset": (title_of(method), pictures.asset)}
    tiles = [Tile("Ground truth", "held-out view", pictures.truth)]
    for part, (title, image) in versions.items():
        size, quality = megabytes(entry[part]["bytes"]), float(psnr(pictures.truth, image))
        tiles.append(Tile(title, f"{size} · {quality:.2f} dB", image))
    for title, image in versions.values():
        if title != "Teacher" or teacher_error:
            colors = error_map(pictures.truth, image, MAX_ERROR)
            tiles.append(Tile(f"Error: {title}", f"black 0 to yellow {MAX_ERROR:g}", colors, smooth=False))
    return tiles


def write_report(folder: Path, report: dict[str, Any], pictures: dict[str, list[ViewPictures]]) -> None:
    """Write all files of a report into a folder; report.json comes last, so that where it is all else is.

    Args:
        folder: The demo's folder.
        report: The entries of report.json, of schema version 1; the entries of the views are added.
        pictures: Views to show of each method, the one for the README first.
    """
    for index, (name, views) in enumerate(pictures.items()):
        entry = report["methods"][name]
        entry["views"] = [view_images(folder, name, entry, view) for view in views]
        if index == 0 and views:
            tiles = view_tiles(name, entry, views[0], teacher_error=False)
            error = (views[0].truth - views[0].asset).abs().mean(-1)
            save_png(sheet(tiles, worst_window(error)), folder / TEASER)
    points = rate_points(report["methods"])
    write_rates(points, folder / IMAGES / "size_psnr.csv")
    for dark in (False, True):
        plot_rates(points, folder / IMAGES / f"size_psnr{'_dark' if dark else ''}.png", dark=dark)
    with atomic_write(folder / "report.html") as file:
        file.write(render_html(report).encode("utf8"))
    write_json(folder / "report.json", report)
