"""What is wrong with a baked scene's files, and what is in them; neither needs the scene to fit in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from radcomp_plugins.core.files import MANIFEST_NAME, MAX_JSON_BYTES, read_manifest
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.atlas import EMPTY, atlas_size
from radcomp_plugins.smerf.empty_space import FACTORS, distance_grid
from radcomp_plugins.smerf.formats import merf
from radcomp_plugins.smerf.formats.arrays import read_object
from radcomp_plugins.smerf.formats.params import NAME, SubmodelParams, read_params
from radcomp_plugins.smerf.formats.problem import AssetError, Problem
from radcomp_plugins.smerf.formats.small_files import read_frames, read_network
from radcomp_plugins.smerf.formats.smerf import (
    ArrayFile,
    cell_files,
    check_same_scene,
    find_start,
    index_file,
    plane_files,
    read_cells,
    read_indices,
    sparse_files,
    submodel_folder,
)
from radcomp_plugins.smerf.layout import DeferredMlp

_T = TypeVar("_T")


class _Findings(list[Problem]):
    """Problems found so far."""

    def attempt(self, step: Callable[..., _T], *args: Any) -> _T | None:
        """Result of a step, or None where it fails, which is noted."""
        try:
            return step(*args)
        except AssetError as error:
            if error.problem not in self:
                self.append(error.problem)
        except InputError as error:
            self.append(Problem(str(args[0]) if args else "", "content", str(error), "an asset as it was written"))
        return None


def is_baked_scene(folder: Path) -> bool:
    """Whether a folder looks like a baked scene, whole or broken."""
    return folder.is_dir() and ((folder / NAME).exists() or any(folder.glob("sm_[0-9][0-9][0-9]*")))


def validate(folder: Path | str) -> list[Problem]:
    """Everything that is wrong with a baked scene, in SMERF's layout or MERF's.

    Args:
        folder: a scene's folder, or that of one of its submodels.

    Returns:
        The problems, empty for an asset that every viewer can open.

    Raises:
        InputError: there is no asset at all.
    """
    folder = Path(folder)
    start = find_start(folder)
    found = _Findings()
    for place in dict.fromkeys((folder, start.parent)):
        if (place / MANIFEST_NAME).is_file():
            found.attempt(read_manifest, place)
    if found.attempt(merf.is_merf, start):
        _check_merf(start, found)
        return list(found)
    params = found.attempt(read_params, start)
    if params is None:
        return list(found)
    found.attempt(read_network, start, params.layout, params.order, params.network)
    found.attempt(read_frames, start)
    for index in params.layout.alive:
        own = submodel_folder(start, params, index)
        if not own.is_dir():
            found.append(Problem(str(own), "the folder", "missing", f"submodel {index}: the asset is not complete"))
            continue
        told = found.attempt(read_params, own)
        if told is not None:
            found.attempt(check_same_scene, params, told, index)
            _check_submodel(own, told, found)
    return list(found)


def _check_merf(folder: Path, found: _Findings) -> None:
    told = found.attempt(merf.read_merf_params, folder)
    if told is None:
        return
    params, _ = told
    _check_arrays(folder, params, [*plane_files(params), *sparse_files(params)], found)
    _check_indices(folder, params, found)
    found.attempt(merf.read_occupied, folder, params)


def _check_submodel(folder: Path, params: SubmodelParams, found: _Findings) -> None:
    _check_arrays(folder, params, [*plane_files(params), *sparse_files(params)], found)
    _check_indices(folder, params, found)
    occupancy = found.attempt(read_cells, folder, params, "occupancy_grid")
    distance = found.attempt(read_cells, folder, params, "distance_grid")
    if occupancy is not None and distance is not None:
        _check_distance(folder, occupancy, distance, found)
    for file in unused_files(params):
        if any((folder / f"{file.name}{extension}").exists() for extension in (".raw.gz", ".raw", ".png")):
            found.attempt(file.read, folder, params)
    _check_metadata(folder, params, found)


def _check_arrays(folder: Path, params: SubmodelParams, files: list[tuple[Any, ...]], found: _Findings) -> None:
    for file, *_ in files:
        found.attempt(file.read, folder, params)


def _check_indices(folder: Path, params: SubmodelParams, found: _Findings) -> None:
    rows = found.attempt(read_indices, folder, params)
    if rows is None:
        return
    count = int(rows.max()) + 1
    rule = atlas_size(count, params.layout.block_size).capacity
    if params.size.capacity > rule:
        got, expected = f"of {params.size.capacity} blocks", f"of {rule}, the least that holds {count} blocks"
        found.append(Problem(str(params.file), "the atlas", got, expected))


def _check_distance(folder: Path, occupancy: NDArray[np.uint8], distance: NDArray[np.uint8], found: _Findings) -> None:
    """A distance that is too large makes rays jump over what is there; one too small costs only time."""
    limit = distance_grid(occupancy != 0)
    if (distance > limit).any():
        at = tuple(int(i) for i in np.unravel_index(int((distance > limit).argmax()), limit.shape))
        problem = Problem(
            str(folder / "distance_grid_8_000"),
            f"cell {at}",
            str(int(distance[at])),
            f"at most {int(limit[at])}, as the occupancy grid has it",
        )
        found.append(problem)


def unused_files(params: SubmodelParams) -> list[ArrayFile]:
    """The files of grids that viewers with distance grids never ask for."""
    names = [(name, factor) for name in ("occupancy_grid", "distance_grid") for factor in FACTORS if factor != 8]
    return [file for name, factor in names for file in cell_files(params, name, factor)]


def _check_metadata(folder: Path, params: SubmodelParams, found: _Findings) -> None:
    """`asset_metadata` is read by no viewer, so it may be missing; but it must not lie."""
    values = found.attempt(read_object, params.file, MAX_JSON_BYTES) or {}
    entries = values.get("asset_metadata", [])
    if not isinstance(entries, list) or any(not isinstance(entry, dict) for entry in entries):
        found.append(Problem(str(params.file), '"asset_metadata"', "no list of objects", "a list of objects"))
        return
    files = [file for file, *_ in [*plane_files(params), *sparse_files(params)]]
    files += [index_file(params), *cell_files(params, "occupancy_grid"), *cell_files(params, "distance_grid")]
    shapes = {f"{file.name}.{params.array_format}": [file.rows, file.width, file.channels] for file in files}
    for entry in entries:
        name, shape = entry.get("filename"), entry.get("shape")
        if isinstance(name, str) and shape != shapes.get(name, shape):
            field = f'"asset_metadata" of {name}'
            found.append(Problem(str(params.file), field, f"shape {shape}", f"shape {shapes[name]}"))


def describe(folder: Path | str) -> dict[str, Any]:
    """Facts of a baked scene: its numbers, its network, and bytes by part; files with two names count once.

    Raises:
        InputError: no asset, or one whose scene_params.json or network cannot be read.
    """
    start = find_start(Path(folder))
    is_merf = merf.is_merf(start)
    if is_merf:
        params, network = merf.read_merf_params(start)
    else:
        params = read_params(start)
        network = read_network(start, params.layout, params.order, params.network)
    layout = params.layout
    folders = {index: submodel_folder(start, params, index) for index in layout.alive}
    blocks = {index: _count_blocks(own, start, params, is_merf) for index, own in folders.items()}
    facts: dict[str, Any] = {
        "path": str(folder),
        "format": "MERF" if is_merf else "SMERF",
        "triplane resolution": layout.triplane_resolution,
        "sparse resolution": layout.sparse_resolution,
        "submodels": f"{len(layout.alive)} of {layout.submodels_per_axis}^3",
        "submodel scale": f"{layout.submodel_scale:g}",
        "network": _network_line(network),
        "features": ("gated" if layout.feature_gating else "summed") + (", concatenated" * layout.feature_concat),
        "blocks": sum(blocks.values()),
        "test frames": len(read_frames(start)),
    }
    if len(blocks) > 1:
        facts |= {f"blocks of submodel {index}": count for index, count in blocks.items()}
    sizes = part_bytes(list(folders.values()))
    return facts | {f"bytes of {part}": size for part, size in sizes.items()} | {"bytes": sum(sizes.values())}


def _network_line(network: DeferredMlp) -> str:
    widths = " -> ".join(str(kernel.shape[-2]) for kernel in network.kernels)
    return f"{widths} -> 3, {network.kernels[0].shape[1]}^3 sets a submodel"


def _count_blocks(folder: Path, start: Path, params: SubmodelParams, is_merf: bool) -> int:
    own = params if folder == start or is_merf else read_params(folder)
    file = index_file(own)
    return int((file.read(folder, own).reshape(-1, 3)[:, 0] != EMPTY).sum())


def part_bytes(folders: list[Path]) -> dict[str, int]:
    """Bytes on disk of each part of an asset, as the file system has them."""
    parts = ("planes", "sparse grid", "occupancy and distance", "unused grids", "network", "the rest")
    sizes = {part: 0 for part in parts}
    seen: set[tuple[int, int]] = set()
    for path in sorted(path for folder in folders for path in folder.iterdir() if path.is_file()):
        stat = path.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        sizes[_part(path.name)] += stat.st_size
    return sizes


def _part(name: str) -> str:
    if name.startswith("plane_"):
        return "planes"
    if name.startswith("sparse_grid_"):
        return "sparse grid"
    if name.startswith(("occupancy_grid_8", "distance_grid_8")):
        return "occupancy and distance"
    if name.startswith(("occupancy_grid_", "distance_grid_")):
        return "unused grids"
    return "network" if name.startswith("deferred_mlp") else "the rest"
