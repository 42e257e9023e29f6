"""What each part of the smallest `.rcs` file is worth: each turned off in turn, on the held-out test photos.

    python benchmarks/rcs_ablation.py --run RUN --before BEFORE --teacher teacher.ply --output-dir OUT

`run` is finished; `before` the same run stopped before its last stage (--pipeline.encoding none). Every row but that of
entropy coding is written, decoded and measured; rows without training change what is written, not what was trained.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from nerfstudio.utils.rich_utils import CONSOLE

from radcomp_plugins import compat
from radcomp_plugins.core.container import read_chunk, read_contents
from radcomp_plugins.core.files import write_json
from radcomp_plugins.lightgaussian.model import LightGaussianModel
from radcomp_plugins.splats.evaluate import held_out_views, quality
from radcomp_plugins.splats.fake_quantise import fake_quantiser
from radcomp_plugins.splats.formats.rcs import MAGIC, VERSION, RcsSettings, decode_rcs, encode_rcs
from radcomp_plugins.splats.formats.rcs_header import unpack_header
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.splats.gaussians import Gaussians, num_sh_rest
from radcomp_plugins.splats.significance import contributions, score
from radcomp_plugins.splats.views import pinhole_views


@dataclass
class RcsAblation:
    """Measure a file and what it would be without each of its parts."""

    run: Path
    """Run folder of LightGaussian, trained through .rcs to its end."""
    before: Path
    """The same run without its last stage."""
    teacher: Path
    """The scene that both started from."""
    output_dir: Path
    """Folder for ablation.json and ablation.md."""

    @torch.no_grad()
    def main(self) -> None:
        """Write, decode, measure."""
        config, pipeline, _, _ = compat.load_run(self.run, test_mode="test")
        model: LightGaussianModel = pipeline.model  # pyright: ignore[reportAssignmentType]
        manager: Any = pipeline.datamanager
        self.background = model._get_background_color().cpu()
        self.views = held_out_views(manager.fixed_indices_eval_dataloader, self.background)
        self.rows: list[dict[str, Any]] = []
        assert model.quantiser is not None
        coarse = config.pipeline.encoding_coarse  # pyright: ignore[reportAttributeAccessIssue]
        settings = RcsSettings(palette=len(model.codebook)).trained(coarse)
        data = encode_rcs(model.gaussians(), significance=model.weights(), **model.quantiser.options())[0]
        self.add("all of it", data)
        self.add("no entropy coding", data, packed_bytes(data))
        before: LightGaussianModel = compat.load_run(self.before, test_mode="test")[1].model  # pyright: ignore
        scene, palette = before.gaussians(), before.palette()
        quantiser = fake_quantiser("rcs", scene, significance=before.weights(), palette=palette, settings=settings)[0]
        self.add("not trained through the format", self.encode(scene, before, **quantiser.options()))
        plain = RcsSettings(palette=settings.palette)
        quantiser = fake_quantiser("rcs", scene, significance=before.weights(), palette=palette, settings=plain)[0]
        self.add("and with the default steps", self.encode(scene, before, **quantiser.options()))
        self.add("no higher SH", self.encode(scene.with_sh_degree(0), before, settings=settings))
        self.teacher_rows(manager, settings)

    def teacher_rows(self, manager: Any, settings: RcsSettings) -> None:
        """Nothing pruned, nothing trained; the palette weighted by significance and not."""
        teacher = read_splats(self.teacher)
        teacher = teacher.select(teacher.finite())
        _ = manager.cached_train
        weights = score(teacher, contributions(teacher, pinhole_views(manager.train_dataset.cameras)))
        for name, significance in (("weighted", weights), ("not weighted", torch.ones(len(teacher)))):
            data = encode_rcs(teacher, settings, significance)[0]
            self.add(f"nothing merged, nothing trained, palette {name}", data)

    def encode(self, scene: Gaussians, model: LightGaussianModel, **options: Any) -> bytes:
        """A file with the significance of a run."""
        return encode_rcs(scene, significance=model.weights(), **options)[0]

    def add(self, name: str, data: bytes, num_bytes: int | None = None) -> None:
        """Decode and measure a file, and write what is there so far."""
        scene = replace(decode_rcs(data, name), antialiased=False)
        row = {"row": name, "gaussians": len(scene), "bytes": num_bytes or len(data)}
        self.rows.append({**row, **quality(scene, self.views, self.background)})
        CONSOLE.log(self.rows[-1])
        self.output_dir.mkdir(parents=True, exist_ok=True)
        write_json(self.output_dir / "ablation.json", {"schema_version": 1, "rows": self.rows})
        (self.output_dir / "ablation.md").write_text(markdown(self.rows))


def packed_bytes(data: bytes) -> int:
    """Bytes of the same numbers in as many bits as each kind needs: positions D bits a coordinate, palettes 8."""
    contents = read_contents(data, MAGIC, VERSION, "the file")
    head = next(chunk for chunk in contents if chunk.kind == "HEAD")
    header = unpack_header(read_chunk(data, head, "the file"), "the file")
    label = header.component_bits[10:] if header.palette > 256 else header.component_bits[10:11]
    bits = header.count * (3 * header.depth + sum(header.component_bits[:10]) + sum(label if header.palette else ()))
    return (bits + 7) // 8 + header.palette * 3 * num_sh_rest(header.degree) + head.length


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table, differences to its first row."""
    first = rows[0]
    lines = ["| | Gaussians | bytes | | PSNR | |", "|" + "---|" * 6]
    for row in rows:
        lines.append(f"| {row['row']} | {row['gaussians']:,} | {row['bytes']:,} "
                     f"| {100 * (row['bytes'] / first['bytes'] - 1):+.0f} % | {row['psnr']:.2f} "
                     f"| {row['psnr'] - first['psnr']:+.2f} dB |")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    tyro.cli(RcsAblation).main()
