"""Rate-distortion curves of splat files, measured on the decoded file, peers beside ours.

    python benchmarks/splat_curves.py --scene teacher.ply --run SPLAT_RUN --peer splat-transform --output-dir OUT
    python benchmarks/splat_curves.py --scene scene.sog --peer splat-transform --output-dir OUT     # without photos

Every file is written by a command of its own, of which seconds, processor time and peak memory are taken, is read by
our readers and drawn: against the held-out photos of a run, or, where there are none, against the scene's own pictures
on virtual views. `--file METHOD:LABEL=PATH` adds files that others have written, results of `ns-train lightgaussian`
among them. Writes curves.json, curves.md, curves.png, and a CSV for each method as the 3DGS compression survey has
them (Submethod, PSNR, SSIM, LPIPS, Size [Bytes], #Gaussians).
"""

import csv
import io
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.utils.rich_utils import CONSOLE

from radcomp_plugins.core.files import atomic_write, read_json, write_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.evaluate import HeldOutView, held_out_views, quality
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.splats.formats.spz import read_spz
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.virtual_views import virtual_views

Row = dict[str, Any]

SURVEY_HEADER = ("Submethod", "PSNR", "SSIM", "LPIPS", "Size [Bytes]", "#Gaussians")
PUBLISHED_BYTES = 42.3
"""Of LightGaussian's own container, for each Gaussian that it keeps, as its authors' files have it."""

SAME_DB = 100.0
"""PSNR of pictures that are the same."""

MARK = "===cost==="
LAUNCH = f"""
import resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print("{MARK}", time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, flush=True)
sys.exit(done.returncode)
"""
WRITE = """
import sys, time
from radcomp_plugins.splats.formats.registry import read_splats, write_splats
scene = read_splats(sys.argv[1]).with_sh_degree(int(sys.argv[3]))
write_splats(sys.argv[2], scene.select(scene.finite()), overwrite=True)  # compiles what numba compiles
start = time.perf_counter(), time.process_time()
write_splats(sys.argv[2], scene.select(scene.finite()), overwrite=True)
print(time.perf_counter() - start[0], time.process_time() - start[1])
"""
READ = """
import sys
from radcomp_plugins.splats.formats.registry import read_splats, write_splats
write_splats(sys.argv[2], read_splats(sys.argv[1]), overwrite=True)
"""
PEER_READS = (".compressed.ply", ".spz", ".sog")


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: of wall clock, the start of the program included.
        cpu_seconds: of all its threads.
        megabytes: of memory at its peak.
        printed: its output.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float
    printed: str


class Judge:
    """Compares scenes with held-out photos, or with a reference scene on virtual views.

    Args:
        reference: The scene that everything was made from.
        run: A splat run with a dataset; None compares with `reference`.
        views: Number of virtual views.
        size: of their pictures, pixels.
    """

    def __init__(self, reference: Gaussians, run: Path | None, views: int, size: int) -> None:
        self.reference = None if run else reference
        self.antialiased = reference.antialiased
        if run is None:
            empty = torch.zeros(size, size, 3)
            self.views = [HeldOutView(view, empty) for view in virtual_views(reference, views, size, seed=1)]
            self.backgrounds = [torch.zeros(3), torch.ones(3)]
            return
        _, pipeline, _, _ = eval_setup(run if run.suffix == ".yml" else run / "config.yml", test_mode="test")
        model: Any = pipeline.model
        self.antialiased = model.config.rasterize_mode == "antialiased"
        self.backgrounds = [model._get_background_color().cpu()]
        manager: Any = pipeline.datamanager
        self.views = held_out_views(manager.fixed_indices_eval_dataloader, self.backgrounds[0])

    def __call__(self, scene: Gaussians) -> dict[str, float]:
        """PSNR and SSIM, the mean over views and backgrounds."""
        scene = replace(scene, antialiased=self.antialiased)
        found = [quality(scene, self.views, background, self.reference) for background in self.backgrounds]
        mean = {name: sum(f[name] for f in found) / len(found) for name in ("psnr", "ssim")}
        return {**mean, "psnr": min(mean["psnr"], SAME_DB)}


def run_command(command: Sequence[str | int | Path]) -> Cost:
    """Run a command and take its cost.

    Raises:
        InputError: it failed.
    """
    # A child counts its parent's memory until it becomes another program, so the parent is a small one.
    words = [sys.executable, "-S", "-c", LAUNCH, *(str(c) for c in command)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed, _, costs = done.stdout.rpartition(MARK)
    if done.returncode or not costs:
        raise InputError(f"{command[0]} failed with status {done.returncode}: {printed[-300:] or costs[-300:]}")
    seconds, cpu_seconds, megabytes = map(float, costs.split())
    return Cost(seconds, cpu_seconds, megabytes, printed)


@dataclass
class Curves:
    """Write a scene in every format, by us and by a peer, and measure what comes back."""

    scene: Path
    """The scene, any splat file that is read here."""
    output_dir: Path
    """Folder for the results; rows that are there already are kept, so that a killed run goes on."""
    run: Path | None = None
    """Run folder of a splat method: its held-out photos are the truth. None takes the scene's own pictures."""
    peer: str | None = None
    """The command of splat-transform; None leaves the peer out."""
    peer_turns_spz: bool = True
    """Whether the peer's .spz has y up, as splat-transform 2.7 writes it; 3.4 and later do not."""
    peer_degrees: tuple[int, ...] = (3, 2, 1, 0)
    """SH degrees that the peer's .sog is written at, those above the scene's own left out: the points of its curve."""
    degrees: tuple[int, ...] = (3, 2, 1, 0)
    """The same of our formats."""
    formats: tuple[str, ...] = ("compressed.ply", "spz", "sog", "rcs")
    """What we write."""
    file: tuple[str, ...] = ()
    """Other files to measure, each METHOD:LABEL=PATH."""
    published: tuple[str, ...] = ()
    """LABEL=PATH of float scenes as LightGaussian leaves them: their quality, at its container's bytes a Gaussian."""
    views: int = 12
    """Virtual views where there are no photos."""
    size: int = 256
    """Width and height of their pictures, pixels."""
    dataset: str = "scenes"
    """Name of the folder that the CSV files lie in."""
    decode: bool = False
    """Whether each file is also made a .ply again by a command of ours and one of the peer's; writes times.md."""

    def main(self) -> None:
        """Measure everything that is not there yet."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        reference = read_splats(self.scene)
        reference = reference.select(reference.finite())
        self.judge = Judge(reference, self.run, self.views, self.size)
        path = self.output_dir / "curves.json"
        self.rows: list[Row] = read_json(path)["rows"] if path.exists() else []
        with tempfile.TemporaryDirectory() as folder:
            self.folder = Path(folder)
            source = self.folder / "source.ply"
            self.ours(self.scene, source, reference.sh_degree)
            self.measure("radcomp", "ply", source, None)
            top = reference.sh_degree
            for name in self.formats:
                for degree in [d for d in self.degrees if d <= top]:
                    self.convert("radcomp", name, degree, source)
            if self.peer:
                for name in ("compressed.ply", "spz3", "spz4"):
                    self.convert("splat-transform", name, top, source)
                for degree in [d for d in self.peer_degrees if d <= top]:
                    self.convert("splat-transform", "sog", degree, source)
            self.given()
        self.save()

    def given(self) -> None:
        """Files that lie there already."""
        for text in self.file:
            method, _, rest = text.partition(":")
            label, _, path = rest.partition("=")
            if not path:
                raise InputError(f"--file {text}: expected METHOD:LABEL=PATH")
            self.measure(method, label, Path(path), None)
        for text in self.published:
            label, _, path = text.partition("=")
            count = len(read_splats(path))
            self.measure("lightgaussian-container", label, Path(path), None, round(PUBLISHED_BYTES * count))

    def known(self, method: str, label: str) -> bool:
        """Whether a row is there."""
        return any((row["method"], row["label"]) == (method, label) for row in self.rows)

    def convert(self, method: str, name: str, degree: int, source: Path) -> None:
        """One file, written, read and measured."""
        label = f"{name}, SH {degree}"
        if self.known(method, label):
            return
        suffix = "spz" if name.startswith("spz") else name
        path = self.folder / f"{method}.{suffix}"
        path.unlink(missing_ok=True)
        if method == "radcomp":
            cost = self.ours(source, path, degree)
        else:
            version = ["--spz-version", name[-1]] if name.startswith("spz") else []
            cost = run_command([*str(self.peer).split(), "-w", "-g", "cpu", *version, source, "-H", degree, path])
        self.measure(method, label, path, cost)

    def ours(self, source: Path, path: Path, degree: int) -> Cost:
        """Our writer in a process of its own."""
        return run_command([sys.executable, "-c", WRITE, source, path, degree])

    def measure(self, method: str, label: str, path: Path, cost: Cost | None, num_bytes: int | None = None) -> None:
        """Read a file, draw it, and note the row."""
        if self.known(method, label):
            return
        self.read(method, path)
        start = time.perf_counter()
        scene = self.read(method, path)
        row: Row = {"method": method, "label": label, "bytes": num_bytes or path.stat().st_size,
                    "gaussians": len(scene), "decode_s": time.perf_counter() - start, **self.judge(scene)}  # fmt: skip
        if cost is not None:
            row.update(command_s=cost.seconds, command_cpu_s=cost.cpu_seconds, command_mb=cost.megabytes)
            if method == "radcomp":
                row["encode_s"], row["encode_cpu_s"] = map(float, cost.printed.split()[-2:])
        if self.decode and cost is not None:
            row.update(self.decoded(path))
        self.rows.append(row)
        CONSOLE.log(f"{method} {label}: {row['bytes']:,} bytes, {row['psnr']:.2f} dB")
        self.save()

    def decoded(self, path: Path) -> Row:
        """What it takes us, and the peer where it can, to make a .ply of a file, one after the other."""
        out = self.folder / "decoded.ply"
        costs = {"ours": run_command([sys.executable, "-c", READ, path, out])}
        if self.peer and path.name.endswith(PEER_READS):
            costs["peer"] = run_command([*str(self.peer).split(), "-w", "-g", "cpu", path, out])
        return {
            f"decode_{who}_{name}": getattr(cost, name)
            for who, cost in costs.items()
            for name in ("seconds", "cpu_seconds", "megabytes")
        }

    def read(self, method: str, path: Path) -> Gaussians:
        """The scene in the frame of its source."""
        if method == "splat-transform" and path.suffix == ".spz":
            return read_spz(path, turn=self.peer_turns_spz)
        return read_splats(path)

    def save(self) -> None:
        """Everything so far."""
        settings = {"photos": self.run is not None, "scene_bytes": self.scene.stat().st_size}
        write_json(self.output_dir / "curves.json", {"schema_version": 1, **settings, "rows": self.rows})
        (self.output_dir / "curves.md").write_text(markdown(self.rows))
        if self.decode:
            (self.output_dir / "times.md").write_text(times(self.rows))
        for method in dict.fromkeys(row["method"] for row in self.rows):
            write_survey(self.output_dir / method / self.dataset, self.output_dir.name, [
                row for row in self.rows if row["method"] == method
            ])  # fmt: skip
        plot(self.rows, self.output_dir / "curves.png", self.run is not None)


def write_survey(folder: Path, scene: str, rows: Sequence[Row]) -> None:
    """The survey's file of one method and scene; LPIPS stays empty where it was not measured."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SURVEY_HEADER)
    for row in rows:
        writer.writerow([row["label"], f"{row['psnr']:.3f}", f"{row['ssim']:.4f}", "", row["bytes"], row["gaussians"]])
    with atomic_write(folder / f"{scene}.csv", overwrite=True) as file:
        file.write(text.getvalue().encode())


def markdown(rows: Sequence[Row]) -> str:
    """The table of a page, the ratio to the first row's bytes in it."""
    names = ("", "Gaussians", "bytes", "smaller", "PSNR", "SSIM", "command s", "its CPU s", "MB", "decode s")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        psnr = f"{row['psnr']:.2f}" if row["psnr"] < SAME_DB else "same"
        costs = [f"{row[n]:.1f}" if n in row else "" for n in ("command_s", "command_cpu_s")]
        memory = f"{row['command_mb']:,.0f}" if "command_mb" in row else ""
        values = (f"{row['method']}: {row['label']}", f"{row['gaussians']:,}", f"{row['bytes']:,}",
                  f"{rows[0]['bytes'] / row['bytes']:.1f}", psnr, f"{row['ssim']:.4f}", *costs, memory,
                  f"{row['decode_s']:.2f}")  # fmt: skip
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def times(rows: Sequence[Row]) -> str:
    """What the commands took, wall-clock seconds / processor seconds / MB; empty where none was run."""

    def cell(row: Row, *names: str) -> str:
        if names[0] not in row:
            return ""
        seconds, cpu, megabytes = (row[name] for name in names)
        return f"{seconds:.1f} s / {cpu:.1f} s / {megabytes:,.0f} MB"

    names = ("", "Gaussians", "written", "made a .ply again by us", "by the peer")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for row in rows:
        if "command_s" in row:
            costs = [cell(row, "command_s", "command_cpu_s", "command_mb")]
            for who in ("ours", "peer"):
                costs.append(cell(row, *(f"decode_{who}_{n}" for n in ("seconds", "cpu_seconds", "megabytes"))))
            lines.append(f"| {row['method']}: {row['label']} | {row['gaussians']:,} | {' | '.join(costs)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path, photos: bool) -> None:
    """PSNR against bytes: a curve for each method and format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row["psnr"] < SAME_DB:
            series.setdefault(f"{row['method']} {row['label'].split(',')[0]}", []).append(row)
    # Okabe and Ito's colours, which colour-blind readers can tell apart.
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
    for index, (name, points) in enumerate(series.items()):
        points = sorted(points, key=lambda row: row["bytes"])
        axes.plot([p["bytes"] / 1e6 for p in points], [p["psnr"] for p in points], label=name, lw=1.3, ms=5,
                  marker="osD^vPX"[index // len(colours) % 7], color=colours[index % len(colours)],
                  ls="--" if name.startswith("splat-transform") else "-")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("MB, logarithmic")
    axes.set_ylabel("PSNR of the decoded file, dB, " + ("held-out photos" if photos else "the original's pictures"))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.grid(True, which="both", color="#d9dee6", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", metadata={"Software": None})
    shutil.move(part, path)


if __name__ == "__main__":
    tyro.cli(Curves).main()
