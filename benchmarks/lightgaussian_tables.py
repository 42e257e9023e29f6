"""The ablations of LightGaussian's paper, measured on a scene of your own: Tables 2, 3, 4 and 5 of Fan et al. 2024.

    python benchmarks/lightgaussian_tables.py --teacher RUN_FOLDER --output-dir benchmarks/results/chair

Each row is measured on the held-out test photos. Rows that only change the scene (prune, cut, quantise) are measured
before any training, rows with a "+" after it. Every training stage has --steps. `--tables merge` compares merging with
pruning at equal counts, which the paper does not. Writes tables.json and tables.md.
"""

import copy
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from radcomp_plugins.core.files import read_json, write_json
from radcomp_plugins.core.threads import get_num_threads
from radcomp_plugins.lightgaussian.asset import sh_palette
from radcomp_plugins.lightgaussian.pipeline import LightGaussianPipeline
from radcomp_plugins.lightgaussian.quantise import quantise
from radcomp_plugins.splats.draw import draw
from radcomp_plugins.splats.evaluate import quality
from radcomp_plugins.splats.formats.ply import write_ply
from radcomp_plugins.splats.formats.sog import read_sog, write_sog
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.significance import contributions, most_significant, score
from radcomp_plugins.splats.views import pinhole_views

Row = dict[str, Any]

PAPER = {
    "table2": {
        "teacher": 31.68, "prune": 30.32, "+ co-adaptation": 31.85, "SH 3 to 2, cut": 30.54, "+ distillation": 31.47,
        "+ pseudo views": 31.59, "codebook": 31.16, "+ VQ fine-tune": 31.67,
    },
    "table3": {"hits": 28.28, "hits-opacity": 30.10, "paper": 30.32},
    "table4": {
        "distilled": 31.59, "float16": 31.47, "VQ of all attributes": 23.02,
        "VQ of all attributes, significance": 26.33, "VQ of SH": 30.85, "VQ of SH, significance": 31.16,
        "+ VQ fine-tune": 31.67,
    },
    "table5": {"teacher": 31.687, "degree 2, cut": 30.625, "degree 2, distilled": 31.754, "degree 1, cut": 29.173,
               "degree 1, distilled": 31.440},
}  # fmt: skip
"""PSNR on Mip-NeRF 360 "room", as the paper prints it; only the order and the differences compare with other scenes."""


@dataclass
class Tables:
    """Measure the paper's ablations over one teacher."""

    teacher: Path
    """Run folder of a splatfacto run; its dataset is used."""
    output_dir: Path
    """Folder for tables.json and tables.md."""
    steps: int = 1000
    """Training steps of each stage (the paper: 5000)."""
    codebook_size: int = 8192
    """Entries of the codebook (the paper: 8192)."""
    vq_ratio: float = 0.6
    """Share of the Gaussians that are quantised (the paper's code: 0.6)."""
    prune_ratio: float = 0.66
    """Share of the Gaussians that are pruned (the paper: 0.66)."""
    tables: tuple[Literal["2", "3", "4", "5", "merge"], ...] = ("2", "3", "4", "5")
    """Which to measure; 2 and 4 come together, `merge` is none of the paper's. The others of an earlier tables.json are
    kept."""
    keeps: tuple[float, ...] = (0.5, 0.3, 0.15)
    """Shares of the Gaussians that the table of merging keeps."""

    def main(self) -> None:
        """Run all tables."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        path = self.output_dir / "tables.json"
        tables: dict[str, list[Row]] = read_json(path)["tables"] if path.exists() else {}
        if "3" in self.tables:
            self.save(device, tables, table3=self.table3(device))
        if "5" in self.tables:
            self.save(device, tables, table5=self.table5(device))
        if "merge" in self.tables:
            self.save(device, tables, merge=self.table_of_merging(device))
        if "2" in self.tables or "4" in self.tables:
            self.save(device, tables, **self.tables_2_and_4(device))
        CONSOLE.print(f"Wrote {self.output_dir / 'tables.json'} and tables.md")

    def save(self, device: str, tables: dict[str, list[Row]], **measured: list[Row]) -> None:
        """Write what has been measured so far, so that a kill loses one table at most."""
        tables.update(measured)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(self).items() if isinstance(v, int | float)}
        result = {"schema_version": 1, "device": device, "threads": get_num_threads(), "settings": settings}
        write_json(self.output_dir / "tables.json", {**result, "tables": dict(sorted(tables.items()))})
        text = "\n\n".join(markdown(name, rows) for name, rows in sorted(tables.items()))
        (self.output_dir / "tables.md").write_text(text + "\n")

    def run(self, device: str, **changes: Any) -> "Run":
        """A LightGaussian run over the teacher with the paper's stages, and some fields changed."""
        config = copy.deepcopy(all_methods["lightgaussian-paper"])
        fields = {
            "teacher": self.teacher,
            "prune_ratio": self.prune_ratio,
            "co_adaptation_steps": self.steps,
            "distillation_steps": self.steps,
            "distillation_loss": "photometric",
            "vq_finetune_steps": self.steps,
            "vq_codebook_size": self.codebook_size,
            "vq_ratio": self.vq_ratio,
            "vq_batch_size": 8192,
            "vq_iterations": 100,
            "measure_stages": False,
            **changes,
        }
        for name, value in fields.items():
            setattr(config.pipeline, name, value)
        return Run(config, device)

    def table3(self, device: str) -> list[Row]:
        """Which significance prunes best, before any recovery."""
        run = self.run(device)
        seen = run.seen()
        rows = [run.row("teacher")]
        scene = run.scene
        for criterion in ("hits", "hits-opacity", "paper", "weight-sum", "weight-max", "exact"):
            kept = scene.select(most_significant(score(scene, seen, criterion), 1 - self.prune_ratio))
            rows.append(run.row(criterion, kept))
        return rows

    def table5(self, device: str) -> list[Row]:
        """SH cut and distilled to degree 2 and 1, without pruning."""
        rows: list[Row] = []
        for degree in (2, 1):
            run = self.run(device, prune_rounds=0, vq_ratio=0.0, sh_degree=degree)
            if not rows:
                rows.append(run.row("teacher"))
            rows.append(run.row(f"degree {degree}, cut", run.scene.with_sh_degree(degree)))
            run.train()
            rows.append(run.row(f"degree {degree}, distilled"))
        return rows

    def table_of_merging(self, device: str) -> list[Row]:
        """Dropping and merging to the same count in one round, before and after training on the photos."""
        rows: list[Row] = []
        for keep in self.keeps:
            for reduction in ("drop", "merge"):
                run = self.run(device, prune_ratio=1 - keep, reduction=reduction, significance="exact", vq_ratio=0.0,
                               sh_degree=3)  # fmt: skip
                if not rows:
                    rows.append(run.row("teacher"))
                run.train_until(0)
                rows.append(run.row(f"{reduction} to {keep:g}"))
                run.train()
                rows.append(run.row(f"{reduction} to {keep:g}, trained"))
        return rows

    def tables_2_and_4(self, device: str) -> dict[str, list[Row]]:
        """All stages one after the other, and what the last of them should quantise."""
        plain = self.run(device, pseudo_view_share=0.0, vq_ratio=0.0)
        rows = [plain.row("teacher")]
        plain.train_until(0)
        rows.append(plain.row("prune"))
        plain.train_until(self.steps, act=False)
        rows.append(plain.row("+ co-adaptation"))
        rows.append(plain.row("SH 3 to 2, cut", plain.scene.with_sh_degree(2)))
        plain.train()
        rows.append(plain.row("+ distillation"))
        full = self.run(device)
        full.train_until(2 * self.steps, act=False)
        rows.append(full.row("+ pseudo views"))
        quantised = self.quantisations(full)
        full.train_until(2 * self.steps)
        rows.append(full.row("codebook"))
        full.train()
        rows.append(full.row("+ VQ fine-tune"))
        rows.append(full.decoded_row("decoded .sog"))
        return {"table2": rows, "table4": [*quantised, {**rows[-2]}]}

    def quantisations(self, run: "Run") -> list[Row]:
        """Float16, vector quantisation of all attributes or of the SH, with and without significance."""
        scene, weights = run.scene, score(run.scene, run.seen(), "paper")
        half = replace(scene, **{name: tensor.half().float() for name, tensor in scene.tensors.items()})
        rows = [run.row("distilled"), run.row("float16", half)]
        for names, label in ((tuple(scene.tensors), "all attributes"), (("sh0", "shN"), "SH")):
            for significance in (None, weights):
                suffix = "" if significance is None else ", significance"
                rows.append(run.row(f"VQ of {label}{suffix}", self.coded(half, names, significance)))
        return rows

    def coded(self, scene: Gaussians, names: tuple[str, ...], significance: torch.Tensor | None) -> Gaussians:
        """The named attributes of the least significant Gaussians replaced by entries of one codebook for each."""
        tensors = {}
        for name in names:
            flat = scene.tensors[name].reshape(len(scene), -1)
            result = quantise(flat, significance, ratio=self.vq_ratio, codebook_size=self.codebook_size,
                              iterations=100, batch_size=8192, decay=0.8, seed=0)  # fmt: skip
            tensors[name] = result.decode(flat).view_as(scene.tensors[name])
        return replace(scene, **tensors)


class Run:
    """A pipeline stepped by hand, so that it can be looked at between its stages."""

    def __init__(self, config: Any, device: str) -> None:
        torch.manual_seed(0)
        self.pipeline: LightGaussianPipeline = config.pipeline.setup(device=device, test_mode="val")
        manager = self.pipeline.datamanager
        manager.test_split = "test"
        manager.eval_dataset = manager.create_eval_dataset()
        self.optimizers = Optimizers(config.optimizers, self.pipeline.get_param_groups())
        self.model = self.pipeline.model
        self.model.optimizers = self.optimizers.optimizers
        self.step = 0
        self.pipeline.eval()
        self.background = self.model._get_background_color().to(device)
        self.views = self.pipeline.held_out()

    @property
    def scene(self) -> Gaussians:
        """The scene as it stands."""
        return self.model.gaussians()

    def seen(self) -> Any:
        """Hits and weights of the scene over all training pixels."""
        _ = self.pipeline.datamanager.cached_train
        return contributions(self.scene, pinhole_views(self.pipeline.datamanager.train_dataset.cameras))

    def train(self) -> None:
        """To the end of the last stage."""
        self.train_until(self.pipeline.num_training_steps(0))

    def train_until(self, step: int, act: bool = True) -> None:
        """Train up to a step; `act` also does what the stage that starts there begins with."""
        self.pipeline.train()
        with get_progress(f"Steps {self.step} to {step}", suffix="it/s") as progress:
            for current in progress.track(range(self.step, step)):
                self._train_step(current)
        self.step = step
        if act and step < self.pipeline.num_training_steps(0):
            self.model.step_cb(self.optimizers, step)
            self.pipeline.begin_step(step)
        self.pipeline.eval()

    def _train_step(self, step: int) -> None:
        self.model.step_cb(self.optimizers, step)
        self.pipeline.begin_step(step)
        self.optimizers.zero_grad_all()
        losses = self.pipeline.get_train_loss_dict(step)[1]
        functools.reduce(torch.add, losses.values()).backward()
        for optimizer in self.optimizers.optimizers.values():
            optimizer.step()

    def row(self, name: str, scene: Gaussians | None = None) -> Row:
        """Quality, size and frame time of a scene, the current one by default."""
        scene = self.scene if scene is None else scene
        with tempfile.TemporaryDirectory() as folder:
            ply = Path(folder) / "scene.ply"
            write_ply(ply, scene)
            num_bytes = ply.stat().st_size
        result = {"row": name, "gaussians": len(scene), "bytes": num_bytes, "format": "ply",
                  "frame_ms": self.frame_ms(scene), **quality(scene, self.views, self.background)}  # fmt: skip
        CONSOLE.log(f"{name}: {result['psnr']:.2f} dB, {num_bytes / 1e6:.2f} MB, {result['frame_ms']:.1f} ms")
        return result

    def decoded_row(self, name: str) -> Row:
        """The current scene written as .sog and read again."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scene.sog"
            write_sog(path, self.scene, sh_palette=sh_palette(self.model), significance=self.model.significance)
            scene, num_bytes = read_sog(path), path.stat().st_size
        return {**self.row(name, scene), "bytes": num_bytes, "format": "sog"}

    def frame_ms(self, scene: Gaussians) -> float:
        """Median milliseconds of one held-out frame, after a warm-up."""
        views = self.views[:: max(1, len(self.views) // 10)]
        draw(scene, views[0].view)
        times = [timed(lambda view=held_out.view: draw(scene, view)) for held_out in views]
        return 1e3 * statistics.median(times)


def timed(function: Callable[[], Any]) -> float:
    """Seconds a call takes."""
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def markdown(name: str, rows: list[Row]) -> str:
    """A table with the paper's figures beside ours."""
    paper = PAPER.get(name, {})
    lines = [f"**{name}**", "", "| | Gaussians | MB | frame ms | PSNR | SSIM | paper's PSNR (room) |", "|" + "---|" * 7]
    for row in rows:
        theirs = paper.get(row["row"])
        size = f"{row['bytes'] / 1e6:.2f} ({row['format']})"
        lines.append(
            f"| {row['row']} | {row['gaussians']:,} | {size} | {row['frame_ms']:.1f} "
            f"| {row['psnr']:.2f} | {row['ssim']:.4f} | {'' if theirs is None else f'{theirs:.2f}'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(Tables).main()
