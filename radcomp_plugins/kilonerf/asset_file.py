"""A KiloNeRF in one file: half-precision or 8-bit networks, and one bit for every voxel of their cells.

`scene.safetensors` has the folded networks as `scene.KiloScene` defines them, for cells that have something only:

    <layer>.weight   [N, inputs, outputs]   F16, or I8 with <layer>.scale [N, 1, outputs] F16: weight = I8 * scale
    <layer>.bias     [N, outputs]           F16
    used             [ceil(cells / 8)]      U8, bits in C order, the highest first: cells with a network
    occupancy        [N, side^3 / 8]        U8, bits of each network's voxels in the same order

and in its metadata everything else that drawing takes, as JSON.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.files import MANIFEST_NAME, parse_json, read_manifest
from radcomp_plugins.core.safetensors import read_tensors, write_tensors
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.scene import KiloGrid, KiloScene, NetworkShape

Precision = Literal["fp16", "int8"]
FORMAT = "radcomp-kilonerf"
VERSION = 1
SCENE = "scene.safetensors"
MAX_BYTES = 2**32
MAX_VOXELS = 2**30
"""A byte each when decoded."""
_LARGEST = 65504.0


def write_scene(path: Path, scene: KiloScene, precision: Precision = "fp16") -> None:
    """Write a scene.

    Args:
        path: of the file, replaced if it is there.
        scene: what is written.
        precision: of the weights; biases are fp16 either way.

    Raises:
        InputError: a parameter is too large for fp16.
    """
    grid, shape = scene.grid, scene.shape
    tensors: dict[str, NDArray[Any]] = {}
    for layer in shape.folded_layers():
        weight, bias = scene.weights[f"{layer}.weight"], scene.weights[f"{layer}.bias"]
        for kind, array in (("weight", weight), ("bias", bias)):
            if np.abs(array).max(initial=0.0) > _LARGEST:
                raise InputError(
                    f"{layer}.{kind} reaches {np.abs(array).max():.3g}, expected at most {_LARGEST} for fp16"
                )
        tensors[f"{layer}.bias"] = bias.astype(np.float16)
        if precision == "fp16":
            tensors[f"{layer}.weight"] = weight.astype(np.float16)
        else:
            tensors[f"{layer}.weight"], tensors[f"{layer}.scale"] = quantised(weight)
    used = grid.network_of_cell >= 0
    tensors["used"] = np.packbits(used.reshape(-1))
    tensors["occupancy"] = np.packbits(voxels_by_network(grid), axis=1)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "precision": precision,
        "cells": list(grid.cells),
        "voxels_per_cell": grid.voxels_per_cell,
        "box": grid.box.tolist(),
        "step": grid.step,
        "overlap": grid.overlap,
        "near": scene.near,
        "width": shape.width,
        "position_octaves": shape.position_octaves,
        "direction_octaves": shape.direction_octaves,
        "background": scene.background.tolist(),
        "dataset_to_scene": scene.dataset_to_scene.tolist(),
    }
    write_tensors(path, tensors, {"kilonerf": json.dumps(facts, allow_nan=False)})


def read_scene(path: Path) -> KiloScene:
    """Read a scene.

    Raises:
        InputError: the file is missing, damaged, or of another kind or version.
    """
    arrays, metadata = read_tensors(path, MAX_BYTES)
    if "kilonerf" not in metadata:
        raise InputError(f"{path}: has no metadata of a KiloNeRF, expected a scene exported by kilonerf")
    facts = _Facts(parse_json(metadata["kilonerf"].encode("utf8", "replace"), f"{path} (metadata)"), path)
    facts.check_format()
    shape = NetworkShape(
        facts.whole("width", 4, 256), facts.whole("position_octaves", 0, 12), facts.whole("direction_octaves", 0, 12)
    )
    grid = _read_grid(arrays, facts)
    wanted = {f"{layer}.{kind}" for layer in shape.folded_layers() for kind in ("weight", "bias")}
    scales = {f"{layer}.scale" for layer in shape.folded_layers()} if facts.text("precision") == "int8" else set()
    if set(arrays) != wanted | scales | {"used", "occupancy"}:
        odd = sorted(set(arrays) ^ (wanted | scales | {"used", "occupancy"}))
        raise InputError(f"{path}: {odd[0]} is missing or does not belong here; expected the arrays of a KiloNeRF")
    weights = {}
    for name, size in shape.folded_arrays(grid.num_networks).items():
        weights[name] = _read_layer(arrays, name, size, f"{name.split('.')[0]}.scale" in scales, path)
    return KiloScene(
        grid, shape, weights, facts.numbers("background", (3,)), facts.number("near"),
        facts.numbers("dataset_to_scene", (3, 4)),
    )  # fmt: skip


def quantised(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Weights [N, inputs, outputs] as 8 bits, and the scale [N, 1, outputs] of each output of each network."""
    peak = np.abs(weight).max(axis=1, keepdims=True)
    # Rounded up to a half-precision number, so that no weight is cut off.
    scale = np.nextafter((peak / 127.0).astype(np.float16), np.float16(np.inf))
    ratio = weight / np.maximum(scale.astype(np.float32), 1e-12)
    return np.clip(np.rint(ratio), -127, 127).astype(np.int8), scale


def voxels_by_network(grid: KiloGrid) -> NDArray[np.bool_]:
    """Occupied voxels of each network's cell, [N, side^3], C order."""
    side = grid.voxels_per_cell
    blocks = grid.occupancy.reshape([k for n in grid.cells for k in (n, side)]).transpose(0, 2, 4, 1, 3, 5)
    return blocks[grid.network_of_cell >= 0].reshape(-1, side**3)


def is_kilonerf(path: Path) -> bool:
    """Whether this is an exported KiloNeRF: its folder, by the file in it, or that file."""
    return (Path(path) / SCENE).is_file() or Path(path).name == SCENE


def read_asset(folder: Path) -> KiloScene:
    """Read an asset, once every file is what its manifest says.

    Raises:
        InputError: there is none, or it is damaged.
    """
    manifest = read_manifest(folder)
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder}: format {str(manifest.get('format'))[:80]!r}, expected {FORMAT!r}")
    return read_scene(Path(folder) / SCENE)


def describe(path: Path) -> dict[str, Any]:
    """Facts about an asset, or about a scene file by itself.

    Raises:
        InputError: it is damaged.
    """
    path = Path(path)
    file = path / SCENE if path.is_dir() else path
    scene = read_asset(path) if path.is_dir() and (path / MANIFEST_NAME).is_file() else read_scene(file)
    grid = scene.grid
    low, high = grid.box.tolist()
    return {
        "path": str(path),
        "format": FORMAT,
        "version": VERSION,
        "bytes": file.stat().st_size,
        "networks": grid.num_networks,
        "parameters of each": sum(array[0].size for array in scene.weights.values()),
        "cells": " x ".join(map(str, grid.cells)),
        "occupied voxels": int(grid.occupancy.sum()),
        "share occupied": f"{grid.occupancy.mean():.2%}",
        "box": " ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(low, high, strict=True)),
        "step": f"{grid.step:.4g}",
        "overlap": f"{grid.overlap:g}",
    }


class _Facts:
    """Numbers out of a file's metadata, checked."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def _wrong(self, name: str, wanted: str) -> InputError:
        return InputError(f"{self.path}: {name} is {str(self.values.get(name))[:80]}, expected {wanted}")

    def check_format(self) -> None:
        """Of this format and version."""
        if self.values.get("format") != FORMAT or self.values.get("version") != VERSION:
            got = f"{self.values.get('format')!r} version {self.values.get('version')!r}"
            raise InputError(f"{self.path}: format {got[:80]}, expected {FORMAT!r} version {VERSION}")
        if self.text("precision") not in ("fp16", "int8"):
            raise self._wrong("precision", "fp16 or int8")

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        value = self.values.get(name)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str) -> float:
        value = self.values.get(name)
        if type(value) not in (int, float) or not abs(value) < 1e12:  # type: ignore[arg-type]
            raise self._wrong(name, "a number")
        return float(value)  # type: ignore[arg-type]

    def numbers(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        def flat(value: Any, left: tuple[int, ...]) -> list[float]:
            if not left:
                if type(value) not in (int, float) or not abs(value) < 1e12:
                    raise self._wrong(name, f"numbers in the form {list(shape)}")
                return [float(value)]
            if not isinstance(value, list) or len(value) != left[0]:
                raise self._wrong(name, f"numbers in the form {list(shape)}")
            return [number for part in value for number in flat(part, left[1:])]

        return np.array(flat(self.values.get(name), shape)).reshape(shape)


def _read_grid(arrays: dict[str, NDArray[Any]], facts: _Facts) -> KiloGrid:
    path = facts.path
    side = facts.whole("voxels_per_cell", 4, 64)
    if side & (side - 1):
        raise InputError(f"{path}: voxels_per_cell is {side}, expected 4, 8, 16, 32 or 64")
    cells = facts.values.get("cells")
    if not isinstance(cells, list) or len(cells) != 3 or not all(type(n) is int and 1 <= n <= 4096 for n in cells):
        raise InputError(f"{path}: cells is {str(cells)[:80]}, expected three whole numbers from 1 to 4096")
    count = math.prod(cells)
    if count * side**3 > MAX_VOXELS:
        raise InputError(f"{path}: {cells} cells of {side}^3 voxels, expected at most {MAX_VOXELS} voxels")
    packed, voxels = arrays.get("used"), arrays.get("occupancy")
    if packed is None or packed.dtype != np.uint8 or packed.shape != ((count + 7) // 8,):
        raise InputError(f"{path}: used is {_what(packed)}, expected U8 [{(count + 7) // 8}] for {cells} cells")
    used = np.unpackbits(packed, count=count).astype(np.bool_).reshape(cells)
    networks = int(used.sum())
    if voxels is None or voxels.dtype != np.uint8 or voxels.shape != (networks, side**3 // 8) or networks == 0:
        wanted = f"U8 [{networks}, {side**3 // 8}] for {networks} cells in use, at least one of them"
        raise InputError(f"{path}: occupancy is {_what(voxels)}, expected {wanted}")
    blocks = np.zeros((*cells, side, side, side), np.bool_)
    blocks[used] = np.unpackbits(voxels, axis=1).astype(np.bool_).reshape(-1, side, side, side)
    occupancy = blocks.transpose(0, 3, 1, 4, 2, 5).reshape([n * side for n in cells])
    ids = np.full(cells, -1, np.int32)
    ids[used] = np.arange(networks, dtype=np.int32)
    try:
        return KiloGrid(facts.numbers("box", (2, 3)), ids, occupancy, facts.number("step"), facts.number("overlap"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_layer(
    arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...], scaled: bool, path: Path
) -> NDArray[np.float32]:
    """One array of the networks as float32, checked."""
    array = arrays[name]
    scaled = scaled and name.endswith(".weight")
    kind = np.dtype(np.int8 if scaled else np.float16)
    if array.dtype != kind or array.shape != shape:
        raise InputError(f"{path}: {name} is {_what(array)}, expected {kind} {list(shape)}")
    values = array.astype(np.float32)
    if scaled:
        scale = arrays[f"{name.split('.')[0]}.scale"]
        if scale.dtype != np.float16 or scale.shape != (shape[0], 1, shape[2]):
            raise InputError(f"{path}: scale of {name} is {_what(scale)}, expected float16 {[shape[0], 1, shape[2]]}")
        values *= scale.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: {name} has NaN or infinite values, expected finite ones")
    return values


def _what(array: NDArray[Any] | None) -> str:
    return "missing" if array is None else f"{array.dtype} {list(array.shape)}"
