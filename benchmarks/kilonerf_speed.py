"""Frame times of an exported KiloNeRF on the CPU, beside those of the networks it stands for, and where they go.

    python benchmarks/kilonerf_speed.py --asset ASSET --output speed.json
    python benchmarks/kilonerf_speed.py --asset ASSET --teacher TEACHER --nerfacto RUN --full --output speed.json

All in one run, for the same held-out view at the same size: the decoded asset; nerfstudio's `vanilla-nerf` (8 layers of
256, 64 + 128 samples) as it draws; the same network asked only about the samples that KiloNeRF asks about, which says
how much comes from skipping and termination alone; the teacher; and nerfacto-tiny. Of what takes minutes a share of
the picture's rays, evenly spread, is drawn and the time scaled up, unless --full; the report says so. Then the asset
without skipping, without termination, without the fused kernels, and with the camera so near that the object fills the
picture.

Networks with weights of no training take as long as trained ones: vanilla-nerf has none, and nerfacto-tiny only with
--nerfacto. Times are medians after a warm-up, compiling not counted; run it on a machine that does nothing else.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import CONSOLE
from numpy.typing import NDArray

from radcomp_plugins import compat
from radcomp_plugins.cli.measure import device_name
from radcomp_plugins.core.files import write_json
from radcomp_plugins.core.threads import get_num_threads
from radcomp_plugins.kilonerf.render import camera_rays
from radcomp_plugins.kilonerf.render_cpu import STAGES, CpuRenderer, Drawn, RenderSettings
from radcomp_plugins.kilonerf.render_torch import TorchRenderer

WARM_UP = 3
_POINTS_AT_ONCE = 2**15
_FULL_PICTURE = 0.6
"""Share of rays that meet the object in the view that it fills."""


@dataclass(frozen=True)
class View:
    """A pinhole camera in the scene frame.

    Attributes:
        c2w: [3, 4] float64 camera-to-scene, OpenGL convention.
        focal: pixels.
        width: pixels, of a square picture with the principal point in its middle.
    """

    c2w: NDArray[np.float64]
    focal: float
    width: int

    def camera(self) -> tuple[NDArray[np.float64], float, float, float, float, int, int]:
        """What `CpuRenderer.picture` takes."""
        return self.c2w, self.focal, self.focal, self.width / 2, self.width / 2, self.width, self.width

    def bundle(self, share: float = 1.0) -> RayBundle:
        """Rays of all pixels, or of a share of them, evenly spread."""
        origins, directions = camera_rays(*self.camera())
        rows = torch.linspace(0, len(origins) - 1, max(int(share * len(origins)), 1)).long()
        area = torch.full((len(rows), 1), 1.0 / self.focal**2)
        return RayBundle(
            origins[rows], directions[rows], area, torch.zeros(len(rows), 1, dtype=torch.long),
            metadata={"directions_norm": torch.ones(len(rows), 1)},
        )  # fmt: skip


def seconds_of(draw: Callable[[], Any], repeats: int, warm_up: int = WARM_UP) -> float:
    """Median seconds of a call."""
    times = []
    for number in range(repeats + warm_up):
        begun = time.perf_counter()
        draw()
        if number >= warm_up:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def drawn_row(
    renderer: CpuRenderer, view: View, repeats: int, settings: RenderSettings | None = None
) -> dict[str, Any]:
    """Milliseconds of a frame of the asset, and what it took."""
    frames: list[Drawn] = []
    seconds = seconds_of(lambda: frames.append(renderer.picture(*view.camera(), settings=settings)), repeats)
    counters, pixels = frames[-1].counters, view.width**2
    spent = {stage: statistics.median(f.counters.seconds[stage] for f in frames[WARM_UP:]) for stage in STAGES}
    total = sum(spent.values())
    return {
        "milliseconds": 1e3 * seconds,
        "rays_that_meet_occupied_box": counters.hit / pixels,
        "rays_with_samples": float((frames[-1].samples > 0).mean()),
        "samples_per_ray": counters.samples / pixels,
        "samples": counters.samples,
        "evaluated": counters.lanes,
        "share_of_thread_time": {stage: value / total for stage, value in spent.items()},
    }


def scaled(draw: Callable[[RayBundle], Any], view: View, share: float) -> dict[str, Any]:
    """Milliseconds of a frame by a share of its rays, drawn once after a few rays to warm up."""
    bundle = view.bundle(share)
    draw(bundle[:256])
    begun = time.perf_counter()
    draw(bundle)
    seconds = time.perf_counter() - begun
    return {"milliseconds": 1e3 * seconds * view.width**2 / len(bundle), "rays_drawn": len(bundle)}


def untrained(method: str, box: NDArray[np.float64], **changes: Any) -> Any:
    """A method's model with fresh weights, in a scene box; `changes` are to its config."""
    config = dataclasses.replace(all_methods[method].pipeline.model, **changes)
    scene_box = SceneBox(aabb=torch.from_numpy(box).float())
    with compat.lazy_lpips():
        return config.setup(scene_box=scene_box, num_train_data=1, metadata={}).eval()


def vanilla_on_samples(model: Any, renderer: CpuRenderer, view: View) -> dict[str, Any]:
    """The big network asked about exactly the samples that count in the asset's frame, marching included.

    No pass by pass, so nothing is asked behind surfaces: as cheap as skipping and termination can be.
    """
    origins, directions = camera_rays(*view.camera())
    begun = time.perf_counter()
    offsets, away = renderer.lit_samples(origins.numpy(), directions.numpy())
    rays = torch.from_numpy(np.repeat(np.arange(len(origins)), np.diff(offsets)))
    points = origins[rays] + torch.from_numpy(away)[:, None] * directions[rays]
    field = model.field_fine
    for part, toward in zip(points.split(_POINTS_AT_ONCE), directions[rays].split(_POINTS_AT_ONCE), strict=True):
        hidden = field.mlp_base(field.position_encoding(part))
        density = field.field_output_density(hidden)
        seen = field.mlp_head(torch.cat([field.direction_encoding(toward), hidden], dim=-1))
        assert len(field.field_heads[0](seen)) == len(density)
    return {"milliseconds": 1e3 * (time.perf_counter() - begun), "samples": len(points)}


@dataclass
class KilonerfSpeed:
    """Time an exported KiloNeRF and what it stands for."""

    asset: Path
    """Folder of an exported KiloNeRF, with its run folder, whose dataset has to be there."""
    output: Path = Path("kilonerf_speed.json")
    """Where the report is written."""
    teacher: Path | None = None
    """Teacher to time as well: a run folder or a plain NeRF checkpoint."""
    nerfacto: Path | None = None
    """Run of nerfacto-tiny to time; with fresh weights otherwise."""
    size: int = 400
    """Width and height of the pictures, pixels."""
    views: int = 25
    """Held-out views that the asset draws; the others draw the middle one."""
    repeats: int = 5
    """Timed frames of each view."""
    share: float = 0.01
    """Share of the rays that the slow ones draw."""
    full: bool = False
    """Draw all rays of the slow ones: for vanilla-nerf about ten minutes on two cores."""

    @torch.no_grad()
    def main(self) -> None:
        """Measure everything, print it, and write it."""
        config, pipeline, _, _ = compat.load_run(self.asset / "run", test_mode="test")
        model: Any = pipeline.model
        scene = model.scene
        renderer = CpuRenderer(scene)
        manager: Any = pipeline.datamanager
        views = self.dataset_views(manager.eval_dataset.cameras)
        view = views[len(views) // 2]
        report: dict[str, Any] = {
            "schema_version": 1,
            "device": device_name(torch.device("cpu")),
            "threads": {"kernels": get_num_threads(), "torch": torch.get_num_threads()},
            "size": self.size,
            "networks": scene.grid.num_networks,
            "asset_bytes": sum(path.stat().st_size for path in self.asset.iterdir() if path.is_file()),
        }
        report["kilonerf"] = self.all_views(renderer, views)
        ours = report["kilonerf"]["view"] = drawn_row(renderer, view, 3 * self.repeats)
        report["ablation"] = self.ablation(renderer, view)
        report["object_fills_the_picture"] = drawn_row(renderer, near_view(renderer, view), self.repeats)
        report["others"] = self.others(renderer, view)
        for row in report["others"].values():
            row["times_kilonerf"] = row["milliseconds"] / ours["milliseconds"]
        write_json(self.output, report)
        CONSOLE.print(json.dumps(report, indent=2))

    def dataset_views(self, cameras: Any) -> list[View]:
        """Held-out cameras, evenly spread, at the size asked for."""
        count = min(self.views, len(cameras))
        rows = np.linspace(0, len(cameras) - 1, count).round().astype(int)
        poses = cameras.camera_to_worlds.double().numpy()
        focals = (cameras.fx[:, 0] / cameras.width[:, 0]).double().numpy() * self.size
        return [View(poses[row], float(focals[row]), self.size) for row in rows]

    def all_views(self, renderer: CpuRenderer, views: list[View]) -> dict[str, Any]:
        """Median milliseconds over the views, and the fastest and the slowest view's."""
        times = [1e3 * seconds_of(lambda v=v: renderer.picture(*v.camera()), self.repeats, 1) for v in views]
        return {"views": len(views), "milliseconds": statistics.median(times), "range": [min(times), max(times)]}

    def ablation(self, renderer: CpuRenderer, view: View) -> dict[str, Any]:
        """The same view without skipping, without termination, and without the fused kernels."""
        usual = RenderSettings()
        rows: dict[str, Any] = {}
        for name, changes in (
            ("without skipping", {"skip": False}),
            ("without termination", {"termination": 0.0}),
            ("without both", {"skip": False, "termination": 0.0}),
        ):
            rows[name] = drawn_row(renderer, view, 1, dataclasses.replace(usual, **changes))
        plain = TorchRenderer(renderer.scene, "cpu", fused=False)
        rays = camera_rays(*view.camera())
        rows["without the fused kernels"] = {"milliseconds": 1e3 * seconds_of(lambda: plain.rays(*rays), 2, 1)}
        return rows

    def others(self, renderer: CpuRenderer, view: View) -> dict[str, Any]:
        """vanilla-nerf, the same with KiloNeRF's samples, nerfacto-tiny, and the teacher."""
        share = 1.0 if self.full else self.share
        vanilla = untrained("vanilla-nerf", renderer.scene.grid.box)
        rows = {"vanilla-nerf": scaled(lambda rays: in_chunks(vanilla, rays), view, share)}
        rows["vanilla-nerf, same skipping and termination"] = vanilla_on_samples(vanilla, renderer, view)
        if self.nerfacto is not None:
            nerfacto = compat.load_run(self.nerfacto, test_mode="test")[1].model
        else:
            nerfacto = untrained("nerfacto-tiny", renderer.scene.grid.box)
        rows["nerfacto-tiny"] = scaled(lambda rays: in_chunks(nerfacto, rays), view, max(share, 0.25))
        if self.teacher is not None:
            from radcomp_plugins.teachers.load_points import load_point_teacher
            from radcomp_plugins.teachers.picture import teacher_picture

            # What KiloNeRF is distilled from answers for points; all of them answer for rays as well.
            teacher: Any = load_point_teacher(self.teacher, torch.device("cpu"))
            rows["teacher"] = scaled(lambda rays: teacher_picture(teacher, rays), view, max(share, 0.05))
        return rows


def in_chunks(model: Any, rays: RayBundle) -> None:
    """Draw rays as a model's own evaluation does, in chunks of its own size."""
    size = model.config.eval_num_rays_per_chunk
    for begin in range(0, len(rays), size):
        model.forward(ray_bundle=rays[begin : begin + size])


def near_view(renderer: CpuRenderer, view: View) -> View:
    """The view with a longer lens: one in which most rays meet the object."""
    for _ in range(40):
        drawn = renderer.picture(*view.camera())
        if (drawn.samples > 0).mean() >= _FULL_PICTURE:
            break
        view = dataclasses.replace(view, focal=1.1 * view.focal)
    return view


if __name__ == "__main__":
    tyro.cli(KilonerfSpeed).main()
