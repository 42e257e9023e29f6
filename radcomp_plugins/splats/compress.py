"""A splat file made smaller from itself alone: virtual cameras, rate control, recovery, and a measured file."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.core.files import atomic_write, refuse_overwrite
from radcomp_plugins.splats.fake_quantise import FakeQuantiser, Palette, fake_quantiser
from radcomp_plugins.splats.formats.ply import float32_bytes
from radcomp_plugins.splats.formats.rcs import RcsSettings, decode_rcs, encode_rcs
from radcomp_plugins.splats.formats.registry import SplatFormat, format_to_write, write_splats
from radcomp_plugins.splats.formats.sog_writer import default_palette_size
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.rate_control import Codec, Goal, Measured, Meter, Point, control, finite_scene, fit_size
from radcomp_plugins.splats.recover import recover
from radcomp_plugins.splats.significance import contributions, score
from radcomp_plugins.splats.virtual_views import virtual_views

TEST_SEED, CHOICE_SEED = 1, 2
"""The views of the report are neither those that were searched with and trained on nor those that judge training."""


@dataclass(frozen=True)
class RcsCodec:
    """`.rcs` in memory.

    Attributes:
        options: More options of the writer.
    """

    options: dict[str, Any] = field(default_factory=dict)
    moves: Sequence[str] = ("coarse", "opacity", "palette", "degree")

    def encode(self, gaussians: Gaussians, point: Point, significance: Float[Tensor, " N"]) -> bytes:
        """The whole file."""
        return encode_rcs(gaussians, _rcs_settings(point), significance, **self.options)[0]

    def decode(self, data: bytes) -> Gaussians:
        """What it holds."""
        return decode_rcs(data, "the file just written")


@dataclass(frozen=True)
class FileCodec:
    """Any other format of the registry, by way of a temporary file.

    Attributes:
        known: The format, one that can be written.
        options: More options of the writer.
    """

    known: SplatFormat
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def moves(self) -> Sequence[str]:
        """What its files' size depends on."""
        return ("palette", "degree") if self.known.name == "sog" else ("degree",)

    def encode(self, gaussians: Gaussians, point: Point, significance: Float[Tensor, " N"]) -> bytes:
        """The whole file."""
        options = dict(self.options)
        if self.known.name == "sog":
            options["significance"] = significance
            if point.degree:
                options["palette_size"] = point.palette
        with tempfile.TemporaryDirectory() as folder:
            path = self._path(folder)
            write_splats(path, gaussians, **options)
            return path.read_bytes()

    def decode(self, data: bytes) -> Gaussians:
        """What it holds."""
        with tempfile.TemporaryDirectory() as folder:
            path = self._path(folder)
            path.write_bytes(data)
            return self.known.read(path)

    def _path(self, folder: str) -> Path:
        return Path(folder) / f"scene{self.known.suffixes[0]}"


def quantiser_for(
    codec: Codec, gaussians: Gaussians, point: Point, significance: Float[Tensor, " N"]
) -> tuple[FakeQuantiser | None, Palette | None]:
    """The quantisers that a codec would choose, and the SH palette; None for formats that cannot be trained through."""
    if isinstance(codec, RcsCodec):
        return fake_quantiser("rcs", gaussians, significance=significance, settings=_rcs_settings(point))
    name = codec.known.name if isinstance(codec, FileCodec) else ""
    if name == "sog":
        return fake_quantiser("sog", gaussians, significance=significance, palette_size=point.palette or None)
    return fake_quantiser("spz", gaussians) if name == "spz" else (None, None)


def _rcs_settings(point: Point) -> RcsSettings:
    settings = RcsSettings(palette=point.palette or None).scaled(point.coarse)
    return replace(settings, opacity=min(settings.opacity * point.opacity, 0.5))


def codec_for(path: Path) -> Codec:
    """The codec that a file's suffix names.

    Raises:
        InputError: a suffix that is not known, or of files that are only read.
    """
    known = format_to_write(path)
    return RcsCodec() if known.name == "rcs" else FileCodec(known)


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        views: Virtual cameras to search and train with; half as many others are reported on.
        size: of their pictures, pixels.
        recovery_steps: of training towards the original's pictures once the settings are found; 0 for none.
        seed: of cameras and training.
        through_format: whether that training sees the decoded file, in formats that `fake_quantise` knows.
        merging: whether neighbours may be merged, where that looks better than dropping Gaussians.
    """

    views: int = 16
    size: int = 256
    recovery_steps: int = 300
    seed: int = 0
    through_format: bool = True
    merging: bool = True


def compress(
    gaussians: Gaussians,
    path: Path | str,
    goal: Goal,
    effort: Effort | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes a scene at a size or quality, from the scene alone, and measures the file that was written.

    Args:
        gaussians: The scene; Gaussians that are not finite are left out.
        path: Where to write; its suffix names the format.
        goal: Size, quality or count; with none of them the format's defaults are written, without a search.
        effort: How much is done.
        overwrite: Whether an existing file may be replaced.
        progress: Takes a line now and then.

    Returns:
        "path", "bytes", "gaussians", "sh_degree", "ratio" to the scene as a float32 .ply, "psnr" in dB of the decoded
        file against the original on views that were not trained on, "psnr_before_recovery", and the settings chosen.

    Raises:
        InputError: The goal cannot be reached, nothing to write, the file exists, an unknown suffix.
    """
    path, effort = Path(path), effort or Effort()
    codec = codec_for(path)
    refuse_overwrite(path, overwrite)
    scene = finite_scene(gaussians)
    views = virtual_views(scene, effort.views, effort.size, effort.seed)
    significance = score(scene, contributions(scene, views))
    meter = Meter(scene, significance, codec, views, merging=effort.merging)
    if goal == Goal():
        chosen = meter.measure(Point(len(scene), scene.sh_degree, 1.0, _default_palette(scene, codec)))
    else:
        chosen = control(meter, goal, lambda m: progress(_line(m)))
    before = chosen
    if effort.recovery_steps and goal != Goal():
        progress(f"training {chosen.point.count} Gaussians towards the original's pictures")
        chosen = _recovered(meter, chosen, goal, effort)
    with atomic_write(path, overwrite=overwrite) as file:
        file.write(chosen.data)
    held_out = virtual_views(scene, max(effort.views // 2, 1), effort.size, effort.seed + TEST_SEED)
    judge = Meter(scene, significance, codec, held_out)
    written = codec.decode(path.read_bytes())
    return {
        "path": str(path),
        "bytes": len(chosen.data),
        "gaussians": len(written),
        "sh_degree": written.sh_degree,
        "ratio": float32_bytes(gaussians) / len(chosen.data),
        "psnr": judge.psnr_of(written),
        "psnr_before_recovery": judge.psnr_of(codec.decode(before.data)),
        "coarse": chosen.point.coarse,
        "opacity": chosen.point.opacity,
        "palette": chosen.point.palette,
        "merged": meter.reducer.at(before.point.count).merged,
        "files_tried": len(meter.known),
    }


def _recovered(meter: Meter, chosen: Measured, goal: Goal, effort: Effort) -> Measured:
    """The file of the trained scene if it is better on other views and keeps the goal, otherwise the chosen one."""
    reduced = meter.reducer.at(chosen.point.count)
    pruned = reduced.scene.with_sh_degree(chosen.point.degree)
    codec, quantiser, palette = meter.codec, None, None
    if effort.through_format:
        quantiser, palette = quantiser_for(codec, pruned, chosen.point, reduced.significance)
    trained = recover(
        pruned, meter.original, meter.views, effort.recovery_steps, effort.seed, quantiser=quantiser, palette=palette
    )
    if len(trained) != len(pruned):
        return chosen
    if quantiser is not None and isinstance(codec, RcsCodec | FileCodec):
        codec = replace(codec, options=quantiser.options())
    after = Meter(trained, reduced.significance, codec, meter.views, meter.original, effort.merging)
    # The trained scene may code a little longer: then its least significant Gaussians go.
    if goal.size is None:
        fitted = after.measure(chosen.point)
    else:
        fitted = fit_size(after, chosen.point, replace(goal, count=None))
    if fitted is None or (goal.psnr is not None and fitted.psnr < goal.psnr):
        return chosen
    # Few small views can be learned by heart, so the views that were trained on do not decide.
    others = virtual_views(meter.original, max(effort.views // 2, 1), effort.size, effort.seed + CHOICE_SEED)
    judge = Meter(meter.original, meter.significance, meter.codec, others)
    psnr = [judge.psnr_of(meter.codec.decode(m.data)) for m in (chosen, fitted)]
    return fitted if psnr[1] > psnr[0] else chosen


def _default_palette(scene: Gaussians, codec: Codec) -> int:
    """What the format's writer takes; .rcs, which rounds what is in its palette, has nothing of keeping one."""
    if scene.sh_degree == 0:
        return 0
    keeps = isinstance(codec, FileCodec) and codec.known.name == "sog"
    return default_palette_size(len(scene), scene.different_sh() if keeps else None)


def _line(m: Measured) -> str:
    p = m.point
    return (
        f"{m.size:,} bytes, {m.psnr:.2f} dB: {p.count:,} Gaussians, SH {p.degree}, steps x{p.coarse:.2g}, "
        f"palette {p.palette}" + (f", opacities x{p.opacity:.2g}" if p.opacity != 1.0 else "")
    )
