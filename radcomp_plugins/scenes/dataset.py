"""Writes a procedural scene as an ordinary dataset that nerfstudio's own parsers read.

The folder has `images/` and `depths/` (16-bit PNG, thousandths of a scene unit, distance along the view axis, 0 where
nothing is seen: nerfstudio's default `depth_unit_scale_factor`), `transforms.json` (nerfstudio-data), `points3D.ply`
(SfM-like points) and, for a scene with a transparent background, `transforms_train/val/test.json` (blender-data).
Every eighth view is held out; the validation and the test split are the same views.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from radcomp_plugins.core.files import atomic_dir, refuse_overwrite, write_json, write_manifest
from radcomp_plugins.errors import InputError
from radcomp_plugins.scenes import still_life, two_rooms
from radcomp_plugins.scenes.lighting import bake
from radcomp_plugins.scenes.render import Camera, draw
from radcomp_plugins.scenes.world import Scene, World, compile_scene

DEPTH_UNIT = 1e-3
HELD_OUT = 8
POINT_NOISE = 1e-3
"""Standard deviation of a point's position as a part of its depth."""
LIMITS = {"views": (2, 5000), "width": (16, 4096), "height": (16, 4096), "seed": (0, 2**31 - 1)}

Progress = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all)."""


@dataclass(frozen=True)
class SceneKind:
    """A scene that can be made.

    Attributes:
        build: the scene for a seed.
        cameras: (views, width, height, seed) to cameras.
        transparent: images keep alpha, and the blender form is written as well.
        points: number of points in points3D.ply.
    """

    build: Callable[[int], Scene]
    cameras: Callable[[int, int, int, int], list[Camera]]
    transparent: bool
    points: int


SCENES = {
    "still-life": SceneKind(still_life.scene, still_life.cameras, True, 10_000),
    "two-rooms": SceneKind(two_rooms.scene, two_rooms.cameras, False, 20_000),
}


def check_request(name: str, **numbers: int) -> None:
    """Checks what a user asked for.

    Raises:
        InputError: unknown scene, or a number out of `LIMITS`.
    """
    if name not in SCENES:
        raise InputError(f"no scene is called {name!r}: expected one of {', '.join(SCENES)}")
    for key, value in numbers.items():
        low, high = LIMITS[key]
        if not low <= value <= high:
            raise InputError(f"{key} is {value}: expected a whole number from {low} to {high}")


def held_out(views: int) -> list[bool]:
    """Which views are for testing: every eighth, beginning with the fifth; at least one."""
    return [k % HELD_OUT == min(4, views - 1) for k in range(views)]


def build_world(name: str, seed: int) -> World:
    """The scene `name`, compiled and lit."""
    scene = SCENES[name].build(seed)
    world = compile_scene(scene)
    bake(world, scene.gather, scene.smoothing)
    return world


def make_dataset(
    name: str,
    output_dir: Path,
    *,
    views: int = 60,
    width: int = 200,
    height: int = 200,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Renders a scene and writes the dataset folder, which appears only when it is complete.

    Args:
        name: one of `SCENES`.
        output_dir: the folder to make.
        views: number of images, held-out ones included.
        width: pixels.
        height: pixels.
        seed: varies the scene and the cameras; the same seed gives the same bytes.
        overwrite: replace a dataset that this function wrote before.
        progress: called after every step.

    Returns:
        The manifest that was written.

    Raises:
        InputError: unknown scene, a number out of range, or the folder exists.
    """
    check_request(name, views=views, width=width, height=height, seed=seed)
    refuse_overwrite(output_dir, overwrite)
    kind = SCENES[name]
    with atomic_dir(output_dir, overwrite) as folder:
        progress("light", 0, 1)
        world = build_world(name, seed)
        progress("light", 1, 1)
        cameras = kind.cameras(views, width, height, seed)
        test = held_out(views)
        cloud = _Cloud(kind.points, test.count(False), seed)
        for sub in ("images", "depths"):
            (folder / sub).mkdir()
        for k, camera in enumerate(cameras):
            image, depth = draw(world, camera)
            _write_images(folder, k, image, depth, kind.transparent)
            if not test[k]:
                cloud.add(camera, image, depth)
            progress("views", k + 1, views)
        write_points(folder / "points3D.ply", *cloud.result())
        write_json(folder / "transforms.json", _nerfstudio_form(cameras, test))
        if kind.transparent:
            for split in ("train", "val", "test"):
                picked = [k for k in range(views) if test[k] == (split != "train")]
                write_json(folder / f"transforms_{split}.json", _blender_form(cameras, picked))
        about = {"format": "radcomp-scene", "version": 1, "scene": name, "seed": seed, "views": views}
        return write_manifest(folder, {**about, "width": width, "height": height, "test_views": test.count(True)})


def frame_name(k: int) -> str:
    """Name of view k without folder and suffix."""
    return f"frame_{k + 1:05d}"


def _write_images(
    folder: Path, k: int, image: UInt8[np.ndarray, "H W 4"], depth: Float[np.ndarray, "H W"], transparent: bool
) -> None:
    Image.fromarray(image if transparent else np.ascontiguousarray(image[..., :3])).save(
        folder / "images" / f"{frame_name(k)}.png", compress_level=6
    )
    units = np.rint(depth / DEPTH_UNIT)
    if units.max() > 65535:
        raise ValueError(f"depth {depth.max():.3f} does not fit 16 bits at {DEPTH_UNIT} a step")
    Image.fromarray(units.astype(np.uint16)).save(folder / "depths" / f"{frame_name(k)}.png", compress_level=6)


def _nerfstudio_form(cameras: list[Camera], test: list[bool]) -> dict[str, Any]:
    """transforms.json, with the splits by file name."""
    first = cameras[0]
    frames = [
        {
            "file_path": f"images/{frame_name(k)}.png",
            "depth_file_path": f"depths/{frame_name(k)}.png",
            "transform_matrix": camera.pose.tolist(),
        }
        for k, camera in enumerate(cameras)
    ]
    names = {flag: [f["file_path"] for f, t in zip(frames, test, strict=True) if t == flag] for flag in (True, False)}
    return {
        "camera_model": "OPENCV",
        "w": first.width,
        "h": first.height,
        "fl_x": first.focal,
        "fl_y": first.focal,
        "cx": 0.5 * first.width,
        "cy": 0.5 * first.height,
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "ply_file_path": "points3D.ply",
        "train_filenames": names[False],
        "val_filenames": names[True],
        "test_filenames": names[True],
        "frames": frames,
    }


def _blender_form(cameras: list[Camera], picked: list[int]) -> dict[str, Any]:
    """transforms_<split>.json of the Blender scenes of NeRF; image names have no suffix."""
    first = cameras[0]
    frames = [{"file_path": f"./images/{frame_name(k)}", "transform_matrix": cameras[k].pose.tolist()} for k in picked]
    return {"camera_angle_x": 2.0 * math.atan(0.5 * first.width / first.focal), "frames": frames}


class _Cloud:
    """Gathers points as structure from motion would find them: on visible surfaces, a little off, with a colour."""

    def __init__(self, count: int, views: int, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 7])
        self.per_view = -(-count // views)
        self.count = count
        self.parts: list[tuple[Float[np.ndarray, "M 3"], UInt8[np.ndarray, "M 3"]]] = []

    def add(self, camera: Camera, image: UInt8[np.ndarray, "H W 4"], depth: Float[np.ndarray, "H W"]) -> None:
        """Picks pixels of a view that show nothing but surface, and puts their centres back into space."""
        rows, columns = np.nonzero((depth > 0) & (image[..., 3] == 255))
        if len(rows) == 0:
            return
        pick = self.rng.choice(len(rows), size=min(self.per_view, len(rows)), replace=False)
        rows, columns = rows[pick], columns[pick]
        z = depth[rows, columns]
        x = (columns + 0.5 - 0.5 * camera.width) / camera.focal
        y = -(rows + 0.5 - 0.5 * camera.height) / camera.focal
        local = np.stack([x * z, y * z, -z], axis=1)
        points = local @ camera.pose[:3, :3].T + camera.pose[:3, 3]
        points += self.rng.normal(size=points.shape) * (POINT_NOISE * z)[:, None]
        self.parts.append((points, image[rows, columns, :3]))

    def result(self) -> tuple[Float[np.ndarray, "M 3"], UInt8[np.ndarray, "M 3"]]:
        """Positions and colours, at most as many as were asked for."""
        points = np.concatenate([p for p, _ in self.parts] or [np.zeros((0, 3))])
        colors = np.concatenate([c for _, c in self.parts] or [np.zeros((0, 3), np.uint8)])
        keep = np.sort(self.rng.permutation(len(points))[: self.count])
        return points[keep], colors[keep]


def write_points(path: Path, points: Float[np.ndarray, "M 3"], colors: UInt8[np.ndarray, "M 3"]) -> None:
    """Writes coloured points as a binary little-endian .ply, as nerfstudio's (open3d's) reader expects."""
    columns = [(c, "<f4") for c in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    table = np.zeros(len(points), dtype=columns)
    for k, c in enumerate("xyz"):
        table[c] = points[:, k]
    for k, c in enumerate(("red", "green", "blue")):
        table[c] = colors[:, k]
    kinds = ["property float x", "property float y", "property float z"]
    kinds += [f"property uchar {c}" for c in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *kinds, "end_header", ""]
    path.write_bytes("\n".join(header).encode("ascii") + table.tobytes())
