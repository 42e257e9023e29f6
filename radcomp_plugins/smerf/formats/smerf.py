"""A baked scene in the layout of the official SMERF viewer, and back (Duckworth et al. 2024; the released exporter).

A folder `sm_XXX` for each live submodel, XXX being the linear index of its cell.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.atlas import AtlasSize, atlas_size, block_rows, index_bytes, pack_slices, unpack_slice
from radcomp_plugins.smerf.empty_space import FACTORS, distance_grid, pack_cells, unpack_cells
from radcomp_plugins.smerf.formats.arrays import (
    check_size,
    find_file,
    grid_rows,
    read_exactly,
    read_png,
    rows_grid,
    slice_bounds,
    write_gz,
)
from radcomp_plugins.smerf.formats.params import NAME, SubmodelParams, folder_name, read_params, scene_params
from radcomp_plugins.smerf.formats.problem import fail
from radcomp_plugins.smerf.formats.small_files import (
    FRAMES,
    NETWORK,
    frames_text,
    network_text,
    read_frames,
    read_network,
    to_json,
)
from radcomp_plugins.smerf.layout import BakedScene, BakedSubmodel, Layout
from radcomp_plugins.smerf.voxels import SparseVoxels

PLANE_PARTS = {"features": (3, 4, 5, 6), "rgb": (0, 1, 2), "density": (7,)}
"""Channels of a texel in the files of a plane, in the order that files are written."""
SPARSE_PARTS = {"features": (3, 4, 5), "rgb": (0, 1, 2), "density": (7, 6)}
"""Channels of a voxel in the files of the sparse grid: the gate lies beside the density, where it is read first."""
_MAX_BLOCK_BYTES = 8 * 2**30
"""No viewer has room for as much; a reader must not take it because a file says so."""
JOINED_PARTS = {"features": (3, 4, 5, 6), "rgb_and_density": (0, 1, 2, 7)}
"""Channels in the files of older exports, of planes and sparse grid alike."""


def write_smerf(
    folder: Path | str,
    scene: BakedScene,
    alive: Mapping[int, SparseVoxels] | None = None,
    *,
    unused_grids: bool = True,
) -> None:
    """Write a baked scene as files that the official viewer opens.

    Args:
        folder: the scene's folder, which is made where it does not exist; `core.files.atomic_dir` around the call
            makes it appear as a whole.
        scene: with all live submodels.
        alive: occupied texels of each submodel, from which its occupancy was pooled; without them the cells of 2^3
            texels, which no viewer asks for, are as coarse as those of 4^3.
        unused_grids: also write the grids of the factors that no viewer asks for, as the official exporter does.

    Raises:
        InputError: a live submodel is missing, arrays of another shape or order than the layout says, more blocks than
            a texture holds, or `alive` of another scene.
    """
    check_scene(scene)
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
        voxels = None if alive is None else alive[index]
        _write_submodel(target, scene, scene.submodels[index], voxels, unused_grids)


def _link(existing: Path, path: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    path.unlink(missing_ok=True)
    try:
        os.link(existing, path)
    except OSError:
        shutil.copyfile(existing, path)


def _write_submodel(
    folder: Path, scene: BakedScene, submodel: BakedSubmodel, alive: SparseVoxels | None, unused_grids: bool
) -> None:
    layout = scene.layout
    if alive is not None and not np.array_equal(alive.occupancy(8), submodel.occupancy):
        raise InputError(f"submodel {submodel.index}: its occupancy is not that of its occupied texels")
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
    for name, grid in _cell_grids(submodel, alive, unused_grids):
        bounds = slice_bounds(grid.shape[2])
        for k, (begin, end) in enumerate(bounds):
            write(f"{name}_{k:03d}", grid_rows(grid[:, :, begin:end]), k, len(bounds))
    _write_params(folder, layout, submodel.index, size, files, storage, scene)


def _cell_grids(
    submodel: BakedSubmodel, alive: SparseVoxels | None, unused_grids: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """The occupancy grids, then the distance grids, by name."""
    if not unused_grids:
        yield "occupancy_grid_8", submodel.occupancy
        yield "distance_grid_8", submodel.distance
        return
    occupied = {4: unpack_cells(submodel.occupancy)}
    if alive is None:
        yield "occupancy_grid_4", np.where(occupied[4], np.uint8(255), np.uint8(0))
    else:
        yield "occupancy_grid_4", alive.occupancy(4)
    for factor in FACTORS[1:]:
        packed = submodel.occupancy if factor == 8 else pack_cells(occupied[factor // 2])
        occupied[factor] = packed != 0
        yield f"occupancy_grid_{factor}", packed
    for factor in FACTORS:
        yield f"distance_grid_{factor}", submodel.distance if factor == 8 else distance_grid(occupied[factor])


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


def check_scene(scene: BakedScene) -> None:
    """Refuse a scene that could be written, but not drawn.

    Raises:
        InputError: a live submodel is missing, or arrays have another shape or order than the layout says.
    """
    layout = scene.layout
    cells = (layout.triplane_resolution // 8,) * 3
    edge = layout.block_size + 1
    for index in layout.alive:
        if index not in scene.submodels:
            raise InputError(f"submodel {index} of the scene is missing, expected all of {layout.alive}")
        submodel = scene.submodels[index]
        count = len(submodel.blocks)
        expected = {
            "planes": (3, layout.triplane_resolution, layout.triplane_resolution, 8),
            "block_indices": (layout.sparse_resolution // layout.block_size,) * 3,
            "blocks": (count, edge, edge, edge, 8),
            "occupancy": cells,
            "distance": cells,
        }
        for name, shape in expected.items():
            if (got := getattr(submodel, name).shape) != shape:
                raise InputError(f"submodel {index}: {name} has shape {got}, expected {shape}")
        rows = submodel.block_indices[submodel.block_indices >= 0]
        if not np.array_equal(rows, np.arange(count)):
            raise InputError(f"submodel {index}: block indices do not count up to {count} in C order")
    for array in [*scene.deferred.kernels, *scene.deferred.biases]:
        if len(array) != len(layout.alive):
            raise InputError(f"the deferred network has {len(array)} submodels, expected {len(layout.alive)}")


@dataclass(frozen=True)
class ArrayFile:
    """A file of bytes that a submodel has to have.

    Attributes:
        name: without the extension.
        rows: of texels.
        width: texels of a row.
        channels: bytes of a texel.
    """

    name: str
    rows: int
    width: int
    channels: int

    def check(self, folder: Path, params: SubmodelParams) -> None:
        """Refuse a file that is missing, or so small that it cannot be whole; it is not opened."""
        if params.array_format == "png":
            find_file(folder, self.name, (".png",))
        else:
            check_size(find_file(folder, self.name, (".raw.gz", ".raw")), self.rows * self.width * self.channels)

    def read(self, folder: Path, params: SubmodelParams) -> NDArray[np.uint8]:
        """Its bytes; the errors are those of `read_exactly` and `read_png`."""
        if params.array_format == "png":
            return read_png(find_file(folder, self.name, (".png",)), self.width, self.rows, self.channels)
        path = find_file(folder, self.name, (".raw.gz", ".raw"))
        return read_exactly(path, self.rows * self.width * self.channels)


def plane_files(params: SubmodelParams) -> list[tuple[ArrayFile, int, tuple[int, ...]]]:
    """The files of the planes, each with its plane and its channels."""
    edge = params.layout.triplane_resolution
    parts = PLANE_PARTS if params.separate else JOINED_PARTS
    return [
        (ArrayFile(f"plane_{part}_{plane}", edge, edge, len(channels)), plane, channels)
        for plane in range(3)
        for part, channels in parts.items()
    ]


def sparse_files(params: SubmodelParams) -> list[tuple[ArrayFile, int, tuple[int, ...]]]:
    """The files of the atlas, each with its place among the slices and its channels."""
    width, height, depth = params.size.texels
    parts = SPARSE_PARTS if params.separate else JOINED_PARTS
    layers = depth // params.num_slices
    return [
        (ArrayFile(f"sparse_grid_{part}_{k:03d}", height * layers, width, len(channels)), k, channels)
        for part, channels in parts.items()
        for k in range(params.num_slices)
    ]


def index_file(params: SubmodelParams) -> ArrayFile:
    """The file of the block indices."""
    edge = params.layout.sparse_resolution // params.layout.block_size
    return ArrayFile("sparse_grid_block_indices", edge * edge, edge, 3)


def cell_files(params: SubmodelParams, name: str, factor: int = 8) -> list[ArrayFile]:
    """The files of an occupancy or distance grid."""
    edge = -(-params.layout.triplane_resolution // factor)
    channels = 4 if params.padded else 1
    return [
        ArrayFile(f"{name}_{factor}_{k:03d}", edge * (end - begin), edge, channels)
        for k, (begin, end) in enumerate(slice_bounds(edge))
    ]


def read_smerf(folder: Path | str, submodels: Collection[int] | None = None) -> BakedScene:
    """Read a baked scene, ours or the official exporter's.

    Args:
        folder: a scene's folder, which holds the folders of its submodels, or one of these.
        submodels: read only those; None means all, and all have to be there.

    Raises:
        InputError: no asset, a damaged one, or a submodel that the scene does not have. The line names file, field,
            what was found and what was expected.
    """
    start = find_start(Path(folder))
    params = read_params(start)
    layout = params.layout
    wanted = layout.alive if submodels is None else tuple(sorted(set(submodels)))
    for index in wanted:
        if index not in layout.alive:
            raise InputError(f"{folder} has no submodel {index}, expected one of {layout.alive}")
    loaded = {}
    for index in wanted:
        own = submodel_folder(start, params, index)
        loaded[index] = read_submodel(own, check_same_scene(params, read_params(own), index))
    deferred = read_network(start, layout, params.order, params.network)
    return BakedScene(layout, deferred, loaded, read_frames(start))


def find_start(folder: Path) -> Path:
    """The folder of the submodel that an asset begins with.

    Raises:
        InputError: there is none.
    """
    for candidate in [folder, *sorted(folder.glob("sm_*"))]:
        if any((candidate / f"{NAME}{extension}").is_file() for extension in ("", ".gz")):
            return candidate
    raise InputError(f"{folder} is no baked scene: expected {NAME} in it, or in a folder sm_000, sm_001, ... of it")


def submodel_folder(start: Path, params: SubmodelParams, index: int) -> Path:
    """The folder of a submodel; a scene of one submodel may lie in a folder of any name."""
    return start if index == params.index else start.parent / folder_name(index)


def check_same_scene(first: SubmodelParams, other: SubmodelParams, index: int) -> SubmodelParams:
    """`other`, once it is certain that it describes submodel `index` of the same scene as `first`."""
    if other.index != index:
        fail(other.file, '"submodel_idx"', other.index, str(index))
    for name in (field.name for field in fields(Layout)):
        ours, theirs = getattr(first.layout, name), getattr(other.layout, name)
        if not np.array_equal(ours, theirs):
            fail(other.file, name.replace("_", " "), theirs, f"{ours}, as in {first.file}")
    return other


def read_submodel(folder: Path, params: SubmodelParams) -> BakedSubmodel:
    """Read the arrays of one submodel; see `read_smerf` for what is raised."""
    rows = read_indices(folder, params)
    planes = read_planes(folder, params)
    blocks = read_blocks(folder, params, int(rows.max()) + 1)
    occupancy = read_cells(folder, params, "occupancy_grid")
    return BakedSubmodel(params.index, planes, rows, blocks, occupancy, read_cells(folder, params, "distance_grid"))


def read_planes(folder: Path, params: SubmodelParams) -> NDArray[np.uint8]:
    """The three planes [3, T, T, 8] of a submodel."""
    edge = params.layout.triplane_resolution
    planes = np.empty((3, edge, edge, 8), np.uint8)
    for file, plane, channels in plane_files(params):
        texels = file.read(folder, params).reshape(file.rows, file.width, file.channels)
        planes[plane][..., list(channels)] = texels.transpose(1, 0, 2)
    return planes


def read_blocks(folder: Path, params: SubmodelParams, count: int) -> NDArray[np.uint8]:
    """The first `count` blocks of a submodel's atlas."""
    edge = params.size.edge
    if count * edge**3 * 8 > _MAX_BLOCK_BYTES:
        fail(
            params.file, "the number of blocks", count, f"at most {_MAX_BLOCK_BYTES // (edge**3 * 8)}, which fill 8 GiB"
        )
    files = sparse_files(params)
    for file, *_ in files:
        file.check(folder, params)
    blocks = np.empty((count, edge, edge, edge, 8), np.uint8)
    for file, k, channels in files:
        texels = file.read(folder, params).reshape(-1, params.size.texels[1], file.width, file.channels)
        for layer, part in enumerate(texels):
            unpack_slice(part, k * len(texels) + layer, params.size, blocks, channels)
    return blocks


def read_indices(folder: Path, params: SubmodelParams) -> NDArray[np.int32]:
    """The block indices of a submodel."""
    file = index_file(params)
    places = rows_grid(file.read(folder, params), (file.width, file.width, file.width))
    try:
        return block_rows(places, params.size)
    except InputError as error:
        fail(folder / file.name, "content", str(error), "blocks inside the atlas, counting up in C order of the grid")


def read_cells(folder: Path, params: SubmodelParams, name: str) -> NDArray[np.uint8]:
    """The grid of factor 8, from one file or several."""
    files = cell_files(params, name)
    edge = files[0].width
    grid = np.empty((edge,) * 3, np.uint8)
    for file, (begin, end) in zip(files, slice_bounds(edge), strict=True):
        grid[:, :, begin:end] = rows_grid(file.read(folder, params), (edge, edge, end - begin))[..., 0]
    return grid
