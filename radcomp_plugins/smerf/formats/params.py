"""`scene_params.json`: what the official viewer has to be told about a submodel, and what it takes for granted."""

from collections.abc import Mapping, Sequence
from typing import Any

from radcomp_plugins.smerf.atlas import AtlasSize
from radcomp_plugins.smerf.layout import RANGE_DENSITY, RANGE_FEATURES, Layout

NAME = "scene_params.json"
OURS = "radcomp"
"""Key of what the official files have no place for."""
VERSION = 1


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
