"""`radcomp compress IN OUT`: a splat file made smaller, to a size or a quality, from the file alone."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from radcomp_plugins.splats.rate_control import Goal


@dataclass
class Compress:
    """Write a splat scene smaller, in the format that the new file's suffix names, and measure what it cost.

    No photos and no cameras are needed: virtual cameras around and inside the scene compare the file that was written,
    decoded again, with the original. With a size, quality or count the settings are searched by such measurements;
    without, the format's own defaults are written.
    """

    input: Annotated[Path, tyro.conf.Positional]
    """A splat file, or a run or asset folder."""
    output: Annotated[Path, tyro.conf.Positional]
    """File to write; .rcs is the smallest, .sog what most viewers open."""
    target_size: str | None = None
    """Bytes not to exceed, such as 5MB, 800kB or 1.5MiB; the file comes within 2 % of it."""
    min_psnr: float | None = None
    """PSNR in dB against the original's own pictures to keep, with as few bytes as can be."""
    max_loss: str | None = None
    """PSNR against photos that may be lost, such as 0.3dB; `teacher_psnr` says from where."""
    teacher_psnr: float = 30.0
    """PSNR in dB of the original against photos, for `max_loss`: how far its own error hides a further one."""
    max_gaussians: int | None = None
    """Gaussians not to exceed."""
    recovery_steps: int = 300
    """Training steps towards the original's own pictures after the search; 0 for none."""
    through_format: bool = True
    """Let that training see the decoded file, for .rcs, .sog and .spz; otherwise the scene before it is rounded."""
    merging: bool = True
    """Let neighbours become one, where that looks better than dropping Gaussians; otherwise some are only dropped."""
    views: int = 16
    """Virtual cameras to search and train with."""
    size: int = 256
    """Width and height of their pictures in pixels."""
    seed: int = 0
    """Varies the cameras and the training."""
    json: bool = False
    """Print the result as JSON."""
    overwrite: bool = False
    """Replace a file that was written here before."""

    def main(self) -> None:
        """Read, search, write, measure."""
        from nerfstudio.utils.rich_utils import CONSOLE

        from radcomp_plugins.core.files import refuse_overwrite
        from radcomp_plugins.splats.compress import Effort, codec_for, compress
        from radcomp_plugins.teachers.load import load_splats

        goal = self.goal()
        codec_for(self.output)
        refuse_overwrite(self.output, self.overwrite)
        scene = load_splats(self.input)

        def show(line: str) -> None:
            if not self.json:
                CONSOLE.print(line, soft_wrap=True, highlight=False, markup=False)

        effort = Effort(self.views, self.size, self.recovery_steps, self.seed, self.through_format, self.merging)
        result = compress(scene, self.output, goal, effort, overwrite=self.overwrite, progress=show)
        if self.json:
            sys.stdout.write(json.dumps({"schema_version": 1, **result}, indent=2) + "\n")
            return
        show(f"{result['path']}: {result['bytes']:,} bytes, {result['gaussians']:,} Gaussians of SH degree "
             f"{result['sh_degree']}, {result['ratio']:.1f} times smaller than a .ply; the decoded file has "
             f"{result['psnr']:.2f} dB against the original on views of its own")  # fmt: skip

    def goal(self) -> "Goal":
        """What the flags ask for.

        Raises:
            InputError: a value out of range, or two names for one limit.
        """
        from radcomp_plugins.errors import InputError
        from radcomp_plugins.splats.rate_control import Goal, parse_size, psnr_floor

        if self.min_psnr is not None and self.max_loss is not None:
            raise InputError("--min-psnr and --max-loss both limit the quality: give one of them")
        if self.views < 1 or self.size < 16 or self.recovery_steps < 0:
            raise InputError(f"--views {self.views}, --size {self.size}, --recovery-steps {self.recovery_steps}: "
                             "expected at least 1, 16 and 0")  # fmt: skip
        floor = self.min_psnr
        if self.max_loss is not None:
            number = self.max_loss.lower().removesuffix("db").strip()
            try:
                floor = psnr_floor(float(number), self.teacher_psnr)
            except ValueError as error:
                raise InputError(f"--max-loss {self.max_loss!r}: expected dB such as 0.3dB") from error
        size = None if self.target_size is None else parse_size(self.target_size)
        return Goal(size, floor, self.max_gaussians)
