"""A baked scene in the layout of the official SMERF viewer, and back (Duckworth et al. 2024; the released exporter).

A folder `sm_XXX` for each live submodel, XXX being the linear index of its cell.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from radcomp_plugins.smerf.atlas import AtlasSize, atlas_size, index_bytes, pack_slices
from radcomp_plugins.smerf.empty_space import FACTORS, distance_grid, pack_cells, unpack_cells
from radcomp_plugins.smerf.formats.arrays import grid_rows, slice_bounds, write_gz
from radcomp_plugins.smerf.formats.params import NAME, folder_name, scene_params
from radcomp_plugins.smerf.formats.small_files import FRAMES, NETWORK, frames_text, network_text, to_json
from radcomp_plugins.smerf.layout import BakedScene, BakedSubmodel, Layout

PLANE_PARTS = {"features": (3, 4, 5, 6), "rgb": (0, 1, 2), "density": (7,)}
"""Channels of a texel in the files of a plane, in the order that files are written."""
SPARSE_PARTS = {"features": (3, 4, 5), "rgb": (0, 1, 2), "density": (7, 6)}
"""Channels of a voxel in the files of the sparse grid: the gate lies beside the density, where it is read first."""


def write_smerf(folder: Path | str, scene: BakedScene, *, unused_grids: bool = True) -> None:
    """Write a baked scene as files that the official viewer opens.

    Args:
        folder: the scene's folder, which is made where it does not exist; `core.files.atomic_dir` around the call
            makes it appear as a whole.
        scene: with all live submodels.
        unused_grids: also write the grids of the factors that no viewer asks for.
    """
    folder = Path(folder)
    first: Path | None = None
    for index in scene.layout.alive:
        target = folder / folder_name(index)
        target.mkdir(parents=True, exist_ok=True)
        network = target / f"{NETWORK}.gz"
        if first is None:
            first = network
            write_gz(network, network_text(scene.deferred))
        else:
            _link(first, network)
        (target / FRAMES).write_text(frames_text(scene.test_frames))
        _write_submodel(target, scene, scene.submodels[index], unused_grids)


def _link(existing: Path, path: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    path.unlink(missing_ok=True)
    try:
        os.link(existing, path)
    except OSError:
        shutil.copyfile(existing, path)


def _write_submodel(folder: Path, scene: BakedScene, submodel: BakedSubmodel, unused_grids: bool) -> None:
    layout = scene.layout
    size = atlas_size(len(submodel.blocks), layout.block_size)
    files: list[dict[str, Any]] = []
    storage: list[dict[str, Any]] = []

    def write(name: str, rows: np.ndarray, part: int = 0, parts: int = 1) -> None:
        path = folder / f"{name}.raw.gz"
        count = write_gz(path, [rows.tobytes()])
        files.append(
            {
                "dtype": "uint8",
                "filename": path.name,
                "format": "raw.gz",
                "shape": list(rows.shape),
                "slice_count": parts,
                "slice_idx": part,
            }
        )
        storage.append({"disk_mb": path.stat().st_size / 1e6, "filename": path.name, "memory_mb": count / 1e6})

    for plane in range(3):
        for part, channels in PLANE_PARTS.items():
            texels = submodel.planes[plane].transpose(1, 0, 2)[..., list(channels)]
            write(f"plane_{part}_{plane}", np.ascontiguousarray(texels))
    write("sparse_grid_block_indices", grid_rows(index_bytes(submodel.block_indices, size)))
    depth = size.texels[2]
    for part, channels in SPARSE_PARTS.items():
        for k, texels in enumerate(pack_slices(submodel.blocks, size, channels)):
            write(f"sparse_grid_{part}_{k:03d}", texels, k, depth)
    for name, grid in _cell_grids(submodel, unused_grids):
        bounds = slice_bounds(grid.shape[2])
        for k, (begin, end) in enumerate(bounds):
            write(f"{name}_{k:03d}", grid_rows(grid[:, :, begin:end]), k, len(bounds))
    _write_params(folder, layout, submodel.index, size, files, storage, scene)


def _cell_grids(submodel: BakedSubmodel, unused_grids: bool) -> Iterator[tuple[str, np.ndarray]]:
    """The occupancy grids, then the distance grids, by name."""
    if not unused_grids:
        yield "occupancy_grid_8", submodel.occupancy
        yield "distance_grid_8", submodel.distance
        return
    quarter = unpack_cells(submodel.occupancy)  # factor 4
    half = quarter.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    yield "occupancy_grid_4", pack_cells(half)
    del half
    packed = submodel.occupancy
    pyramid = {4: quarter, 8: packed != 0}
    for factor in FACTORS[1:]:
        if factor > 8:
            packed = pack_cells(pyramid[factor // 2])
            pyramid[factor] = packed != 0
        yield f"occupancy_grid_{factor}", packed
    for factor in FACTORS:
        grid = submodel.distance if factor == 8 else distance_grid(pyramid[factor])
        yield f"distance_grid_{factor}", grid


def _write_params(
    folder: Path,
    layout: Layout,
    index: int,
    size: AtlasSize,
    files: list[dict[str, Any]],
    storage: list[dict[str, Any]],
    scene: BakedScene,
) -> None:
    text = to_json(scene_params(layout, index, size, files))
    (folder / NAME).write_text(text)
    write_gz(folder / f"{NAME}.gz", [text.encode()])
    floats = sum(array.size for array in [*scene.deferred.kernels, *scene.deferred.biases])
    # The official file counts the network's floats here: they travel in no file of arrays.
    storage.append({"disk_mb": len(text) / 1e6, "filename": NAME, "memory_mb": floats * 4 / 1e6})
    (folder / "storage.json").write_text(to_json(storage))
