"""`radcomp demo`: the whole way from a scene to compressed, decoded and measured files, and a report about it."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from radcomp_plugins.errors import InputError

if TYPE_CHECKING:
    from radcomp_plugins.cli.measure import ViewScore
    from radcomp_plugins.cli.report import ViewPictures
    from radcomp_plugins.cli.workspace import Workspace

TEACHER = "splatfacto-tiny"
TEACHER_FILE = "teacher.ply"
SCENE_STEPS, SCENE_GAUSSIANS = 0.4, 30_000
"""Share of the presets' steps, and the limit of Gaussians, that suit the 200x200 views of the embedded scenes."""

OWNED = ("scene", "runs", "images", "teacher.ply", "report.html", "teaser.png")
"""What the demo writes into its folder, beside an asset folder for each method."""


@dataclass(frozen=True)
class DemoMethod:
    """How the demo runs a method.

    Attributes:
        preset: its name in ns-train's menu.
        asset: the file of its asset folder that counts as its size, and that is decoded and measured.
    """

    preset: str
    asset: str


METHODS = {"lightgaussian": DemoMethod("lightgaussian-tiny", "scene.sog")}


@dataclass
class Demo:
    """Make a scene, train a splat teacher, compress it, decode the files, and report size and quality.

    The embedded scene takes three to five minutes on two CPU cores. What was finished is kept: a demo that was
    interrupted goes on where it was when it is started again with the same settings.
    Examples: radcomp demo --output-dir outputs/demo
              radcomp demo --data ~/photos/garden --output-dir outputs/garden
    """

    output_dir: Path = Path("outputs/demo")
    """Folder for the dataset, the runs, the assets, report.json, report.html and the pictures."""
    scene: Literal["still-life", "two-rooms"] = "still-life"
    """Embedded scene to make and compress. Ignored with --data."""
    data: Path | None = None
    """A dataset to use instead: a folder in the Blender, nerfstudio or COLMAP form."""
    methods: tuple[str, ...] = ("lightgaussian",)
    """Methods to compare; each compresses the same teacher."""
    views: int = 60
    """Views to render of the embedded scene, every eighth of them held out. More take longer and train better."""
    size: int = 200
    """Width and height in pixels of those views. At 400 drawing and training take about three times as long."""
    steps_scale: float | None = None
    """Share of the steps of the -tiny presets to train. None is 0.4 for the embedded scenes, whose pictures are small
    and need no more, and 1 with --data. Raising it sharpens the teacher and takes proportionally longer."""
    max_gaussians: int | None = None
    """Limit on the teacher's Gaussians. None is 30,000 for the embedded scenes, and the preset's 70,000 with --data.
    Raising it buys detail for time and bytes."""
    lpips: bool = True
    """Measure LPIPS as well. Its network is downloaded once, 230 MB; offline the report says null and why."""
    overwrite: bool = False
    """Run again over a finished demo, or one with other settings, replacing it."""

    def main(self) -> None:
        """Run what is not finished yet, then measure and report."""
        self.check()
        # nerfstudio's own, about newer names in torch and about logging a loss.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        from nerfstudio.utils.rich_utils import CONSOLE

        from radcomp_plugins.cli.training import dataset_parser
        from radcomp_plugins.cli.workspace import Workspace

        if self.data is not None:
            dataset_parser(self.data)
        work = Workspace(self.output_dir, self.settings(), (*OWNED, *METHODS), overwrite=self.overwrite)
        steps: list[tuple[str, Callable[[], None]]] = [("teacher", lambda: train_teacher(self, work))]
        if self.data is None:
            steps.insert(0, ("scene", lambda: make_scene(self, work)))
        for name in self.methods:
            steps.append((name, lambda name=name: compress(self, work, name)))
            steps.append((f"{name} export", lambda name=name: export(work, name)))
        steps.append(("report", lambda: report(self, work)))
        for number, (title, function) in enumerate(steps, start=1):
            work.do(title, function, f"{number} of {len(steps)}: {title}")
        show_results(work.folder)
        CONSOLE.print(f"Report: {work.folder / 'report.html'}", soft_wrap=True)

    def check(self) -> None:
        """Check the flags before any work is done.

        Raises:
            InputError: A method that is not known or named twice, or a number out of its range.
        """
        for name in self.methods:
            if name not in METHODS:
                raise InputError(f"--methods: got {name!r}, expected one or more of {', '.join(METHODS)}")
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(f"--methods: got {' '.join(self.methods)!r}, expected each of them once")
        if self.steps_scale is not None and not 0 < self.steps_scale <= 100:
            raise InputError(f"--steps-scale: got {self.steps_scale}, expected a number above 0, up to 100")
        if self.max_gaussians is not None and self.max_gaussians < 1:
            raise InputError(f"--max-gaussians: got {self.max_gaussians}, expected at least 1")
        if self.data is None:
            from radcomp_plugins.scenes.dataset import check_request

            check_request(self.scene, views=self.views, width=self.size, height=self.size)

    def settings(self) -> dict[str, Any]:
        """What a demo in the same folder must have in common with this one for its finished parts to be kept."""
        from radcomp_plugins import __version__

        embedded = self.data is None
        return {
            "radcomp": __version__,
            "scene": self.scene if embedded else str(Path(str(self.data)).expanduser().absolute()),
            "views": self.views if embedded else None,
            "size": self.size if embedded else None,
            "steps_scale": self.steps_scale or (SCENE_STEPS if embedded else 1.0),
            "max_gaussians": self.max_gaussians or (SCENE_GAUSSIANS if embedded else 0),
        }


def make_scene(demo: Demo, work: "Workspace") -> None:
    """Render the embedded scene as a dataset."""
    from radcomp_plugins.cli.scene import Scene

    Scene(demo.scene, work.folder / "scene", views=demo.views, size=demo.size, overwrite=True).main()


def train_teacher(demo: Demo, work: "Workspace") -> None:
    """Train the teacher, and write it as the .ply that sizes are compared with."""
    from radcomp_plugins.cli.training import dataset_parser, preset, train
    from radcomp_plugins.splats.formats.ply import write_ply
    from radcomp_plugins.teachers.load import load_splats

    config = preset(TEACHER, work.folder, work.settings["steps_scale"])
    config.pipeline.datamanager.dataparser = dataset_parser(demo.data or work.folder / "scene")
    if work.settings["max_gaussians"]:
        config.pipeline.model.max_gaussians = work.settings["max_gaussians"]
    run = train(config, config.max_num_iterations)
    write_ply(work.folder / TEACHER_FILE, load_splats(run), overwrite=True)


def compress(demo: Demo, work: "Workspace", name: str) -> None:
    """Run a method over the teacher."""
    from radcomp_plugins.cli.training import dataset_parser, preset, train
    from radcomp_plugins.lightgaussian.stages import plan, total_steps

    config = preset(METHODS[name].preset, work.folder, work.settings["steps_scale"])
    config.pipeline.teacher = run_of(work, TEACHER)
    config.pipeline.datamanager.dataparser = dataset_parser(demo.data or work.folder / "scene")
    # The teacher has just been trained on these very photos, however few its steps were.
    config.pipeline.check_photos = False
    train(config, total_steps(plan(config.pipeline, 3)))


def export(work: "Workspace", name: str) -> None:
    """Write a method's run as an asset folder."""
    from radcomp_plugins.lightgaussian.asset import export_run

    export_run(run_of(work, METHODS[name].preset), work.folder / name, overwrite=True)


def run_of(work: "Workspace", preset_name: str) -> Path:
    """The run folder of a preset."""
    from radcomp_plugins.cli.training import TIMESTAMP

    return work.folder / "runs" / preset_name / TIMESTAMP


def report(demo: Demo, work: "Workspace") -> None:
    """Decode every file again, measure it, and write the report."""
    from dataclasses import replace

    from radcomp_plugins import compat
    from radcomp_plugins.cli.measure import device_name
    from radcomp_plugins.cli.report import SCHEMA_VERSION, write_report
    from radcomp_plugins.core.metrics import Lpips
    from radcomp_plugins.splats.evaluate import held_out_views
    from radcomp_plugins.splats.formats.registry import read_splats

    config, pipeline, _, _ = compat.load_run(run_of(work, TEACHER), test_mode="test")
    model: Any = pipeline.model
    manager: Any = pipeline.datamanager
    background = model._get_background_color().to(model.device)
    views = held_out_views(manager.fixed_indices_eval_dataloader, background)
    if not views:
        raise InputError(f"{config.data or demo.data}: no held-out views, so nothing can be measured")
    bench = Bench(
        work=work,
        names=[path.stem for path in manager.eval_dataset.image_filenames],
        views=views,
        background=background,
        lpips=Lpips() if demo.lpips else None,
    )
    antialiased = model.config.rasterize_mode == "antialiased"
    bench.add_teacher(replace(read_splats(work.folder / TEACHER_FILE), antialiased=antialiased).to(model.device))
    methods, pictures = {}, {}
    for name in demo.methods:
        methods[name], pictures[name] = bench.method(name)
    first = views[0].view
    result = {
        "schema_version": SCHEMA_VERSION,
        "device": device_name(model.device),
        "versions": versions(),
        "scene": {
            "name": demo.scene if demo.data is None else Path(work.settings["scene"]).name,
            "train_views": len(manager.train_dataset),
            "test_views": len(views),
            "width": first.width,
            "height": first.height,
        },
        "settings": work.settings,
        "methods": methods,
    }
    write_report(work.folder, result, pictures)


@dataclass
class Bench:
    """The held-out views, and what is measured on them.

    Attributes:
        work: the demo's folder.
        names: name of each view.
        views: the views with their photos.
        background: colour under transparent photos.
        lpips: the metric, None to leave it out.
    """

    work: "Workspace"
    names: list[str]
    views: list[Any]
    background: Any
    lpips: Any

    def add_teacher(self, scene: Any) -> None:
        """Measure the teacher, decoded from its .ply."""
        self.teacher = scene
        self.teacher_scores, self.teacher_entry = self.score(scene, TEACHER_FILE, "Measuring the teacher")

    def score(self, scene: Any, path: str, title: str) -> "tuple[list[ViewScore], dict[str, Any]]":
        """Scores of the views, and an entry of the report for a file of the demo's folder and what it decodes to."""
        from radcomp_plugins.cli.measure import average, score_views

        scores = score_views(scene, self.views, self.background, self.lpips, title)
        entry = {
            "path": path,
            "bytes": (self.work.folder / path).stat().st_size,
            **average(scores, self.lpips),
            "worst_psnr": min(score.psnr for score in scores),
            "gaussians": len(scene),
            "sh_degree": scene.sh_degree,
            "per_view": [{"name": name, **vars(score)} for name, score in zip(self.names, scores, strict=True)],
        }
        return scores, entry

    def method(self, name: str) -> "tuple[dict[str, Any], list[ViewPictures]]":
        """Decode and measure a method's file: its entry in the report, and the views to show."""
        from radcomp_plugins.cli.measure import frame_times
        from radcomp_plugins.cli.report import ViewPictures, method_entry, pick_views
        from radcomp_plugins.core.files import read_json, read_manifest
        from radcomp_plugins.splats.draw import picture
        from radcomp_plugins.splats.formats.registry import read_splats

        began = time.perf_counter()
        manifest = read_manifest(self.work.folder / name)
        path = f"{name}/{METHODS[name].asset}"
        scene = read_splats(self.work.folder / path).to(self.teacher.means.device)
        scores, asset = self.score(scene, path, f"Measuring {name}")
        times = frame_times({"teacher": self.teacher, "asset": scene}, self.views, self.background)
        view = self.views[0].view
        timed = [{"frame_ms": times[key], "frame_width": view.width, "frame_height": view.height} for key in times]
        stages = run_of(self.work, METHODS[name].preset) / "stages.json"
        spent = {key: value for key, value in self.work.seconds.items() if key.split()[0] in ("scene", "teacher", name)}
        spent["measuring"] = round(time.perf_counter() - began, 3)
        entry = method_entry(
            teacher={**self.teacher_entry, **timed[0]},
            asset={**asset, **timed[1], "parts": manifest.get("parts", {}), "run": f"{name}/run/config.yml"},
            seconds=spent,
            stages=read_json(stages)["stages"] if stages.exists() else [],
        )
        pictures = []
        for index, why in pick_views(self.teacher_scores, scores).items():
            held_out = self.views[index]
            drawn = [picture(gaussians, held_out.view, self.background) for gaussians in (self.teacher, scene)]
            truth = held_out.image.to(drawn[0].device)
            pictures.append(ViewPictures(self.names[index], why, truth, *drawn))
        return entry, pictures


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from radcomp_plugins.cli.info import PACKAGES, machine_facts

    facts = machine_facts()
    return {name: facts[name] for name in ("python", *PACKAGES)}


def show_results(folder: Path) -> None:
    """Print the table of results."""
    from nerfstudio.utils.rich_utils import CONSOLE
    from rich.table import Table

    from radcomp_plugins.cli.figures import megabytes
    from radcomp_plugins.core.files import read_json

    table = Table("scene", "size", "ratio", "PSNR", "SSIM", "LPIPS", "frame", title="Decoded from disk, held-out views")
    for name, entry in read_json(folder / "report.json")["methods"].items():
        for label, side in (("teacher", entry["teacher"]), (name, entry["asset"])):
            table.add_row(
                label,
                megabytes(side["bytes"]),
                f"{entry['teacher']['bytes'] / side['bytes']:.1f}x",
                f"{side['psnr']:.2f} dB",
                f"{side['ssim']:.4f}",
                "none" if side["lpips"] is None else f"{side['lpips']:.4f}",
                f"{side['frame_ms']:.1f} ms",
            )
    CONSOLE.print(table)
