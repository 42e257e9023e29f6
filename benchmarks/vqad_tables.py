"""The tables of VQ-AD's paper on a scene of your own: Tables 2 and 3 and section 8.2 of Takikawa et al. 2022.

    python benchmarks/vqad_tables.py --data DATASET --output-dir benchmarks/results/vqad_chair
    python benchmarks/vqad_tables.py --data DATASET --method vqad-paper --steps 20000 --output-dir OUT
    python benchmarks/vqad_tables.py --data DATASET --structure scene.vqad --steps 1000 --output-dir OUT

Everything is trained by the same pipeline from the same settings, with as many steps: at full precision; by VQ-AD, from
a k-means start half-way unless the method says otherwise; on k-means indices half-way that stay as they are (kmVQ +
fine-tuning); on random indices. What is done after training (low rank, kmVQ) starts from the full-precision run. Rows
with indices are written as a file, read back and measured; bytes are the file's, `packed` is the paper's count of them
without entropy coding. PSNR, SSIM and LPIPS are means over the held-out test photos, and over the seeds. Writes
tables.json after each row, and tables.md.
"""

import copy
import functools
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils.rich_utils import CONSOLE, get_progress

from radcomp_plugins.cli.measure import device_name
from radcomp_plugins.cli.training import dataset_parser
from radcomp_plugins.core.allocator import keep_freed_memory
from radcomp_plugins.core.files import read_json, write_json
from radcomp_plugins.vqad import baselines
from radcomp_plugins.vqad.asset import FileSettings, quality_of, settle
from radcomp_plugins.vqad.baked_model import drawable
from radcomp_plugins.vqad.bitstream import decode_scene, encode_scene, read_scene, scene_file, sizes_of
from radcomp_plugins.vqad.field import VqadField, field_from_scene, scene_from_field
from radcomp_plugins.vqad.pipeline import VqadPipeline

Row = dict[str, Any]

PAPER = {
    "full precision": (32.72, 20_000), "LRA, 8 axes": (29.09, 10_200), "LRA, 4 axes": (26.98, 5_100),
    "kmVQ, 6 bits": (27.25, 490), "kmVQ, 4 bits": (25.02, 330), "VQ-AD, 6 bits": (30.76, 490),
    "VQ-AD, 4 bits": (30.09, 330),
}  # fmt: skip
"""PSNR and kB as the paper's Table 2 has them (RTMV, ten scenes): only order and differences compare."""
PAPER_3 = {"learned, 6 bits": (29.92, 497), "learned, 4 bits": (29.60, 332), "learned, 2 bits": (27.59, 172),
           "learned, 1 bits": (25.57, 92), "random, 16 bits": (29.75, 8_400), "random, 12 bits": (26.66, 536),
           "random, 10 bits": (23.70, 143)}  # fmt: skip
"""The same of Table 3. Its hash tables have 10 bits or more; ours have as many as an index byte allows."""


@dataclass
class VqadTables:
    """Train, compress and measure."""

    data: Path
    """Dataset, in the Blender, nerfstudio or COLMAP form."""
    output_dir: Path
    """Folder for tables.json and tables.md; rows that an earlier run has measured are not measured again."""
    method: str = "vqad-tiny"
    """Preset whose settings all rows share."""
    steps: int | None = None
    """Training steps of each run; the preset's otherwise."""
    seeds: int = 3
    """Runs of each row, with seeds 0, 1, ..."""
    tables: tuple[Literal["2", "3", "entropy"], ...] = ("2", "3")
    """Which to measure. Rate by level is that of Table 2's VQ-AD rows; entropy is what the indices' entropy as a loss
    trades (section 8.2), with logits."""
    bits: tuple[int, ...] = (6, 4)
    """Bits per index in Table 2."""
    few_bits: tuple[int, ...] = (6, 4, 2, 1)
    """Bits per index in Table 3."""
    entropy_weights: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2)
    """Weights of the entropy of indices, in bits."""
    estimator: Literal["preset", "logits", "latent"] = "preset"
    """How VQ-AD's indices are trained."""
    octree_from: Literal["auto", "depth", "points", "none"] = "auto"
    """Where the octree comes from."""
    depth_dilation: int | None = None
    """Voxels that an octree from depth grows by; the preset's otherwise."""
    rays: int | None = None
    """Rays of a training step; the preset's otherwise."""
    structure: Path | None = None
    """A `.vqad` file, or the folder of an asset, whose box and octree all rows have from their first step on. Otherwise
    each grows its own, for which short runs do not suffice where there is neither depth nor points."""
    lpips: bool = True
    """Measure LPIPS as well."""

    def main(self) -> None:
        """Measure what is not measured yet, and write it after each row."""
        keep_freed_memory()
        for seed in range(self.seeds):
            if "2" in self.tables:
                self.table_2(seed)
            if "3" in self.tables:
                self.table_3(seed)
            if "entropy" in self.tables:
                for weight in self.entropy_weights:
                    name = f"entropy weight {weight:g}, {self.bits[0]} bits"
                    if self.missing("entropy", name, seed):
                        run = self.run("logits", self.bits[0], seed, entropy_loss_mult=weight)
                        self.add("entropy", name, seed, run, run.pipeline.model.field)
        CONSOLE.print(f"Wrote {self.output_dir / 'tables.json'} and tables.md")

    def table_2(self, seed: int) -> None:
        """Full precision and what is made of it, then what is trained to be small."""
        after = [f"LRA, {axes} axes" for axes in (8, 4)] + [f"kmVQ, {bits} bits" for bits in self.bits]
        if any(self.missing("table2", name, seed) for name in ("full precision", *after)):
            run = self.run("full", 6, seed)
            field = run.pipeline.model.field
            self.add("table2", "full precision", seed, run, baselines.half_precision(field))
            for axes in (8, 4):
                self.add("table2", f"LRA, {axes} axes", seed, run, baselines.low_rank(field, axes), axes)
            for bits in self.bits:
                self.add("table2", f"kmVQ, {bits} bits", seed, run, baselines.clustered(field, bits, seed))
        for bits in self.bits:
            self.trained("table2", f"kmVQ + fine-tuning, {bits} bits", "fine-tuned", bits, seed)
            self.trained("table2", f"VQ-AD, {bits} bits", self.learned(), bits, seed)

    def table_3(self, seed: int) -> None:
        """Learned against random indices."""
        for bits in self.few_bits:
            self.trained("table3", f"learned, {bits} bits", self.learned(), bits, seed)
            self.trained("table3", f"random, {bits} bits", "random", bits, seed)

    def learned(self) -> baselines.Training:
        """The estimator that VQ-AD rows are trained with."""
        preset: Any = all_methods[self.method].pipeline.model
        return preset.compression if self.estimator == "preset" else self.estimator

    def trained(self, table: str, name: str, training: baselines.Training, bits: int, seed: int) -> None:
        """A row that is a training run of its own; VQ-AD's are the same in both tables."""
        if not self.missing(table, name, seed):
            return
        twin = ("table3", f"learned, {bits} bits") if table == "table2" else ("table2", f"VQ-AD, {bits} bits")
        known = [] if training in ("fine-tuned", "random") else self.rows(*twin)
        same = [row for row in known if row["seed"] == seed]
        if same:
            self.save(table, {**same[0], "row": name})
            return
        run = self.run(training, bits, seed)
        self.add(table, name, seed, run, run.pipeline.model.field)

    def run(self, training: baselines.Training, bits: int, seed: int, **more: Any) -> "Run":
        """A finished training run; `more` are changes to the model's config."""
        config = copy.deepcopy(all_methods[self.method])
        steps = self.steps or config.max_num_iterations
        config.pipeline.seed = seed
        config.pipeline.datamanager.dataparser = dataset_parser(self.data)
        changes = {**baselines.training_changes(training, bits), "octree_from": self.octree_from, **more}
        if self.depth_dilation is not None:
            changes["depth_dilation"] = self.depth_dilation
        if self.rays is not None:
            config.pipeline.datamanager.train_num_rays_per_batch = self.rays
        given = None if self.structure is None else field_from_scene(read_scene(scene_file(self.structure)).scene)
        if given is not None:
            levels = {"coarsest_level": given.octree.coarsest, "finest_level": given.octree.finest}
            changes |= {**levels, "reshape_at": ()}
        for name, value in changes.items():
            setattr(config.pipeline.model, name, value)
        run = Run(config, steps, given)
        run.train(f"{training}, {bits} bits, seed {seed}")
        return run

    def add(self, table: str, name: str, seed: int, run: "Run", field: VqadField, axes: int | None = None) -> None:
        """Measure a field, as its file where it has one, and write the row."""
        row = {"row": name, "seed": seed, "steps": run.steps, "train_seconds": run.seconds}
        row["vertices"] = field.encoding.octree.num_vertices
        if field.encoding.mode == "full":
            size = baselines.sizes(field, axes)
            row |= {"bytes": size.total, "packed": size.grid, **run.quality(field, None, self.lpips)}
        else:
            row |= {"packed": baselines.packed_bytes(field), **self.as_file(run, field)}
        CONSOLE.log(f"{name}, seed {seed}: {row['psnr']:.2f} dB, {row['bytes'] / 1e3:.1f} kB")
        self.save(table, row)

    def as_file(self, run: "Run", field: VqadField) -> Row:
        """Bytes and quality of a field's file, level by level."""
        model = run.pipeline.model
        data = encode_scene(settle(scene_from_field(field, model.background()), FileSettings()))
        decoded = decode_scene(data)
        read = drawable(decoded, model.config.opaque).to(model.device)
        last = decoded.scene.levels[-1].level
        levels = [
            {**size, **run.quality(read, size["level"], self.lpips and size["level"] == last)}
            for size in sizes_of(data, decoded.scene)
        ]
        quality = {key: levels[-1][key] for key in ("psnr", "ssim", "lpips", "seconds_per_frame") if key in levels[-1]}
        return {"bytes": len(data), **quality, "levels": levels}

    def saved(self) -> dict[str, list[Row]]:
        """What was measured so far."""
        path = self.output_dir / "tables.json"
        return read_json(path)["tables"] if path.exists() else {}

    def rows(self, table: str, name: str) -> list[Row]:
        """Measured rows of a name."""
        return [row for row in self.saved().get(table, []) if row["row"] == name]

    def missing(self, table: str, name: str, seed: int) -> bool:
        """Whether a row is still to be measured."""
        return all(row["seed"] != seed for row in self.rows(table, name))

    def save(self, table: str, row: Row) -> None:
        """Add a row to the files."""
        tables = self.saved()
        tables.setdefault(table, []).append(row)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        device = device_name("cuda" if torch.cuda.is_available() else "cpu")
        # The dataset by its name alone: where it lies is nobody's business.
        settings = {"method": self.method, "steps": self.steps, "data": self.data.resolve().name}
        settings |= {"rays": self.rays, "structure": None if self.structure is None else self.structure.name}
        write_json(
            self.output_dir / "tables.json",
            {"schema_version": 1, "device": device, "settings": settings, "tables": dict(sorted(tables.items()))},
        )
        text = "\n\n".join(markdown(name, rows) for name, rows in sorted(tables.items()))
        (self.output_dir / "tables.md").write_text(text + "\n\n" + rate_by_level(tables.get("table2", [])) + "\n")


class Run:
    """A pipeline trained by hand, so that its field can be taken as it is.

    Attributes:
        pipeline: with the test photos as held-out views.
        steps: of training.
        given: field whose octree and box are taken; None finds them.
        seconds: that training took.
    """

    def __init__(self, config: Any, steps: int, given: VqadField | None = None) -> None:
        torch.manual_seed(config.pipeline.seed)
        random.seed(config.pipeline.seed)  # nerfstudio caches the images in an order that it draws
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipeline: VqadPipeline = config.pipeline.setup(device=self.device, test_mode="test")
        for group in config.optimizers.values():
            group["scheduler"].max_steps = steps
        self.optimizers = Optimizers(config.optimizers, self.pipeline.get_param_groups())
        self.steps, self.seconds, self.given = steps, 0.0, given
        self.views: list[Any] | None = None

    def train(self, label: str) -> None:
        """From the first step to the last."""
        self.pipeline.total_steps = self.steps
        begun = time.perf_counter()
        if self.given is None:
            self.pipeline.find_scene()
        else:
            self.pipeline.model.start(self.given.octree.to(self.device), self.given.box, box_is_loose=False)
        self.pipeline.train()
        with get_progress(label, suffix="it/s") as progress:
            for step in progress.track(range(self.steps)):
                self.pipeline.advance(self.optimizers, step)
                self.optimizers.zero_grad_all()
                losses = self.pipeline.get_train_loss_dict(step)[1]
                functools.reduce(torch.add, losses.values()).backward()
                for optimizer in self.optimizers.optimizers.values():
                    optimizer.step()
                self.optimizers.scheduler_step_all(step)
        self.pipeline.eval()
        self.seconds = time.perf_counter() - begun

    def quality(self, field: VqadField, level: int | None, lpips: bool) -> Row:
        """On the held-out photos."""
        if self.views is None:
            self.views = list(self.pipeline.datamanager.fixed_indices_eval_dataloader)
        return quality_of(field, self.pipeline.model.background(), self.views, level=level, lpips=lpips)


def spread(values: list[float], digits: int) -> str:
    """Mean of the seeds, and half their range where there are several."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


def markdown(name: str, rows: list[Row]) -> str:
    """A table with the paper's figures beside ours, and the distance to full precision."""
    paper = PAPER if name == "table2" else PAPER_3
    full = [row["psnr"] for row in rows if row["row"] == "full precision"]
    lines = [
        f"**{name}**", "",
        "| | seeds | PSNR | below full | SSIM | file, kB | packed grid, kB | paper: PSNR, kB |", "|" + "---|" * 8,
    ]  # fmt: skip
    for label in dict.fromkeys(row["row"] for row in rows):
        mine = [row for row in rows if row["row"] == label]
        below = f"{statistics.fmean(full) - statistics.fmean([r['psnr'] for r in mine]):.2f}" if full else ""
        theirs = "{:.2f}, {:,}".format(*paper[label]) if label in paper else ""
        cells = [
            label, str(len(mine)), spread([r["psnr"] for r in mine], 2), below, spread([r["ssim"] for r in mine], 4),
            spread([r["bytes"] / 1e3 for r in mine], 1), spread([r["packed"] / 1e3 for r in mine], 1), theirs,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rate_by_level(rows: list[Row]) -> str:
    """What each beginning of VQ-AD's files shows."""
    lines = ["**rate by level**", "", "| | level | bytes | PSNR | bits per index |", "|" + "---|" * 5]
    for label in dict.fromkeys(row["row"] for row in rows if row["row"].startswith("VQ-AD")):
        mine = [row["levels"] for row in rows if row["row"] == label]
        for place in range(len(mine[0])):
            here = [levels[place] for levels in mine if place < len(levels)]
            cells = [
                label, str(here[0]["level"]), f"{statistics.fmean([one['end'] for one in here]):,.0f}",
                spread([one["psnr"] for one in here], 2), spread([one["bits_per_index"] for one in here], 2),
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(VqadTables).main()
