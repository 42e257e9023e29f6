"""`radcomp export METHOD`, the same as `ns-export METHOD`: write a trained run as files that other programs open."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

SplatFormatName = Literal["sog", "ply", "spz", "rcs"]


@dataclass
class ExportLightGaussian:
    """Write a LightGaussian run as an asset folder: splat files, manifest with measured quality, and a small run.

    Example: radcomp export lightgaussian --load-config outputs/chair/lightgaussian-tiny/*/config.yml --output-dir chair
    """

    load_config: Path
    """config.yml of the run, or its folder."""
    output_dir: Path
    """The folder to make."""
    formats: tuple[SplatFormatName, ...] | None = None
    """Files to write, unless told otherwise the format of the run's `encoding`, or sog, and ply. The first is the one
    that the folder's `run/` shows in ns-viewer, ns-eval and ns-render."""
    with_quality: bool = True
    """Decode the written file and measure it on the held-out views; needs the run's dataset."""
    overwrite: bool = False
    """Replace an asset that is already there."""

    def main(self) -> None:
        """Export, and say what was written."""
        from radcomp_plugins.lightgaussian.asset import export_run

        export_run(
            self.load_config,
            self.output_dir,
            formats=self.formats,
            with_quality=self.with_quality,
            overwrite=self.overwrite,
        )
        print_files(self.output_dir)


@dataclass
class ExportSplats:
    """Write the Gaussians of any splat run, checkpoint or splat file as splat files, as they are.

    Unlike ns-export gaussian-splat it needs neither the dataset nor open3d.
    Example: radcomp export splats --load-config outputs/chair/splatfacto-tiny/*/config.yml --output-dir chair
    """

    load_config: Path
    """config.yml of a run, its folder, a checkpoint, or a splat file."""
    output_dir: Path
    """The folder to write scene.ply or scene.sog into."""
    formats: tuple[SplatFormatName, ...] = ("ply",)
    """Files to write."""
    overwrite: bool = False
    """Replace files that are already there."""

    def main(self) -> None:
        """Export, and say what was written."""
        from radcomp_plugins.core.files import refuse_overwrite
        from radcomp_plugins.splats.formats.registry import write_splats
        from radcomp_plugins.teachers.load import load_splats

        paths = [self.output_dir / f"scene.{name}" for name in self.formats]
        for path in paths:
            refuse_overwrite(path, self.overwrite)
        scene = load_splats(self.load_config)
        for path in paths:
            write_splats(path, scene, overwrite=self.overwrite)
        print_files(self.output_dir)


@dataclass
class ExportSmerf:
    """Bake a SMERF run into an asset folder: texture files for the browser, manifest with measured quality, small run.

    Example: radcomp export smerf --load-config outputs/chair/smerf-tiny/*/config.yml --output-dir chair
    Then: radcomp serve chair
    """

    load_config: Path
    """config.yml of the run, or its folder."""
    output_dir: Path
    """The folder to make."""
    format: Literal["smerf", "merf"] = "smerf"
    """`smerf`: what our viewer and the official one open. `merf`: the older format, for students without gating."""
    weight_threshold: float = 0.005
    """Weight in a pixel from which something is kept, in [0, 1]. Raising it shrinks the asset. The paper: 0.005."""
    min_neighbours: int = 2
    """Occupied cells that a cell needs around it to be kept, 0 to 26. Raising it takes more floaters away, and thin
    things with them."""
    with_quality: bool = True
    """Measure the decoded asset, the student and the teacher on the held-out views."""
    overwrite: bool = False
    """Replace an asset that is already there."""

    def main(self) -> None:
        """Export, and say what was written."""
        from radcomp_plugins.smerf.asset import export_run
        from radcomp_plugins.smerf.bake import BakeSettings

        export_run(
            self.load_config,
            self.output_dir,
            format=self.format,
            settings=BakeSettings(self.weight_threshold, self.min_neighbours),
            with_quality=self.with_quality,
            overwrite=self.overwrite,
        )
        print_files(self.output_dir)


@dataclass
class ExportKilonerf:
    """Write a KiloNeRF run as an asset folder: a file of networks and voxels, manifest with measured quality, run.

    Example: radcomp export kilonerf --load-config outputs/chair/kilonerf-tiny/*/config.yml --output-dir chair
    Then: ns-viewer --load-config chair/run/config.yml
    """

    load_config: Path
    """config.yml of the run, or its folder."""
    output_dir: Path
    """The folder to make."""
    precision: Literal["fp16", "int8"] = "int8"
    """Of the networks' weights. int8 is half the file of fp16; on the chair it costs 0.006 dB."""
    with_quality: bool = True
    """Measure the decoded asset and the teacher on the held-out views."""
    teacher_views: int = 2
    """Of how many held-out views, evenly spread, the teacher draws a picture: that takes seconds to minutes each."""
    overwrite: bool = False
    """Replace an asset that is already there."""

    def main(self) -> None:
        """Export, and say what was written."""
        from radcomp_plugins.kilonerf.asset import export_run

        export_run(
            self.load_config,
            self.output_dir,
            precision=self.precision,
            with_quality=self.with_quality,
            teacher_views=self.teacher_views,
            overwrite=self.overwrite,
        )
        print_files(self.output_dir)


@dataclass
class ExportVqad:
    """Write a VQ-AD run as an asset folder: one progressive file, manifest with its quality by level, and a small run.

    Any beginning of scene.vqad that ends after a level draws the scene at that level.
    Example: radcomp export vqad --load-config outputs/chair/vqad-tiny/*/config.yml --output-dir chair
    Then: ns-viewer --load-config chair/run/config.yml
    """

    load_config: Path
    """config.yml of the run, or its folder."""
    output_dir: Path
    """The folder to make."""
    decoder_digits: int = 10
    """Binary digits kept of the decoder's half-precision weights, behind the leading one, 0 to 10. Six make the first
    picture of a streamed file come a few kilobytes earlier."""
    codebook_digits: int = 10
    """The same for the codebooks."""
    with_quality: bool = True
    """Decode the written file and measure each of its levels on the held-out views; needs the run's dataset."""
    overwrite: bool = False
    """Replace an asset that is already there."""

    def main(self) -> None:
        """Export, and say what was written."""
        from radcomp_plugins.vqad.asset import FileSettings, export_run

        export_run(
            self.load_config,
            self.output_dir,
            settings=FileSettings(self.decoder_digits, self.codebook_digits),
            with_quality=self.with_quality,
            overwrite=self.overwrite,
        )
        print_files(self.output_dir)


EXPORTS = (
    Annotated[ExportKilonerf, tyro.conf.subcommand(name="kilonerf")],
    Annotated[ExportLightGaussian, tyro.conf.subcommand(name="lightgaussian")],
    Annotated[ExportSmerf, tyro.conf.subcommand(name="smerf")],
    Annotated[ExportSplats, tyro.conf.subcommand(name="splats")],
    Annotated[ExportVqad, tyro.conf.subcommand(name="vqad")],
)
"""Members for a tyro union: those of `radcomp export`, which ns-export gets as well."""


def spell_out_flags(args: Sequence[str], flags: Sequence[str] = ("--overwrite",)) -> list[str]:
    """`--overwrite` as `--overwrite True`: commands take booleans like ns-*, with a value, but a bare flag is clear."""
    spelled: list[str] = []
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        spelled.append(arg)
        if arg in flags and following not in ("True", "False"):
            spelled.append("True")
    return spelled


def print_files(folder: Path) -> None:
    """List the files of a folder with their sizes."""
    from nerfstudio.utils.rich_utils import CONSOLE

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        CONSOLE.print(f"{path.stat().st_size:>12,} bytes  {path}", soft_wrap=True, highlight=False)
