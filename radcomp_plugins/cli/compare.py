"""`radcomp compare REFERENCE FILE ...`: bytes, quality and decoding time of splat files beside each other."""

import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from radcomp_plugins.cli.view import Up
from radcomp_plugins.errors import InputError

if TYPE_CHECKING:
    from radcomp_plugins.splats.comparison import Comparison
    from radcomp_plugins.splats.gaussians import Gaussians

MARKER = "compare.json"


@dataclass
class Compare:
    """Measure splat files against a reference scene's own pictures, or against held-out photos.

    Virtual cameras around and inside the scene need no photos; PSNR and SSIM are then taken on a black and on a white
    background alike. All files have to be in one frame.
    """

    reference: Annotated[Path, tyro.conf.Positional]
    """The original: a splat file, or a run or asset folder."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Splat files to compare with it."""
    data: Path | None = None
    """Dataset (Blender, nerfstudio or COLMAP) whose held-out photos are the truth instead. The files have to be in the
    frame that nerfstudio's parser gives it, as those trained and exported with its defaults are."""
    views: int = 8
    """Virtual cameras."""
    size: int = 256
    """Width and height of their pictures in pixels."""
    seed: int = 1
    """Varies the cameras; 1 with 8 views of 256 are those that `radcomp compress` reports on."""
    up: Up = "z"
    """Which way is up in the pictures: z in nerfstudio's scenes, y-down in most files on the web."""
    output_dir: Path | None = None
    """Folder for side_by_side.png, compare.json and, of three files or more, size_psnr.png."""
    json: bool = False
    """Print the result as JSON."""
    overwrite: bool = False
    """Replace a folder that was written here before."""

    def main(self) -> None:
        """Decode, draw, measure, and show."""
        from radcomp_plugins.core.files import atomic_dir, refuse_overwrite, write_json

        if not self.files or self.views < 1 or self.size < 16:
            raise InputError(f"{len(self.files)} files, --views {self.views}, --size {self.size}: expected at least "
                             "one file to compare, 1 and 16")  # fmt: skip
        if self.output_dir is not None:
            refuse_overwrite(self.output_dir, self.overwrite)
        scenes, rows = read_all([self.reference, *self.files])
        comparison = self.comparison(scenes[0])
        result = {"schema_version": 1, **self.truth(comparison), **measure(scenes, rows, comparison)}
        if self.output_dir is not None:
            from radcomp_plugins.cli.compare_pictures import write_pictures

            with atomic_dir(self.output_dir, self.overwrite, marker=MARKER) as folder:
                result["pictures"] = write_pictures(folder, scenes, result, self.large(scenes[0], comparison))
                write_json(folder / MARKER, result)
        if self.json:
            sys.stdout.write(json.dumps(result, indent=2) + "\n")
            return
        from nerfstudio.utils.rich_utils import CONSOLE

        for line in table(result):
            CONSOLE.print(line, soft_wrap=True, highlight=False, markup=False)

    def comparison(self, reference: "Gaussians") -> "Comparison":
        """What the scenes are compared with."""
        from radcomp_plugins.splats.comparison import SceneComparison
        from radcomp_plugins.splats.virtual_views import virtual_views

        if self.data is not None:
            return photos(self.data)
        return SceneComparison(reference, virtual_views(reference, self.views, self.size, self.seed, self.up))

    def truth(self, comparison: "Comparison") -> dict[str, Any]:
        """What the comparison was with, for the report."""
        if self.data is not None:
            return {"truth": f"held-out photos of {self.data}", "views": len(comparison.views)}
        return {"truth": f"{self.reference}, virtual views", "views": self.views, "size": self.size, "seed": self.seed}

    def large(self, reference: "Gaussians", comparison: "Comparison") -> "Comparison":
        """The same cameras with pictures to look at; photos have their own size."""
        from radcomp_plugins.cli.compare_pictures import PICTURE_SIZE
        from radcomp_plugins.splats.comparison import SceneComparison
        from radcomp_plugins.splats.virtual_views import virtual_views

        if self.data is not None or self.size >= PICTURE_SIZE:
            return comparison
        return SceneComparison(reference, virtual_views(reference, self.views, PICTURE_SIZE, self.seed, self.up))


def read_all(paths: list[Path], times: int = 2) -> tuple[list["Gaussians"], list[dict[str, Any]]]:
    """The scenes, and of each "path", "format", "bytes", "gaussians", "sh_degree", "decode_seconds".

    Args:
        paths: Splat files, runs or asset folders.
        times: How often each is read; the fastest reading counts, for the first one also compiles.
    """
    import torch

    from radcomp_plugins.splats.formats.registry import FORMATS, splat_format_of
    from radcomp_plugins.splats.rate_control import finite_scene
    from radcomp_plugins.teachers.load import find_teacher, load_splats

    device = "cuda" if torch.cuda.is_available() else "cpu"
    scenes, rows = [], []
    for path in paths:
        source = find_teacher(path).source
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            scene = load_splats(path)
            seconds.append(time.perf_counter() - began)
        is_run = source.suffix == ".ckpt"
        known = None if is_run else FORMATS[splat_format_of(source)]
        row: dict[str, Any] = {"path": str(path), "format": "run" if known is None else known.name}
        row["bytes"] = source.stat().st_size if known is None else known.parts(source).bytes
        row |= {"gaussians": len(scene), "sh_degree": scene.sh_degree, "decode_seconds": round(min(seconds), 4)}
        scenes.append(finite_scene(scene).to(device))
        rows.append(row)
    return scenes, rows


def measure(scenes: list["Gaussians"], rows: list[dict[str, Any]], comparison: "Comparison") -> dict[str, Any]:
    """The rows as "reference" and "files", with "ratio", "psnr", "ssim" and "per_view".

    The ratio is to the reference's float32 .ply. The reference's own quality is null where it is the truth itself.
    """
    from radcomp_plugins.splats.comparison import SceneComparison
    from radcomp_plugins.splats.formats.ply import float32_bytes

    whole = float32_bytes(scenes[0])
    measured = []
    for index, (scene, row) in enumerate(zip(scenes, rows, strict=True)):
        row = {**row, "ratio": round(whole / row["bytes"], 3), "psnr": None, "ssim": None, "per_view": None}
        if index or not isinstance(comparison, SceneComparison):
            found = comparison.similarity(scene)
            row |= {"psnr": found.psnr, "ssim": found.ssim, "per_view": list(found.per_view)}
        measured.append(row)
    return {"float32_ply_bytes": whole, "reference": measured[0], "files": measured[1:]}


def photos(data: Path) -> "Comparison":
    """The held-out photos of a dataset, as the methods' own datamanager has them.

    Raises:
        InputError: No dataset known here, or none of its photos are held out.
    """
    import torch

    from radcomp_plugins import compat
    from radcomp_plugins.cli.training import dataset_parser
    from radcomp_plugins.splats.comparison import PhotoComparison
    from radcomp_plugins.splats.config import SplatDatamanagerConfig
    from radcomp_plugins.splats.evaluate import held_out_views

    compat.apply()
    config = SplatDatamanagerConfig(dataparser=dataset_parser(data), cache_images_type="uint8")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # nerfstudio tells what it reads on standard output, which is ours for the result.
    with contextlib.redirect_stdout(sys.stderr):
        manager: Any = config.setup(device=device, test_mode="test", world_size=1, local_rank=0)
        background = torch.zeros(3) if manager.data_background is None else manager.data_background
        views = held_out_views(manager.fixed_indices_eval_dataloader, background.to(device))
    if not views:
        raise InputError(f"--data {data}: no held-out photos, so nothing can be compared")
    return PhotoComparison(views, background.to(device))


def table(result: dict[str, Any]) -> list[str]:
    """Lines of the table."""
    rows: list[tuple[str, ...]] = [
        ("file", "format", "bytes", "ratio", "Gaussians", "SH", "PSNR", "SSIM", "decoded in")
    ]
    for row in (result["reference"], *result["files"]):
        quality = ("", "") if row["psnr"] is None else (f"{row['psnr']:.2f} dB", f"{row['ssim']:.4f}")
        rows.append(
            (
                *(row["path"], row["format"], f"{row['bytes']:,}", f"{row['ratio']:.1f}x", f"{row['gaussians']:,}"),
                *(str(row["sh_degree"]), *quality, f"{row['decode_seconds']:.2f} s"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:<{w}}" if k < 2 else f"{cell:>{w}}" for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    views = f"{result['views']} views" + (f" of {result['size']} x {result['size']} pixels" if "size" in result else "")
    return [*lines, f"PSNR and SSIM against {result['truth']}: {views}. Ratio to the reference's float32 .ply."]
