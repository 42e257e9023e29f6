"""The pictures of `radcomp compare`: a view of all files side by side over their error maps, and size against PSNR."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from radcomp_plugins.cli.figures import (
    MAX_ERROR,
    RatePoint,
    Tile,
    beneath,
    megabytes,
    plot_rates,
    save_png,
    sheet,
    worst_window,
)
from radcomp_plugins.core.metrics import error_map, psnr
from radcomp_plugins.splats.comparison import Comparison, SceneComparison
from radcomp_plugins.splats.gaussians import Gaussians

PICTURE_SIZE = 512
SIDE_BY_SIDE, RATES = "side_by_side.png", "size_psnr.png"
EQUAL = 99.9
"""PSNR in dB from which on a file's pictures are the reference's: such files would only stretch the plot."""


def write_pictures(
    folder: Path, scenes: Sequence[Gaussians], result: dict[str, Any], comparison: Comparison
) -> dict[str, Any]:
    """Write the pictures into a folder.

    Args:
        folder: That is there.
        scenes: The reference, then the files.
        result: Of `radcomp compare`, its rows in the same order.
        comparison: The views of the measurement, of a size to look at.

    Returns:
        File names, and which view is shown.
    """
    files = result["files"]
    view = worst_view([row["per_view"] for row in files])
    save_png(side_by_side(scenes, result, comparison, view), folder / SIDE_BY_SIDE)
    written: dict[str, Any] = {"side_by_side": SIDE_BY_SIDE, "view": view}
    points = rate_points(files)
    if len(files) > 2 and points:
        truth = "virtual views" if isinstance(comparison, SceneComparison) else "held-out photos"
        plot_rates(points, folder / RATES, truth=truth)
        written["size_psnr"] = RATES
    return written


def worst_view(per_view: Sequence[Sequence[float]]) -> int:
    """The view in which the files together lose most, the first of equals: no file is shown at its best."""
    errors = [sum(10 ** (-psnrs[k] / 10) for psnrs in per_view) for k in range(len(per_view[0]))]
    return errors.index(max(errors))


def side_by_side(scenes: Sequence[Gaussians], result: dict[str, Any], comparison: Comparison, view: int) -> Any:
    """The truth and every file's picture, on white where the background is ours; beneath each file its error."""
    shown = [comparison.pairs(scene, view)[-1] for scene in scenes]
    truth = shown[0][0]
    rows = [result["reference"], *result["files"]]
    if isinstance(comparison, SceneComparison):
        first = Tile(Path(rows[0]["path"]).name, f"{megabytes(rows[0]['bytes'])} · the reference", truth)
        rows, shown = rows[1:], shown[1:]
    else:
        first = Tile("Photo", "held out", truth)
    errors = [(truth - drawn).abs().mean(dim=-1) for _, drawn in shown]
    box = worst_window(sum(errors[1:], errors[0]))
    upper, lower = [first], []
    for row, (_, drawn) in zip(rows, shown, strict=True):
        name, here = Path(row["path"]).name, min(float(psnr(truth, drawn)), 100.0)
        size = f"{megabytes(row['bytes'])} · {row['psnr']:.2f} dB, here {here:.2f}"
        upper.append(Tile(name, size, drawn))
        scale = f"black 0 to yellow {MAX_ERROR:g} and more"
        lower.append(Tile(f"Error: {name}", scale, error_map(truth, drawn, MAX_ERROR), smooth=False))
    return beneath(sheet(upper, box), sheet(lower, box))


def rate_points(files: Sequence[dict[str, Any]]) -> list[RatePoint]:
    """The points of the plot by size, files that are equal to the reference left out."""
    points = [
        RatePoint(
            row["format"], Path(row["path"]).name, "file", row["bytes"], row["psnr"], row["ssim"], row["gaussians"]
        )
        for row in files
        if row["psnr"] < EQUAL
    ]
    return sorted(points, key=lambda point: point.bytes)
