"""`scene_params.json`: what the official viewer has to be told about a submodel, and what it takes for granted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radcomp_plugins.core.files import MAX_JSON_BYTES
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.atlas import EMPTY, MAX_TEXTURE, AtlasSize
from radcomp_plugins.smerf.formats.arrays import find_file, read_object
from radcomp_plugins.smerf.formats.problem import Fields, fail
from radcomp_plugins.smerf.layout import RANGE_DENSITY, RANGE_FEATURES, Layout

NAME = "scene_params.json"
OURS = "radcomp"
"""Key of what the official files have no place for."""
VERSION = 1
MAX_SUBMODELS = 64**3
"""Cells of the largest grid of submodels that is read; the paper's largest has 5^3."""


def folder_name(index: int) -> str:
    """Folder of the submodel with a linear index."""
    return f"sm_{index:03d}"


def num_local_submodels(layout: Layout) -> int:
    """How many submodels the official viewer is told of.

    Note:
        With one it takes the scene's centre for the submodel's. So the only submodel of a scene that has several cells
        is listed twice, which costs a second request for its scene_params.json.
    """
    several = layout.submodels_per_axis > 1
    return max(len(layout.alive), 2 if several else 1)


def scene_params(
    layout: Layout, index: int, size: AtlasSize, files: Sequence[Mapping[str, Any]], array_format: str = "raw.gz"
) -> dict[str, Any]:
    """The content of a submodel's `scene_params.json`, keys in the official order, which is the alphabet's.

    Args:
        layout: what the submodels share.
        index: linear index of this one.
        size: of its atlas.
        files: entries for `asset_metadata`.
        array_format: extension of the files of arrays.
    """
    k = layout.submodels_per_axis
    alive = list(layout.alive)
    width, height, depth = size.texels
    params: dict[str, Any] = {
        "activation": layout.activation,
        "asset_metadata": list(files),
        "atlas_depth": depth,
        "atlas_height": height,
        "atlas_width": width,
        "data_block_size": layout.block_size,
        "default_exposure": None,
        "deferred_rendering_mode": "snerg",
        "export_apply_zdiff_to_slices": False,
        "export_array_format": array_format,
        "export_pad_occupancy_and_distance_grids": False,
        "export_slice_occupancy_and_distance_grids": True,
        "export_store_deferred_mlp_separately": True,
        "export_store_rgb_and_density_separately": True,
        "exposure_range": None,
        "feature_gating": layout.feature_gating,
        "merge_features_combine_op": "coarse_sum" if layout.feature_concat else "sum",
        "num_local_submodels": num_local_submodels(layout),
        "num_slices": depth,
        "num_submodel_hash_encoding_kernels": len(alive),
        "num_submodel_mlp_kernels": 1,
        "num_submodels": k**3,
        "params_to_sm": alive + alive[-1:] * (num_local_submodels(layout) - len(alive)),
        OURS: {
            "version": VERSION,
            "background": layout.background,
            "scene_to_unit": layout.scene_to_unit.tolist(),
            "submodels_per_axis": k,
            "submodel_scale_factor": layout.submodel_scale_factor,
        },
        "range_density": [-RANGE_DENSITY, RANGE_DENSITY],
        "range_features": [-RANGE_FEATURES, RANGE_FEATURES],
        "resolution_to_use": layout.triplane_resolution,
        "slice_depth": 1,
        "sm_to_params": [alive.index(i) if i in layout.alive else -1 for i in range(k**3)],
        "sparse_grid_resolution": layout.sparse_resolution,
        "sparse_grid_voxel_size": layout.sparse_voxel,
        "submodel_idx": index,
        "submodel_idx_override": None,
        "submodel_scale": layout.submodel_scale,
        "submodel_voxel_size": 2.0 / k,
        "submodels_on_host": alive,
        "triplane_resolution": layout.triplane_resolution,
        "triplane_voxel_size": layout.triplane_voxel,
        "useBits": True,
        "useDistanceGrid": True,
        "voxel_size_to_use": layout.triplane_voxel,
    }
    return dict(sorted(params.items()))


@dataclass(frozen=True)
class SubmodelParams:
    """What a submodel's `scene_params.json` says, checked.

    Attributes:
        file: its path.
        layout: what all submodels share.
        index: linear index of this one.
        size: of its atlas.
        num_slices: files of each part of the sparse grid.
        array_format: extension of the files of arrays, without the first point.
        separate: whether colours and densities lie in files of their own.
        padded: whether occupancy and distance are repeated over four channels.
        order: live submodels in the order of the network's parameters.
        network: the network's parameters, where they are not in a file of their own.
    """

    file: Path
    layout: Layout
    index: int
    size: AtlasSize
    num_slices: int
    array_format: str
    separate: bool
    padded: bool
    order: tuple[int, ...]
    network: dict[str, Any] | None


def read_params(folder: Path) -> SubmodelParams:
    """Read and check the `scene_params.json` of a submodel's folder, ours or the official exporter's.

    Raises:
        InputError: missing, unreadable, or with values that contradict each other or that no viewer draws.
    """
    file = find_file(folder, NAME, ("", ".gz"))
    fields = Fields(read_object(file, MAX_JSON_BYTES), file)
    layout, order = _read_layout(fields)
    submodels = layout.submodels_per_axis**3
    fields.choice("deferred_rendering_mode", ("snerg",), "snerg")
    if fields.boolean("export_apply_zdiff_to_slices", False):
        fail(file, '"export_apply_zdiff_to_slices"', True, "false: no viewer undoes it")
    if fields.values.get("default_exposure") is not None:
        fail(file, '"default_exposure"', fields.values["default_exposure"], "null: scenes with exposures are not read")
    inline = None if fields.boolean("export_store_deferred_mlp_separately", False) else fields.mapping("deferred_mlp")
    return SubmodelParams(
        file=file,
        layout=layout,
        index=fields.integer("submodel_idx", 0, submodels - 1, order[0]),
        size=read_atlas(fields, layout),
        num_slices=fields.integer("num_slices", 1, MAX_TEXTURE),
        array_format=fields.choice("export_array_format", ("raw.gz", "raw", "png"), "png"),
        separate=fields.boolean("export_store_rgb_and_density_separately", False),
        padded=fields.boolean("export_pad_occupancy_and_distance_grids", True),
        order=order,
        network=None if inline is None else dict(inline.values),
    )


def _read_layout(fields: Fields) -> tuple[Layout, tuple[int, ...]]:
    """The layout, and the live submodels in the order of the network's parameters."""
    triplane, sparse = read_resolutions(fields)
    count = fields.integer("num_submodels", 1, MAX_SUBMODELS)
    k = round(count ** (1 / 3))
    if k**3 != count:
        fail(fields.file, '"num_submodels"', count, "the cube of a whole number")
    order = tuple(dict.fromkeys(fields.integers("params_to_sm", 0, count - 1, count + 1)))
    _check_order(fields, order, count)
    scale = fields.number("submodel_scale", 1e-6, 1e6)
    ours = fields.mapping(OURS)
    factor, background, to_unit = scale / k, 0.5, np.eye(4)[:3]
    if ours is not None:
        ours.integer("version", 1, VERSION)
        factor = ours.number("submodel_scale_factor", 1e-6, 1e6)
        background = ours.number("background", 0.0, 1.0)
        to_unit = read_transform(ours)
        if factor * k != scale:
            fail(fields.file, '"submodel_scale"', scale, f"{k} x submodel_scale_factor = {factor * k:g}")
    gating = fields.boolean("feature_gating", True)
    concat = fields.choice("merge_features_combine_op", ("coarse_sum", "sum")) == "coarse_sum"
    activation = fields.choice("activation", ("elu", "relu"), "elu")
    block = fields.integer("data_block_size", 1, sparse)
    alive = tuple(sorted(order))
    try:
        layout = Layout(triplane, sparse, k, factor, alive, to_unit, block, gating, concat, activation, background)
    except InputError as error:
        fail(fields.file, "the layout", str(error), "one that viewers draw")
    return layout, order


def read_resolutions(fields: Fields) -> tuple[int, int]:
    """T and S, once the voxel sizes and the ranges of bytes are known to be those of the viewers."""
    triplane = fields.integer("triplane_resolution", 16, 4096)
    sparse = fields.integer("sparse_grid_resolution", 1, triplane)
    fields.equal("triplane_voxel_size", 4.0 / triplane)
    fields.equal("sparse_grid_voxel_size", 4.0 / sparse)
    for name, limit in (("range_features", RANGE_FEATURES), ("range_density", RANGE_DENSITY)):
        if fields.numbers(name, 2) != [-limit, limit]:
            fail(fields.file, f'"{name}"', fields.values[name], f"[{-limit:g}, {limit:g}]")
    return triplane, sparse


def _check_order(fields: Fields, order: tuple[int, ...], count: int) -> None:
    """The two tables have to be each other's inverse; a scene of one submodel may lack the second."""
    expected = [-1] * count
    for position, index in enumerate(order):
        expected[index] = position
    told = fields.integer("num_local_submodels", 1, count + 1, 1)
    if told < len(order):
        fail(fields.file, '"num_local_submodels"', told, f"{len(order)}, the submodels in params_to_sm")
    if told > 1 or "sm_to_params" in fields.values:
        got = fields.integers("sm_to_params", -1, len(order) - 1, count)
        if got != expected:
            fail(fields.file, '"sm_to_params"', got, "the inverse of params_to_sm, -1 where there is no submodel")
        fields.equal("submodel_voxel_size", 2.0 / round(count ** (1 / 3)))


def read_transform(ours: Fields) -> np.ndarray:
    """scene_to_unit [3, 4]."""
    value = ours.values.get("scene_to_unit")
    rows = [Fields({"scene_to_unit": row}, ours.file) for row in value] if isinstance(value, list) else []
    if len(rows) != 3:
        fail(ours.file, '"scene_to_unit"', value, "3 rows of 4 numbers")
    return np.asarray([row.numbers("scene_to_unit", 4) for row in rows])


def read_atlas(fields: Fields, layout: Layout) -> AtlasSize:
    """The size of the atlas, which has to consist of whole blocks."""
    edge = layout.block_size + 1
    blocks = []
    for name in ("atlas_width", "atlas_height", "atlas_depth"):
        texels = fields.integer(name, edge, MAX_TEXTURE)
        if texels % edge or texels // edge >= EMPTY:
            fail(fields.file, f'"{name}"', texels, f"a multiple of {edge} below {EMPTY * edge}")
        blocks.append(texels // edge)
    slices = fields.integer("num_slices", 1, MAX_TEXTURE)
    if blocks[2] * edge % slices:
        fail(fields.file, '"num_slices"', slices, f"a divisor of atlas_depth, {blocks[2] * edge}")
    return AtlasSize((blocks[0], blocks[1], blocks[2]), edge)
