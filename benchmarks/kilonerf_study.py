"""What distillation is worth with few photos, and what grid, width, regulariser and overlap do to an asset.

    python benchmarks/kilonerf_study.py few-views --data CHAIR --views 8 --seeds 0 1 2 --output few_views.json
    python benchmarks/kilonerf_study.py sweep --data CHAIR --teacher TEACHER --output sweep.json
    python benchmarks/kilonerf_study.py seams --runs RUN [RUN_WITH_OVERLAP ...] --output seams.json

few-views: for every seed a teacher is trained on the few photos alone; then, on the same photos, networks distilled and
fine-tuned, networks trained from scratch for as many steps, and networks trained from scratch for as much wall time as
teacher, distillation and fine-tuning took together. All of them are measured on all held-out photos, the teacher too.

sweep: one run for each change of one setting, exported, decoded and measured: PSNR, SSIM, LPIPS, bytes of the file and
time of a frame; and the default one exported as int8 as well.

seams: how much opacity and colour jump where one network's cell ends and the next begins.

Everything is trained in this process, with the presets of ns-train; the dataset is one in Blender's form.
"""

import copy
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE

from radcomp_plugins.cli.measure import device_name
from radcomp_plugins.cli.training import preset, train
from radcomp_plugins.core.files import read_json, write_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.asset import export_run


def few_views(data: Path, folder: Path, count: int, seed: int) -> Path:
    """A copy of a Blender dataset's lists with so many training views, evenly spread from a random one on."""
    training = read_json(data / "transforms_train.json")
    frames = training["frames"]
    if not 1 <= count <= len(frames):
        raise InputError(f"--views {count}: {data} has {len(frames)} training views, expected 1 to as many")
    first = int(np.random.default_rng(seed).integers(len(frames)))
    chosen = [(first + round(k * len(frames) / count)) % len(frames) for k in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test"):
        listed = read_json(data / f"transforms_{split}.json")
        if split == "train":
            listed["frames"] = [listed["frames"][k] for k in chosen]
        for frame in listed["frames"]:
            frame["file_path"] = str((data / frame["file_path"]).resolve())
        write_json(folder / f"transforms_{split}.json", listed)
    return folder


@dataclass
class Workshop:
    """Where runs are made, and how long everything takes.

    Attributes:
        folder: of all runs.
        data: the dataset they see.
        scale: share of the presets' steps.
    """

    folder: Path
    data: Path
    scale: float

    def config(self, method: str, name: str, **pipeline: Any) -> Any:
        """A preset on the dataset; `pipeline` sets fields of its pipeline, `model__x` those of the model."""
        config = preset(method, self.folder / name, self.scale)
        config.pipeline.datamanager.dataparser = BlenderDataParserConfig(data=self.data)
        for key, value in pipeline.items():
            owner = config.pipeline.model if key.startswith("model__") else config.pipeline
            setattr(owner, key.removeprefix("model__"), value)
        return config

    def run(self, config: Any) -> tuple[Path, float]:
        """Train; returns the run's folder and the seconds it took."""
        begun = time.perf_counter()
        path = train(config, config.max_num_iterations)
        return path.parent, time.perf_counter() - begun


def measured(run: Path, output: Path, precision: Any = "fp16") -> dict[str, Any]:
    """Quality of a run's decoded asset, with its bytes."""
    manifest = export_run(run, output, precision=precision, teacher_views=0, overwrite=True)
    quality = manifest["quality"]
    return {
        "psnr": quality["psnr"], "ssim": quality["ssim"], "lpips": quality["lpips"],
        "ms_per_frame": 1e3 * quality["seconds_per_frame"], "networks": manifest["networks"],
        "bytes": manifest["files"]["scene.safetensors"]["bytes"],
    }  # fmt: skip


def evaluated(run: Path) -> dict[str, Any]:
    """Quality of any run on all its held-out photos."""
    from radcomp_plugins import compat

    pipeline = compat.load_run(run)[1]
    found: Any = pipeline.get_average_eval_image_metrics()
    return {name: found.get(name) for name in ("psnr", "ssim", "lpips")}


@dataclass
class FewViews:
    """Distilled and fine-tuned against trained from scratch, with few photos (the paper's Figure 3)."""

    data: Path
    """A dataset in Blender's form."""
    output: Path
    """Report to write, JSON."""
    folder: Path = Path("outputs/kilonerf_few_views")
    """Where runs are made."""
    views: int = 8
    """Training photos."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Which photos, and every random draw."""
    scale: float = 0.2
    """Share of the presets' steps, so that it ends."""
    teacher_method: str = "nerfacto-tiny"
    """What teaches; trained on the same photos."""

    def main(self) -> None:
        """Train, measure and write."""
        rows = []
        for seed in self.seeds:
            data = few_views(self.data, self.folder / f"data_{self.views}_{seed}", self.views, seed)
            rows.append({"seed": seed, **self.one(Workshop(self.folder / f"seed_{seed}", data, self.scale), seed)})
            CONSOLE.print_json(json.dumps(rows[-1]))
            write_json(
                self.output, {"schema_version": 1, "device": device_name("cpu"), "views": self.views, "runs": rows}
            )

    def one(self, shop: Workshop, seed: int) -> dict[str, Any]:
        """All four for one choice of photos."""
        torch.manual_seed(seed)
        teacher, teacher_seconds = shop.run(shop.config(self.teacher_method, "teacher"))
        result: dict[str, Any] = {"teacher": {**evaluated(teacher), "seconds": teacher_seconds}}
        distilled = shop.config("kilonerf-tiny", "distilled", teacher=teacher, seed=seed)
        run, seconds = shop.run(distilled)
        steps = distilled.max_num_iterations
        result["distilled_and_tuned"] = {**measured(run, run / "asset"), "seconds": seconds, "steps": steps}
        scratch = shop.config("kilonerf-tiny", "scratch", teacher=teacher, seed=seed, distill_share=0.0)
        run, short = shop.run(scratch)
        result["scratch_equal_steps"] = {**measured(run, run / "asset"), "seconds": short, "steps": steps}
        longer = copy.deepcopy(scratch)
        longer.output_dir = (self.folder / f"seed_{seed}" / "scratch_long").absolute()
        longer.max_num_iterations = max(1, round(steps * (teacher_seconds + seconds) / short))
        run, spent = shop.run(longer)
        result["scratch_equal_time"] = {
            **measured(run, run / "asset"), "seconds": spent, "steps": longer.max_num_iterations
        }  # fmt: skip
        return result


CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "grid 8": {"model__grid_longest": 8},
    "grid 12": {"model__grid_longest": 12},
    "grid 20": {"model__grid_longest": 20},
    "width 16": {"model__hidden_width": 16},
    "width 24": {"model__hidden_width": 24},
    "width 64": {"model__hidden_width": 64},
    "no regulariser": {"model__view_regulariser": 0.0},
    "regulariser 1e-5": {"model__view_regulariser": 1e-5},
    "overlap 0.1": {"model__overlap": 0.1},
    "random directions": {"random_directions": 1.0},
    "all colours alike": {"color_floor": 1e6},
}


@dataclass
class Sweep:
    """One setting changed at a time (the paper's Figure 5)."""

    data: Path
    """A dataset in Blender's form."""
    teacher: Path
    """Run folder or checkpoint of a teacher of points."""
    output: Path
    """Report to write, JSON."""
    folder: Path = Path("outputs/kilonerf_sweep")
    """Where runs are made."""
    scale: float = 0.2
    """Share of the preset's steps, so that it ends."""
    only: tuple[str, ...] = field(default_factory=tuple)
    """Names of the changes to make; none: all of them."""

    def main(self) -> None:
        """Train, measure and write."""
        strange = set(self.only) - set(CHANGES)
        if strange:
            raise InputError(f"--only {sorted(strange)[0]!r}: expected some of {', '.join(CHANGES)}")
        shop, rows = Workshop(self.folder, self.data, self.scale), {}
        for name in self.only or CHANGES:
            config = shop.config("kilonerf-tiny", name.replace(" ", "_"), teacher=self.teacher, **CHANGES[name])
            run, seconds = shop.run(config)
            rows[name] = {**measured(run, run / "asset"), "seconds": seconds}
            if name == "default":
                rows["int8"] = {**measured(run, run / "asset8", "int8"), "seconds": seconds}
            CONSOLE.print_json(json.dumps({name: rows[name]}))
            write_json(
                self.output, {"schema_version": 1, "device": device_name("cpu"), "scale": self.scale, "runs": rows}
            )


def jumps(model: Any, count: int, seed: int) -> dict[str, float]:
    """Differences across the cells' faces, and over the same small distance inside cells.

    Args:
        model: a trained `KiloModel`.
        count: points on faces, of which those count that have occupied voxels on both sides.
        seed: of points and directions.
    """
    generator = torch.Generator().manual_seed(seed)
    lookup = model.lookup
    which = torch.randint(len(lookup.centres), (count,), generator=generator)
    axis = torch.nn.functional.one_hot(torch.randint(3, (count,), generator=generator), 3).float()
    free = torch.rand(count, 3, generator=generator) * 2.0 - 1.0
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    found = {}
    for name, place in (("face", 1.0), ("inside", 0.5)):
        local = free * (1.0 - axis) + place * axis
        sides = [lookup.centres[which] + (local + shift * axis) * lookup.half_cell for shift in (-1e-3, 1e-3)]
        both = lookup.occupied(sides[0]) & lookup.occupied(sides[1])
        (depth, rgb), (depth_2, rgb_2) = (model.ask(side[both], directions[both]) for side in sides)
        alpha, alpha_2 = -torch.expm1(-depth), -torch.expm1(-depth_2)
        seen = torch.maximum(alpha, alpha_2)
        found[f"opacity, {name}"] = float((alpha - alpha_2).abs().mean())
        found[f"colour, {name}"] = float(((rgb - rgb_2).abs().mean(dim=-1) * seen).sum() / seen.sum())
    return found


@dataclass
class Seams:
    """What overlap does to the jumps between cells."""

    runs: tuple[Path, ...]
    """Run folders of kilonerf."""
    output: Path
    """Report to write, JSON."""
    points: int = 200_000
    """Points on the faces of cells."""

    @torch.no_grad()
    def main(self) -> None:
        """Measure and write."""
        from radcomp_plugins import compat

        rows = []
        for run in self.runs:
            model: Any = compat.load_run(run)[1].model
            rows.append({"overlap": model.grid.overlap, **jumps(model, self.points, 0)})
            CONSOLE.print_json(json.dumps(rows[-1]))
        write_json(self.output, {"schema_version": 1, "runs": rows})


Commands = (
    Annotated[FewViews, tyro.conf.subcommand(name="few-views")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Seams, tyro.conf.subcommand("seams")]
)

if __name__ == "__main__":
    tyro.cli(Commands).main()  # type: ignore[arg-type]  # a union of dataclasses
