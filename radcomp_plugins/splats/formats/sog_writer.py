"""Writes SOG version 2 (see `sog`): every byte the format leaves free is spent where the picture notices.

Three liberties of the format are used. A Gaussian has 24 equal descriptions (its axes in any order and sign), and the
one with the smallest rotation is written: quaternions then need 4.6 bits less. All codebooks and the SH palette are
optimal for errors weighted by significance. And the SH palette uses only as many of its 256 codebook entries as its
own error makes worth while, which takes 40 % off its image.
"""

import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from radcomp_plugins.core import vq
from radcomp_plugins.core.files import atomic_write
from radcomp_plugins.core.quantize import assign_nearest
from radcomp_plugins.core.threads import get_num_threads
from radcomp_plugins.splats.formats.ply import check_writable
from radcomp_plugins.splats.formats.sog_quantise import CODEBOOK_SIZE, SogPlan, plan_sog, quantise, rest_codebook
from radcomp_plugins.splats.formats.webp import Pixels, encode_webp
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.order import morton_order, smallest_columns

MAX_PALETTE = 65536
PALETTE_COLUMNS = 64
KMEANS_ITERATIONS = 10
ONCE_A_PALETTE = 0.75
"""Different SH vectors, as a share of the Gaussians, below which they are taken for a palette that another file had. A
playbot of 31,000 Gaussians with 16,384 vectors loses 30 dB against itself if it gets a palette of 1,920 instead."""

ASSUMED_PALETTE_ERROR = 0.15
"""Error of a palette that was given, as a share of its power: k-means leaves 0.1 to 0.2 at usual sizes."""

Array64 = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Palette = tuple[Float[Tensor, "K *D"], Int[Tensor, " N"]]


def default_palette_size(count: int, different: int | None = None) -> int:
    """Entries of the SH palette when nothing else is asked for: a sixteenth of the Gaussians, 64 to 65,536.

    Args:
        count: Gaussians.
        different: How many different SH vectors they have, if those that were a palette before are to be kept as they
            are: fewer than three quarters as many as Gaussians do not come about otherwise.
    """
    if different is not None and different < ONCE_A_PALETTE * count and different <= MAX_PALETTE:
        return different
    return min(max(64, count // 16 // 64 * 64), MAX_PALETTE)


def write_sog(
    path: Path | str,
    gaussians: Gaussians,
    *,
    palette_size: int | None = None,
    sh_palette: Palette | None = None,
    significance: Float[Tensor, " N"] | None = None,
    sh_levels: int | None = None,
    position_bits: int = 16,
    plan: SogPlan | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Writes a `.sog` bundle; the same arguments give the same bytes on the same machine.

    Args:
        path: Where to write.
        gaussians: The scene; all finite.
        palette_size: Entries of the SH palette, 1 to 65,536; None takes `default_palette_size`, which keeps the
            palette that a scene has from another file. Fewer are written where there are fewer different SH vectors.
        sh_palette: A palette to use as it is, in place of k-means: vectors [K, 3 R] or [K, R, 3] in the layout of
            `Gaussians.shN` (channels innermost), and the label of each Gaussian.
        sh_levels: Different numbers in the SH palette, 2 to 256; None takes as few as add 2 % to the palette's error
            (32 or so; 256 where the palette is exact).
        significance: How much the error of each Gaussian matters, not negative; None weighs all alike.
        position_bits: Bits of each coordinate that are used, 8 to 16. Each one less saves 0.375 bytes a Gaussian and
            doubles the error, which is at most half a step of 2^-bits of the scene's extent in signed logarithm.
        plan: Range and codebooks to use as they are, such as those a scene was trained through (`fake_quantise`); None
            takes the best for this scene. `sh_levels` and `position_bits` then do nothing.
        seed: Seeds k-means.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Bytes of each part of the file; their sum is its size.

    Raises:
        InputError: Nothing to write, Gaussians that are not finite, the file exists, or the disk is full.
        ValueError: A palette, significance or option of the wrong shape or range.
    """
    path = Path(path)
    check_writable(gaussians, path)
    if not 8 <= position_bits <= 16:
        raise ValueError(f"position_bits {position_bits}, expected 8 to 16")
    if sh_levels is not None and not 2 <= sh_levels <= CODEBOOK_SIZE:
        raise ValueError(f"sh_levels {sh_levels}, expected 2 to {CODEBOOK_SIZE}")
    weights = check_significance(significance, len(gaussians))
    with atomic_write(path, overwrite=overwrite) as file:
        palette = _palette(gaussians, palette_size, sh_palette, weights, seed)
        columns = smallest_columns(gaussians)
        plan = plan or _plan(columns, weights, palette, sh_levels, position_bits)
        order = morton_order(columns["means"])
        columns = {name: values[order] for name, values in columns.items()}
        meta, images = _encode(columns, plan, None if palette is None else (palette[0], palette[1][order]))
        meta |= {"model": "antialiased", "antialias": True} if gaussians.antialiased else {}
        with ThreadPoolExecutor(get_num_threads()) as pool:
            parts = dict(zip(images, pool.map(encode_webp, images.values()), strict=True))
        with zipfile.ZipFile(file, "w") as archive:
            text = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode("ascii")
            sizes = {"meta.json": _add(archive, "meta.json", text, zipfile.ZIP_DEFLATED)}
            for name, data in parts.items():
                sizes[name] = _add(archive, name, data, zipfile.ZIP_STORED)
        sizes["zip"] = file.tell() - sum(sizes.values())
    return sizes


def _add(archive: zipfile.ZipFile, name: str, data: bytes, method: int) -> int:
    """Adds a file with nothing of this machine or moment in its header; returns its size in the archive."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    archive.writestr(entry, data, compress_type=method, compresslevel=9)
    return entry.compress_size


def check_significance(significance: Tensor | None, count: int) -> Array64:
    """The significance [N] as float64, all ones where there is none.

    Raises:
        ValueError: A wrong shape or range.
    """
    if significance is None:
        return np.ones(count)
    weights = _numpy(significance)
    if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"significance of shape {weights.shape}, expected ({count},), finite and not negative")
    return weights


def sog_plan(
    gaussians: Gaussians,
    *,
    palette_size: int | None = None,
    sh_palette: Palette | None = None,
    significance: Float[Tensor, " N"] | None = None,
    sh_levels: int | None = None,
    position_bits: int = 16,
    seed: int = 0,
) -> tuple[SogPlan, tuple[Float[Tensor, "K R 3"], Int[Tensor, " N"]] | None]:
    """The plan and the SH palette that `write_sog` makes from the same arguments; no palette without higher SH."""
    weights = check_significance(significance, len(gaussians))
    palette = _palette(gaussians, palette_size, sh_palette, weights, seed)
    plan = _plan(smallest_columns(gaussians), weights, palette, sh_levels, position_bits)
    return plan, None if palette is None else (torch.from_numpy(palette[0]), torch.from_numpy(palette[1]))


def _plan(
    columns: dict[str, Array64],
    weights: Array64,
    palette: tuple[npt.NDArray[np.float32], Labels, float] | None,
    sh_levels: int | None,
    position_bits: int,
) -> SogPlan:
    rest = np.empty(0)
    if palette is not None:
        entries, labels, error = palette
        used = np.bincount(labels, weights=weights, minlength=len(entries)).astype(np.float64)
        rest = rest_codebook(entries.reshape(len(entries), -1).astype(np.float64), used, sh_levels, error)
    return plan_sog(columns, weights, rest, position_bits)


def _encode(
    columns: dict[str, Array64], plan: SogPlan, palette: tuple[npt.NDArray[np.float32], Labels] | None
) -> tuple[dict[str, Any], dict[str, Pixels]]:
    """Metadata and images of `smallest_columns` and their labels, all in the order of the file."""
    levels = quantise(columns, plan)
    planes = {
        "means_l": levels.means & 255,
        "means_u": levels.means >> 8,
        "scales": levels.scales,
        "quats": levels.quats,
        "sh0": levels.colours,
    }
    images = {f"{name}.webp": _image(values) for name, values in planes.items()}
    meta: dict[str, Any] = {"version": 2, "asset": {"generator": "radcomp"}, "count": len(levels.means)}
    files = ["means_l.webp", "means_u.webp"]
    meta["means"] = {"mins": plan.low.tolist(), "maxs": plan.high.tolist(), "files": files}
    meta["scales"] = {"codebook": plan.scales.tolist(), "files": ["scales.webp"]}
    meta["quats"] = {"files": ["quats.webp"]}
    meta["sh0"] = {"codebook": plan.colours.tolist(), "files": ["sh0.webp"]}
    if palette is not None:
        entries, labels = palette[0], palette[1][:, None]
        bands = math.isqrt(entries.shape[1] + 1) - 1
        meta["shN"] = {"count": len(entries), "bands": bands, "codebook": plan.rest.tolist()}
        meta["shN"]["files"] = ["shN_centroids.webp", "shN_labels.webp"]
        images["shN_centroids.webp"] = _palette_image(entries, plan)
        images["shN_labels.webp"] = _image(np.concatenate([labels & 255, labels >> 8, 0 * labels], axis=1))
    return meta, images


def _image(columns: npt.NDArray) -> Pixels:
    """[N, C] bytes as an image with sides that are multiples of 4, padded with zeros at the end."""
    width = math.ceil(math.sqrt(len(columns)) / 4) * 4
    height = math.ceil(len(columns) / width / 4) * 4
    pixels = np.zeros((height * width, columns.shape[1]), np.uint8)
    pixels[: len(columns)] = columns
    return pixels.reshape(height, width, -1)


def _palette(
    g: Gaussians, size: int | None, given: Palette | None, weights: Array64, seed: int
) -> tuple[npt.NDArray[np.float32], Labels, float] | None:
    """Palette [K, R, 3], labels [N] in the Gaussians' own order, and the palette's mean squared error per Gaussian.

    Every entry is in use, the small ones first. None without higher SH.
    """
    if g.sh_degree == 0:
        return None
    x = g.shN.detach().cpu().float().flatten(1)
    if given is not None:
        entries, labels = given[0].detach().cpu().float().flatten(1), given[1].detach().cpu().long()
        if entries.shape[1:] != x.shape[1:] or labels.shape != (len(g),) or not entries.isfinite().all():
            raise ValueError(f"palette {tuple(entries.shape)}, labels {tuple(labels.shape)}, expected {tuple(x.shape)}")
        if len(entries) > MAX_PALETTE or labels.min() < 0 or labels.max() >= len(entries):
            raise ValueError(f"{len(entries)} palette entries, labels to {labels.max()}, expected up to {MAX_PALETTE}")
    else:
        entries, labels = torch.unique(x, dim=0, return_inverse=True)
        size = default_palette_size(len(g), len(entries)) if size is None else size
        if not 1 <= size <= MAX_PALETTE:
            raise ValueError(f"palette size {size}, expected 1 to {MAX_PALETTE}")
        if len(entries) > size:
            entries, labels = vq.kmeans(x, size, torch.from_numpy(weights).float(), KMEANS_ITERATIONS, seed)
    used, labels = torch.unique(labels, return_inverse=True)
    entries = entries[used]
    rank = torch.argsort(entries.norm(dim=1), stable=True)
    position = torch.empty_like(rank)
    position[rank] = torch.arange(len(rank))
    if given is not None:
        # Its vectors may have been trained on, so what they replace is not known here.
        error = ASSUMED_PALETTE_ERROR * _mean_square(entries[labels], weights)
    else:
        error = _mean_square(entries[labels] - x, weights)
    return entries[rank].reshape(len(used), -1, 3).numpy(), position[labels].numpy(), error


def _mean_square(x: Float[Tensor, "N D"], weights: Array64) -> float:
    """Weighted mean of the squared lengths of the rows."""
    squares = x.double().square().sum(dim=1).numpy()
    total = weights.sum()
    return float((weights * squares).sum() / total) if total > 0 else float(squares.mean())


def _palette_image(entries: npt.NDArray[np.float32], plan: SogPlan) -> Pixels:
    """Image of the palette: 64 entries a row, R pixels an entry."""
    rows = -(-len(entries) // PALETTE_COLUMNS)
    pixels = np.zeros((rows * PALETTE_COLUMNS, *entries.shape[1:]), np.uint8)
    pixels[: len(entries)] = assign_nearest(entries.astype(np.float64), plan.rest)
    return pixels.reshape(rows, -1, 3)


def _numpy(tensor: Tensor) -> Array64:
    return tensor.detach().cpu().numpy().astype(np.float64)
