"""What a `.vqad` file holds, for `radcomp info`; neither torch nor nerfstudio is needed for it."""

from pathlib import Path
from typing import Any

from radcomp_plugins.vqad.bitstream import SCENE, VERSION, read_scene, scene_file, sizes_of

FORMAT = "radcomp-vqad"
"""Name of the asset's format in its manifest."""


def is_vqad(path: Path) -> bool:
    """Whether a path is a `.vqad` file or a folder with one."""
    return path.is_file() and path.suffix == ".vqad" or (path / SCENE).is_file()


def describe(path: Path) -> dict[str, Any]:
    """What a `.vqad` file holds, level by level.

    Raises:
        InputError: it is missing or damaged.
    """
    file = scene_file(path)
    decoded = read_scene(file)
    scene = decoded.scene
    facts: dict[str, Any] = {"path": str(path), "format": FORMAT, "version": VERSION, "bytes": file.stat().st_size}
    if decoded.note is not None:
        facts["cut off"] = decoded.note
    low, high = scene.box.tolist()
    facts["box"] = " ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(low, high, strict=True))
    facts["features"] = scene.num_features
    facts["decoder"] = " -> ".join(str(w.shape[1]) for w in scene.decoder.weights) + " -> 4"
    for size in sizes_of(file.read_bytes(), scene):
        facts[f"level {size['level']}"] = (
            f"{size['voxels']:,} voxels, {size['vertices']:,} vertices, {size['bits']} bits: "
            f"{size['octree_bytes']:,} bytes octree, {size['index_bytes']:,} indices "
            f"({size['bits_per_index']:.2f} bits each), {size['codebook_bytes']:,} codebook; {size['end']:,} so far"
        )
    return facts
