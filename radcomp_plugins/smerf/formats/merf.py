"""A baked scene in the layout of the MERF viewer, and back (Reiser et al. 2023; the released exporter).

One folder of PNG files for one submodel, whose planes and voxels are simply added, and one network for all places.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from radcomp_plugins.core.files import MAX_JSON_BYTES
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.atlas import AtlasSize, atlas_size, index_bytes, pack_slices
from radcomp_plugins.smerf.empty_space import FACTORS, distance_grid, pack_cells
from radcomp_plugins.smerf.formats.arrays import find_file, grid_rows, read_object, read_png, rows_grid
from radcomp_plugins.smerf.formats.params import (
    NAME,
    OURS,
    VERSION,
    SubmodelParams,
    read_atlas,
    read_resolutions,
    read_transform,
)
from radcomp_plugins.smerf.formats.problem import Fields, fail
from radcomp_plugins.smerf.formats.small_files import to_json
from radcomp_plugins.smerf.formats.smerf import JOINED_PARTS, check_scene, read_blocks, read_indices, read_planes
from radcomp_plugins.smerf.layout import (
    NUM_FEATURES,
    RANGE_DENSITY,
    RANGE_FEATURES,
    BakedScene,
    BakedSubmodel,
    DeferredMlp,
    Layout,
)

_INPUTS = NUM_FEATURES + 27
_LAYERS = 3
_MAX_WIDTH = 256


def write_merf(folder: Path | str, scene: BakedScene) -> None:
    """Write a baked scene as files that the MERF viewer opens.

    Args:
        folder: is made where it does not exist.
        scene: of one submodel, with a layout that MERF has: no gating, no features twice, submodel scale 1, ReLU, and
            one parameter set (P = 1).

    Raises:
        InputError: the scene has what MERF does not know.
    """
    check_scene(scene)
    _check_plain(scene)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layout, submodel = scene.layout, scene.submodels[0]
    size = atlas_size(len(submodel.blocks), layout.block_size)
    for part, channels in JOINED_PARTS.items():
        for plane in range(3):
            _write_png(folder / f"plane_{part}_{plane}.png", submodel.planes[plane].transpose(1, 0, 2)[..., channels])
        for k, texels in enumerate(pack_slices(submodel.blocks, size, channels)):
            _write_png(folder / f"sparse_grid_{part}_{k:03d}.png", texels)
    indices = grid_rows(index_bytes(submodel.block_indices, size))
    _write_png(folder / "sparse_grid_block_indices.png", indices)
    occupied = submodel.occupancy != 0
    for factor in FACTORS[1:]:
        if factor > 8:
            occupied = pack_cells(occupied) != 0
        rows = grid_rows(occupied.astype(np.uint8))
        _write_png(folder / f"occupancy_grid_{factor}.png", rows.repeat(4, axis=-1))
    (folder / NAME).write_text(to_json(_params(scene, size)))


def _check_plain(scene: BakedScene) -> None:
    layout = scene.layout
    wrong = {
        "gates the planes": layout.feature_gating,
        "gives its network the sparse features a second time": layout.feature_concat,
        "has several submodels": layout.submodels_per_axis != 1,
        f"has submodel scale {layout.submodel_scale:g}": layout.submodel_scale != 1.0,
        f"has activation {layout.activation}": layout.activation != "relu",
        "has several parameter sets of the network": scene.deferred.kernels[0].shape[1] != 1,
    }
    reasons = [reason for reason, found in wrong.items() if found]
    if reasons:
        raise InputError(
            f"the scene {', '.join(reasons)}, which MERF's viewer cannot draw: write it as SMERF, or train it with "
            "feature_gating and feature_concat off, one submodel of scale factor 1, relu and one parameter set"
        )


def _params(scene: BakedScene, size: AtlasSize) -> dict[str, Any]:
    layout = scene.layout
    width, height, depth = size.texels
    network: dict[str, Any] = {}
    for layer, (kernel, bias) in enumerate(zip(scene.deferred.kernels, scene.deferred.biases, strict=True)):
        network[f"{layer}_weights"] = kernel[0, 0, 0, 0].tolist()
        network[f"{layer}_bias"] = bias[0, 0, 0, 0].tolist()
    return network | {
        "triplane_resolution": layout.triplane_resolution,
        "triplane_voxel_size": layout.triplane_voxel,
        "sparse_grid_resolution": layout.sparse_resolution,
        "sparse_grid_voxel_size": layout.sparse_voxel,
        "range_features": [-RANGE_FEATURES, RANGE_FEATURES],
        "range_density": [-RANGE_DENSITY, RANGE_DENSITY],
        "data_block_size": layout.block_size,
        "atlas_width": width,
        "atlas_height": height,
        "atlas_depth": depth,
        "num_slices": depth,
        "slice_depth": 1,
        OURS: {
            "version": VERSION,
            "background": layout.background,
            "scene_to_unit": layout.scene_to_unit.tolist(),
        },
    }


def _write_png(path: Path, texels: NDArray[np.uint8]) -> None:
    """A PNG of [height, width, 3 or 4]."""
    Image.fromarray(np.ascontiguousarray(texels)).save(path, "PNG", compress_level=6)


def is_merf(folder: Path) -> bool:
    """Whether a folder holds an asset in MERF's layout.

    Raises:
        AssetError: its scene_params.json is damaged.
    """
    return (folder / NAME).is_file() and "0_weights" in read_object(folder / NAME, MAX_JSON_BYTES)


def read_merf(folder: Path | str) -> BakedScene:
    """Read a scene in MERF's layout, ours or the official exporter's.

    Occupancy is as coarse as MERF's, 8^3 texels; the distance grid, which MERF does not have, is made from it.

    Note:
        MERF adds the background to the picture, SMERF's renderers show it to the network alone. Where rays end in
        nothing the two differ.

    Raises:
        InputError: no asset, or a damaged one; the line names file, field, what was found and what was expected.
    """
    folder = Path(folder)
    params, deferred = read_merf_params(folder)
    rows = read_indices(folder, params)
    planes = read_planes(folder, params)
    blocks = read_blocks(folder, params, int(rows.max()) + 1)
    occupied = read_occupied(folder, params)
    packed = np.where(occupied, np.uint8(255), np.uint8(0))
    submodel = BakedSubmodel(0, planes, rows, blocks, packed, distance_grid(occupied))
    return BakedScene(params.layout, deferred, {0: submodel})


def read_merf_params(folder: Path) -> tuple[SubmodelParams, DeferredMlp]:
    """The numbers and the network of an asset's scene_params.json."""
    file = find_file(folder, NAME, ("",))
    fields = Fields(read_object(file, MAX_JSON_BYTES), file)
    triplane, sparse = read_resolutions(fields)
    ours = fields.mapping(OURS)
    background = 0.5 if ours is None else ours.number("background", 0.0, 1.0)
    to_unit = np.eye(4)[:3] if ours is None else read_transform(ours)
    block = fields.integer("data_block_size", 1, sparse)
    try:
        layout = Layout(triplane, sparse, 1, 1.0, (0,), to_unit, block, False, False, "relu", background)
    except InputError as error:
        fail(file, "the layout", str(error), "one that viewers draw")
    slices = fields.integer("num_slices", 1, 2048)
    params = SubmodelParams(file, layout, 0, read_atlas(fields, layout), slices, "png", False, True, (0,), None)
    return params, _read_network(fields)


def _read_network(fields: Fields) -> DeferredMlp:
    kernels, biases, inputs = [], [], _INPUTS
    for layer in range(_LAYERS):
        name = f"{layer}_weights"
        rows = fields.values.get(name)
        outputs = len(rows[0]) if isinstance(rows, list) and rows and isinstance(rows[0], list) else 0
        if not isinstance(rows, list) or len(rows) != inputs or not 1 <= outputs <= _MAX_WIDTH:
            fail(fields.file, f'"{name}"', "of another shape", f"{inputs} lists of up to {_MAX_WIDTH} numbers")
        if layer == _LAYERS - 1 and outputs != 3:
            fail(fields.file, f'"{name}"', f"{outputs} outputs", "3 outputs")
        kernel = [Fields({name: row}, fields.file).numbers(name, outputs) for row in rows]
        kernels.append(np.asarray(kernel, np.float32)[None, None, None, None])
        bias = fields.numbers(f"{layer}_bias", outputs)
        biases.append(np.asarray(bias, np.float32)[None, None, None, None])
        inputs = outputs
    return DeferredMlp(kernels, biases)


def read_occupied(folder: Path, params: SubmodelParams) -> NDArray[np.bool_]:
    """Which cells of 8^3 texels are occupied."""
    edge = params.layout.triplane_resolution // 8
    texels = read_png(find_file(folder, "occupancy_grid_8", (".png",)), edge, edge * edge, 4)
    return rows_grid(texels, (edge, edge, edge))[..., 0] != 0
