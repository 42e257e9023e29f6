"""The `.splat` files of antimatter15's viewer: 32 bytes a Gaussian, no header, no view-dependent colour.

Position and linear scale as float32, then red, green, blue and opacity as bytes, then the rotation w, x, y, z as bytes
of 128 q + 128. Viewers draw while they load, so the Gaussians come in order of size times opacity. The frame is that
of the .ply files.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from radcomp_plugins.core.files import atomic_write, read_bytes
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.parts import FileParts, Part, file_parts
from radcomp_plugins.splats.formats.ply import INFINITE_LOGIT, check_writable
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians

ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("quat", "u1", 4)])
_BYTES = {"means": 12, "scales": 12, "colors": 3, "opacities": 1, "quats": 4}
MAX_FILE_BYTES = 2**35
MAX_LOG_SCALE = 69.0
"""`read_splat` takes scales of 1e30, which is exp(69.08), or more for damage."""
OPACITY_MARGIN = 1e-6
"""Opacity bytes 0 and 255 become logits of +-13.8 rather than infinite ones, as in SOG."""


def write_splat(path: Path | str, gaussians: Gaussians, *, overwrite: bool = False) -> dict[str, int]:
    """Writes a `.splat`; SH above the constant one are left out, with a warning.

    Args:
        path: Where to write.
        gaussians: The scene; all finite.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Bytes of each attribute; their sum is the size of the file.

    Raises:
        InputError: Nothing to write, Gaussians that are not finite, the file exists, or the disk is full.
    """
    check_writable(gaussians, path)
    if gaussians.sh_degree:
        warnings.warn(f"{path}: .splat stores no view-dependent colour, SH are left out", stacklevel=2)
    g = gaussians.to("cpu")
    order = torch.argsort(-(g.scales.double().sum(dim=1).exp() * g.opacities.double().sigmoid()), stable=True)
    g = g.select(order)
    rows = np.zeros(len(g), ROW)
    rows["mean"] = _numpy(g.means)
    rows["scale"] = np.exp(np.clip(_numpy(g.scales), -MAX_LOG_SCALE, MAX_LOG_SCALE))
    alpha = 1.0 / (1.0 + np.exp(-_numpy(g.opacities)[:, None]))
    rows["color"] = _byte(255.0 * np.concatenate([_numpy(g.sh0) * SH_C0 + 0.5, alpha], axis=1))
    quats = _numpy(g.quats)
    rows["quat"] = _byte(128.0 * quats / np.linalg.norm(quats, axis=1, keepdims=True) + 128.0)
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(rows.tobytes())
    return {name: size * len(g) for name, size in _BYTES.items()}


def read_splat(path: Path | str) -> Gaussians:
    """Reads a `.splat`.

    Args:
        path: The file. It has no header, so only its length and the plausibility of its numbers can be checked.

    Returns:
        The Gaussians on the CPU, float32, of SH degree 0. Those that hold a NaN, an infinity, a negative scale or a
        zero rotation are left out with a warning; a scale of zero becomes exp(-30).

    Raises:
        InputError: No such file, no multiple of 32 bytes, or mostly impossible numbers.
    """
    path = Path(path)
    return gaussians_of_splat(read_bytes(path, MAX_FILE_BYTES), str(path))


def splat_parts(path: Path | str) -> FileParts:
    """Bytes of each attribute in a file that `read_splat` reads."""
    size = Path(path).stat().st_size
    count = size // ROW.itemsize
    parts = [Part("sh0" if name == "colors" else name, name, each * count) for name, each in _BYTES.items()]
    return file_parts(count, "", parts, size)


def gaussians_of_splat(data: bytes, where: str) -> Gaussians:
    """The scene in the bytes of a `.splat`; see `read_splat`."""
    if not data or len(data) % ROW.itemsize:
        raise InputError(f"{where}: {len(data)} bytes, expected a multiple of {ROW.itemsize}: no .splat, or cut off")
    rows = np.frombuffer(data, ROW)
    quats = rows["quat"].astype(np.float32) / 128.0 - 1.0
    means, linear = rows["mean"], rows["scale"]
    good = (np.abs(means) < 1e9).all(axis=1) & ((linear >= 0) & (linear < 1e30)).all(axis=1) & (quats != 0).any(axis=1)
    if 2 * int(good.sum()) < len(rows) or not good.any():
        raise InputError(
            f"{where}: {len(rows) - int(good.sum())} of {len(rows)} Gaussians have impossible values, expected a .splat"
        )
    if not good.all():
        warnings.warn(f"{where}: left out {int((~good).sum())} of {len(rows)} impossible Gaussians", stacklevel=3)
    rows, quats = rows[good], quats[good]
    scales = np.log(np.maximum(rows["scale"].astype(np.float64), math.exp(-INFINITE_LOGIT)))
    color = rows["color"] / 255.0
    alpha = np.clip(color[:, 3], OPACITY_MARGIN, 1.0 - OPACITY_MARGIN)
    return Gaussians(
        means=_tensor(rows["mean"]),
        quats=_tensor(quats / np.linalg.norm(quats, axis=1, keepdims=True)),
        scales=_tensor(scales),
        opacities=_tensor(np.log(alpha / (1.0 - alpha))),
        sh0=_tensor((color[:, :3] - 0.5) / SH_C0),
        shN=torch.zeros(len(rows), 0, 3),
    )


def _byte(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _numpy(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _tensor(values: npt.NDArray) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))
