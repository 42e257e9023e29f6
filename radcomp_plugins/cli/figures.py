"""The pictures of a report: labelled sheets of images with crops and error maps, and the size-against-quality plot."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from radcomp_plugins.core.files import atomic_write

MAX_ERROR = 0.1
"""Mean absolute error per pixel, in units of the image, that has the lightest colour of an error map."""
TILE_WIDTH = 420
CROP_SHARE, CROP_RATIO = 0.3, 0.65
GAP, PAD = 12, 14
CARD, TITLE, SUBTITLE, FRAME = (23, 26, 33), (244, 246, 250), (172, 181, 196), (255, 171, 46)

TITLES = {"lightgaussian": "LightGaussian"}

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""


@dataclass(frozen=True)
class Tile:
    """One column of a sheet.

    Attributes:
        title: first line of the label.
        subtitle: second line: bytes and PSNR, or the scale of an error map.
        image: [H, W, 3] float in [0, 1].
        smooth: whether it may be enlarged smoothly; an error map keeps its pixels.
    """

    title: str
    subtitle: str
    image: Float[Tensor, "H W 3"]
    smooth: bool = True


@dataclass(frozen=True)
class RatePoint:
    """One point of the size-against-quality plot.

    Attributes:
        method: which curve it belongs to.
        label: what it is.
        kind: `teacher`, `stage` (bytes are an estimate), `asset` (bytes of the file), or `file`, one of several of its
            method.
        bytes: size.
        psnr: dB on the held-out views.
        ssim: on the same.
        gaussians: number of Gaussians.
    """

    method: str
    label: str
    kind: str
    bytes: int
    psnr: float
    ssim: float
    gaussians: int


def title_of(method: str) -> str:
    """A method's name as its paper writes it."""
    return TITLES.get(method, method)


def megabytes(count: int) -> str:
    """Bytes for a reader: 6.20 MB, 0.343 MB (10^6 bytes)."""
    value = count / 1e6
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.3g} MB" if value >= 10 else f"{value:#.3g} MB"


def to_image(image: Float[Tensor, "H W 3"]) -> Image.Image:
    """A tensor in [0, 1] as an 8-bit picture, rounded."""
    return Image.fromarray((image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def worst_window(error: Float[Tensor, "H W"], share: float = CROP_SHARE) -> Box:
    """The window with the largest mean error, the first of equals.

    Args:
        error: [H, W] error per pixel.
        share: width of the window as a share of the shorter side of the image, in (0, 1].
    """
    rows, columns = error.shape
    width = max(1, round(share * min(rows, columns)))
    height = max(1, round(CROP_RATIO * width))
    sums = torch.zeros(rows + 1, columns + 1, dtype=torch.float64)
    sums[1:, 1:] = error.detach().cpu().double().cumsum(0).cumsum(1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = divmod(int(windows.argmax()), windows.shape[1])
    return left, top, width, height


def sheet(tiles: Sequence[Tile], box: Box, tile_width: int = TILE_WIDTH) -> Image.Image:
    """Pictures side by side as dark cards on a transparent ground: label, whole picture, and the boxed part enlarged.

    Args:
        tiles: columns, of one size.
        box: the part to enlarge; it is outlined in the whole pictures.
        tile_width: width of a column in pixels.
    """
    big, small = _font(True, round(0.052 * tile_width)), _font(False, round(0.042 * tile_width))
    height, width = tiles[0].image.shape[:2]
    tile_height = round(tile_width * height / width)
    crop_height = round(tile_width * box[3] / box[2])
    label = round(0.155 * tile_width)
    card_height = label + tile_height + GAP // 2 + crop_height
    canvas = Image.new("RGBA", ((tile_width + GAP) * len(tiles) - GAP, card_height), (0, 0, 0, 0))
    for column, tile in enumerate(tiles):
        card = Image.new("RGB", (tile_width, card_height), CARD)
        pen = ImageDraw.Draw(card)
        pen.text((PAD, round(0.30 * label)), tile.title, TITLE, big, anchor="lm")
        pen.text((PAD, round(0.70 * label)), tile.subtitle, SUBTITLE, small, anchor="lm")
        picture = to_image(tile.image)
        card.paste(_enlarged(picture, (tile_width, tile_height), tile.smooth), (0, label))
        scale = tile_width / width
        corners = [box[0] * scale, box[1] * scale + label, (box[0] + box[2]) * scale, (box[1] + box[3]) * scale + label]
        pen.rectangle(corners, outline=FRAME, width=2)
        crop = picture.crop((box[0], box[1], box[0] + box[2], box[1] + box[3]))
        card.paste(_enlarged(crop, (tile_width, crop_height), False), (0, card_height - crop_height))
        canvas.paste(card, ((tile_width + GAP) * column, 0), _rounded(card.size))
    return canvas


def beneath(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Two sheets, the lower one under the right end of the upper one."""
    canvas = Image.new("RGBA", (max(upper.width, lower.width), upper.height + GAP + lower.height), (0, 0, 0, 0))
    for sheet_, top in ((upper, 0), (lower, upper.height + GAP)):
        canvas.paste(sheet_, (canvas.width - sheet_.width, top))
    return canvas


def _enlarged(picture: Image.Image, size: tuple[int, int], smooth: bool) -> Image.Image:
    enlarging = size[0] > picture.width
    method = Image.Resampling.BICUBIC if smooth or not enlarging else Image.Resampling.NEAREST
    return picture.resize(size, method)


def _rounded(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", (2 * size[0], 2 * size[1]), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 2 * size[0] - 1, 2 * size[1] - 1), 20, 255)
    return mask.resize(size, Image.Resampling.BOX)


def _font(bold: bool, size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings this font along, so that labels look alike on every machine.
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), max(8, size))


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def write_rates(points: Sequence[RatePoint], path: Path) -> None:
    """The numbers behind the plot as CSV."""
    names = list(RatePoint.__dataclass_fields__)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(names)
    rows.writerows([[getattr(point, name) for name in names] for point in points])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf8"))


def plot_rates(points: Sequence[RatePoint], path: Path, *, dark: bool = False, truth: str = "held-out views") -> None:
    """PSNR against size in bytes, logarithmic, as a PNG: the way of each method from its teacher to its file.

    Args:
        points: What to plot.
        path: Of the PNG.
        dark: For a dark page.
        truth: What the PSNR is measured on, for the axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, faint, ground = ("#e8ebf1", "#3a4150", "#171a21") if dark else ("#1d222b", "#d9dee6", "#ffffff")
    figure = Figure(figsize=(7.6, 4.4), dpi=160, facecolor=ground, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(facecolor=ground)
    # Okabe and Ito's colours, which colour-blind readers can tell apart.
    colors = ("#0072b2", "#d55e00", "#009e73", "#cc79a7") if not dark else ("#56b4e9", "#e69f00", "#26c99a", "#e6a0c8")
    colors += ("#b8860b", "#7a5cc2", "#8c8c8c", "#b03060")
    for index, method in enumerate(dict.fromkeys(point.method for point in points)):
        _plot_method([point for point in points if point.method == method], axes, colors[index % len(colors)], ink)
    axes.set_xscale("log")
    axes.set_xlabel("size in MB (logarithmic)")
    axes.set_ylabel(f"PSNR in dB, {truth}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.grid(True, which="both", color=faint, linewidth=0.6)
    axes.margins(x=0.12, y=0.15)
    axes.tick_params(colors=ink, which="both", labelsize=8.5)
    for spine in axes.spines.values():
        spine.set_color(faint)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(ink)
    place = "best" if any(point.kind == "file" for point in points) else "lower right"
    axes.legend(loc=place, frameon=False, labelcolor=ink, fontsize=8.5)
    content = io.BytesIO()
    # Without the version of matplotlib in it the same numbers give the same bytes.
    figure.savefig(content, format="png", metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(content.getvalue())


def _plot_method(points: Sequence[RatePoint], axes: Any, color: str, ink: str) -> None:
    def show(kind: str, **style: Any) -> None:
        picked = [point for point in points if point.kind == kind]
        if picked:
            axes.plot([point.bytes / 1e6 for point in picked], [point.psnr for point in picked], color=color, **style)

    method = title_of(points[0].method)
    show("teacher", marker="s", ms=8, ls="", label="teacher, .ply file")
    show("stage", marker="o", ms=3.5, lw=1.1, alpha=0.75, label=f"{method}, stages (estimated size)")
    show("file", marker="o", ms=6, lw=1.1, label=method)
    show("asset", marker="*", ms=15, ls="", label=f"{method}, decoded file")
    for point in points:
        if point.kind != "stage":
            text = f"{point.label}\n{megabytes(point.bytes)}, {point.psnr:.2f} dB"
            axes.annotate(
                text, (point.bytes / 1e6, point.psnr), textcoords="offset points", xytext=(0, 11), color=ink,
                ha="center", fontsize=8.5,
            )  # fmt: skip
