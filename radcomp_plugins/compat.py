"""Every workaround for nerfstudio 1.1.5, torch and open3d, with its upstream issue; none lives elsewhere.

`apply` is called when the method configs are imported, which every ns-* command does. It runs in the middle of
nerfstudio's own imports, so it only touches what is complete by then; what is not yet defined is mended when the
command calls `tyro.cli`. What is process-wide, and why it is safe:

- torch.serialization's safe globals grow by numpy scalars and dtypes (`register_safe_globals`);
- `tyro.cli` is wrapped: it passes everything through, except that `ns-export` gets our subcommands, that modules that
  imported `eval_setup` get the one of this module, and that `ns-train` starts its processes with ours
  (`install_tyro_hook`);
- the two dataset parsers that read .ply points with open3d read them with plyfile (`install_point_readers`);
- `sys.excepthook` prints an `InputError` as one line and passes all else on (`install_excepthook`).
"""

import contextlib
import ctypes
import dataclasses
import functools
import math
import os
import re
import sys
import threading
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from radcomp_plugins.errors import InputError

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

TestMode = Literal["test", "val", "inference"]

OPEN3D_PACKAGES = "libusb-1.0-0 libgl1 libegl1"
"""Debian packages that open3d needs and pip cannot install; libx11-6 comes with them."""
_OPEN3D_LIBRARIES = ("libusb-1.0.so.0", "libGL.so.1", "libEGL.so.1", "libX11.so.6")

_EXPORTER = "nerfstudio.scripts.exporter"
_TRAIN = "nerfstudio.scripts.train"
_EVAL_UTILS = "nerfstudio.utils.eval_utils"
# Config fields that hold a path into the user's file system; others (images_path, colmap_path) are relative to `data`.
_PATH_FIELDS = ("data", "teacher", "asset", "asset_path")
# Of these, those that lie in one folder with the run: relative paths are relative to the run folder.
_BESIDE_RUN = ("asset", "asset_path")

_apply_lock = threading.Lock()
_lpips_lock = threading.RLock()
_applied = False


def apply() -> None:
    """Install every process-wide workaround, once; takes a few milliseconds and imports nothing new."""
    global _applied
    with _apply_lock:
        if _applied:
            return
        register_safe_globals()
        install_tyro_hook()
        install_point_readers()
        install_excepthook()
        _applied = True


# Checkpoints under torch >= 2.6 (nerfstudio issues #3683, #3702, #3711) --------------------------------------------


def register_safe_globals() -> None:
    """Let torch.load(weights_only=True) read the numpy scalars that nerfstudio's schedulers leave in checkpoints.

    A scalar is pickled under the module name of the numpy that wrote it, so both names are registered.
    """
    add = getattr(torch.serialization, "add_safe_globals", None)
    if add is None:  # torch < 2.4 has no list of safe globals, and loads everything by default.
        return
    scalar = np.float64(0).__reduce__()[0]  # numpy's own function, under whichever name this numpy has it
    dtypes = [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    add([*((scalar, name) for name in names), np.dtype, *dtypes])


# LPIPS without a download at start-up (every stock model's populate_modules) ----------------------------------------


class LazyLpips(torch.nn.Module):
    """Stands where nerfstudio's models build torchmetrics' LPIPS, and builds it only when a metric is asked for.

    Its network is no submodule, so checkpoints do not carry AlexNet. It takes a stock checkpoint's `lpips.*` entries
    without complaint; in the other direction nerfstudio's pipeline tolerates their absence.

    Attributes:
        reason: why there is no value, None until a call has failed.
    """

    def __init__(self, net_type: str = "alex", reduction: str = "mean", normalize: bool = False) -> None:
        super().__init__()
        from radcomp_plugins.core.metrics import Lpips

        if net_type not in ("alex", "vgg") or reduction != "mean":
            raise ValueError(f"LazyLpips: got {net_type=}, {reduction=}, expected alex or vgg, and mean")
        self.normalize = normalize
        self._lpips = Lpips("vgg" if net_type == "vgg" else "alex")

    @property
    def reason(self) -> str | None:
        """Why there is no value."""
        return self._lpips.reason

    def forward(self, target: Tensor, image: Tensor) -> Tensor:
        """Distance as a scalar tensor; NaN, and one line the first time, where the weights cannot be had."""
        if not self.normalize:
            target, image = (target + 1) / 2, (image + 1) / 2
        known = self.reason is not None
        value = self._lpips(target, image)
        if value is None and not known:
            from nerfstudio.utils.rich_utils import CONSOLE

            CONSOLE.print(f"[yellow]No LPIPS in the metrics:[/yellow] {self.reason}")
        return image.new_tensor(math.nan if value is None else value)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to load: a stock checkpoint's weights are those of torchvision."""


@contextlib.contextmanager
def lazy_lpips() -> Iterator[None]:
    """While this is active, LPIPS that models build in this thread is a `LazyLpips`; other threads get the real one."""
    from torchmetrics.image import lpip

    with _lpips_lock:
        original, owner = lpip.LearnedPerceptualImagePatchSimilarity, threading.get_ident()

        def build(*args: Any, **kwargs: Any) -> torch.nn.Module:
            return (LazyLpips if threading.get_ident() == owner else original)(*args, **kwargs)

        lpip.LearnedPerceptualImagePatchSimilarity = build  # type: ignore[misc]
        try:
            yield
        finally:
            lpip.LearnedPerceptualImagePatchSimilarity = original  # type: ignore[misc]


def without_lpips(state: Mapping[str, Any]) -> dict[str, Any]:
    """A model's state_dict without the LPIPS weights that stock checkpoints carry."""
    return {key: value for key, value in state.items() if not key.startswith("lpips.")}


def _null_missing_lpips(pipeline: "Pipeline") -> None:
    """Have ns-eval write null and a reason where LPIPS is NaN, which is no JSON; only on this pipeline object."""
    # Upstream's annotation says None for it.
    average: Callable[..., Any] = pipeline.get_average_eval_image_metrics

    @functools.wraps(average)
    def averaged(*args: Any, **kwargs: Any) -> dict[str, Any]:
        metrics = average(*args, **kwargs)
        missing = [key for key, value in metrics.items() if "lpips" in key and value != value]
        if missing:
            reason = getattr(getattr(pipeline.model, "lpips", None), "reason", None)
            metrics.update(
                dict.fromkeys(missing), lpips_missing=reason or "a rendered image has values that are not finite"
            )
        return metrics

    # nn.Module would register nothing for a plain function, so this stays an ordinary attribute.
    pipeline.get_average_eval_image_metrics = averaged  # type: ignore[method-assign]


# Runs that moved, or are opened from another folder (nerfstudio issue #3742) ----------------------------------------


def reroot(config: "TrainerConfig", config_path: Path) -> "TrainerConfig":
    """Point a loaded config at the run folder its file lies in, and at its data and teacher where they are now.

    nerfstudio looks for checkpoints in output_dir/experiment/method/timestamp relative to the working directory,
    whatever the path of the config.

    Args:
        config: a config as it was saved; changed in place.
        config_path: the file it was read from.
    """
    run = Path(config_path).resolve().parent
    recorded = Path(f"{config.output_dir}/{config.experiment_name}/{config.method_name}/{config.timestamp}")
    if run.parent.name == config.method_name and len(run.parents) > 2:
        config.output_dir = run.parents[2]
        config.experiment_name, config.timestamp = run.parents[1].name, run.name
    else:
        # The folders above were renamed, and the config builds its path from their names; an absolute part wins. One
        # that is absolute already was mended so before, for the run that this one was copied from.
        models = config.relative_model_dir
        config.relative_model_dir = run / (models.name if models.is_absolute() else models)
    for owner, name, path in [*_paths_of(config, nested=False), *_paths_of(config.pipeline)]:
        beside = name in _BESIDE_RUN and not path.is_absolute()
        setattr(owner, name, Path(os.path.normpath(run / path)) if beside else _find_moved(path, run, recorded))
    return config


def _paths_of(config: Any, nested: bool = True) -> Iterator[tuple[Any, str, Path]]:
    """Fields of a config that hold a path into the user's file system: (owner, field name, path)."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name, None)
        if item.name in _PATH_FIELDS and isinstance(value, Path):
            yield config, item.name, value
        elif nested and dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _paths_of(value)


def _find_moved(path: Path, run: Path, recorded: Path) -> Path:
    """Where a path that a run recorded is now.

    A relative path was relative to the working directory of the training, which lies above the run folder; an absolute
    one may have moved together with the run. What cannot be found stays as it is.

    Args:
        path: as recorded.
        run: folder of the run now, absolute.
        recorded: folder of the run as its config names it.
    """
    if path.is_absolute():
        candidates = [path]
        if recorded.is_absolute():
            candidates.append(Path(os.path.normpath(run / os.path.relpath(path, recorded))))
    else:
        depth = len(recorded.parts)
        unmoved = not recorded.is_absolute() and run.parts[-depth:] == recorded.parts
        candidates = [run.parents[depth - 1] / path] if unmoved else []
        candidates += [Path.cwd() / path, *(folder / path for folder in run.parents)]
    return next((candidate for candidate in candidates if candidate.exists()), path)


def _our_eval_setup(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def eval_setup(
        config_path: Path,
        eval_num_rays_per_chunk: int | None = None,
        test_mode: TestMode = "test",
        update_config_callback: "Callable[[TrainerConfig], TrainerConfig] | None" = None,
    ) -> Any:
        def update(config: "TrainerConfig") -> "TrainerConfig":
            config = reroot(config, config_path)
            if update_config_callback is not None:
                config = update_config_callback(config)
            data = getattr(config.pipeline.datamanager, "data", None)
            if data is not None and not Path(data).exists():
                raise InputError(f"{config_path}: its dataset is not at {data}: put it there, or edit `data` in it")
            return config

        with lazy_lpips():
            config, pipeline, path, step = original(config_path, eval_num_rays_per_chunk, test_mode, update)
        _null_missing_lpips(pipeline)
        # ns-render dataset replaces methods of the target, which has to be the class; a config may name a function.
        config.pipeline.datamanager._target = type(pipeline.datamanager)
        return config, pipeline, path, step

    eval_setup._radcomp_original = original  # type: ignore[attr-defined]
    return eval_setup


def use_our_eval_setup() -> None:
    """Give every module that imported nerfstudio's `eval_setup` the one that finds moved runs and needs no LPIPS.

    Scripts bind it by name, and it is not yet defined when the plugins are imported, so this runs at `tyro.cli`.
    """
    module = sys.modules.get(_EVAL_UTILS)
    original = getattr(module, "eval_setup", None)
    if original is None or hasattr(original, "_radcomp_original"):
        return
    ours = _our_eval_setup(original)
    for other in list(sys.modules.values()):
        if isinstance(other, ModuleType) and vars(other).get("eval_setup") is original:
            other.eval_setup = ours  # type: ignore[attr-defined]


def load_run(
    run: Path,
    test_mode: TestMode = "test",
    update_config: "Callable[[TrainerConfig], TrainerConfig] | None" = None,
) -> "tuple[TrainerConfig, Pipeline, Path, int]":
    """Load a trained run from wherever it lies now.

    Args:
        run: a run folder or its config.yml.
        test_mode: which datasets nerfstudio loads.
        update_config: last changes to the config, after its paths were mended.

    Returns:
        The config, the pipeline in eval mode, the checkpoint's path and its step.

    Raises:
        InputError: no such run, not a config of nerfstudio, an unknown method, no checkpoint, or no dataset.
    """
    config_path = Path(run) / "config.yml" if Path(run).is_dir() else Path(run)
    if not config_path.is_file():
        raise InputError(f"{config_path}: no such file, expected the config.yml of a trained run")
    _check_run(config_path)

    import nerfstudio.utils.eval_utils as eval_utils

    apply()
    use_our_eval_setup()
    return eval_utils.eval_setup(config_path, test_mode=test_mode, update_config_callback=update_config)


def _check_run(config_path: Path) -> None:
    """What eval_setup would trip over with a traceback, or leave the program for."""
    import yaml
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.engine.trainer import TrainerConfig

    try:
        config = yaml.load(config_path.read_text(), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config_path}: not readable as a nerfstudio config: {error}".replace("\n", " ")) from error
    if not isinstance(config, TrainerConfig):
        raise InputError(f"{config_path}: got a {type(config).__name__}, expected the config.yml of a trained run")
    if config.method_name not in all_methods:
        raise InputError(f"{config_path}: method {config.method_name} is not installed here: install its plugin")
    folder = config_path.resolve().parent / config.relative_model_dir
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    strange = [name for name in names if not re.fullmatch(r"step-\d{9,}\.ckpt", name)]
    if not names or strange:
        found = f"found {strange[0]}" if strange else "found none"
        raise InputError(f"{folder}: {found}, expected checkpoints named step-000000000.ckpt and nothing else")


# Several runs in one process (nerfstudio.utils.writer appends to global lists) ----------------------------------------


def forget_writers() -> None:
    """Close what earlier trainings of this process log to: the next one would write into their folders as well."""
    from nerfstudio.utils import writer

    for earlier in writer.EVENT_WRITERS:
        if isinstance(earlier, writer.TensorboardWriter):
            earlier.tb_writer.close()
    for leftover in (writer.EVENT_WRITERS, writer.EVENT_STORAGE, writer.GLOBAL_BUFFER):
        leftover.clear()


# A resumed run trains for max_num_iterations more steps (nerfstudio issue #3096) -------------------------------------


def end_training_at(trainer: Any, total: int) -> None:
    """Let a trainer that has loaded its checkpoint end at a step, not that many steps after the one it resumed from.

    Its loop counts from the resumed step. The progress table of the terminal takes the same number for the last step,
    so that one is set right once the table has been made, just before training. And a run that is already at its end
    saves its checkpoint as what it is, not as that of step 0.

    Args:
        trainer: nerfstudio's trainer, in its `setup`.
        total: number of steps of the whole run.
    """
    from nerfstudio.utils import writer

    trainer.config.max_num_iterations = max(total - trainer._start_step, 0)
    trainer.step = max(trainer._start_step - 1, 0)
    train = trainer.train

    def counted() -> None:
        writer.GLOBAL_BUFFER["max_iter"] = total
        train()

    trainer.train = counted


# ns-export has no plugin hook (nerfstudio issue #2828) ---------------------------------------------------------------


def install_tyro_hook() -> None:
    """Wrap `tyro.cli`, the one call that every ns-* command makes after all its imports are complete."""
    import tyro

    original = tyro.cli

    @functools.wraps(original)
    def cli(f: Any, *args: Any, **kwargs: Any) -> Any:
        use_our_eval_setup()
        use_our_distributed_worker()
        commands = _with_our_exports(f)
        if commands is not f and kwargs.get("args") is None:
            from radcomp_plugins.cli.export import spell_out_flags

            kwargs["args"] = spell_out_flags(sys.argv[1:])
        return original(commands, *args, **kwargs)

    tyro.cli = cli  # type: ignore[assignment]


def _with_our_exports(commands: Any) -> Any:
    """ns-export's union of subcommands with ours in it; anything else comes back as it is."""
    exporter = _script(_EXPORTER)
    if exporter is None or commands is not vars(exporter).get("Commands"):
        return commands
    from radcomp_plugins.cli.export import EXPORTS

    union, *markers = typing.get_args(commands)
    return Annotated[(Union[(*typing.get_args(union), *EXPORTS)], *markers)]  # noqa: UP007


def _script(name: str) -> ModuleType | None:
    """A nerfstudio script's module if it is running: it has another name where it was started with `python -m`."""
    main = sys.modules.get("__main__")
    is_main = getattr(getattr(main, "__spec__", None), "name", None) == name
    return main if is_main else sys.modules.get(name)


# Several processes on a machine without CUDA (ns-train --machine.num-devices) ----------------------------------------


def use_our_distributed_worker() -> None:
    """Have nerfstudio's launcher start `distributed_worker` in its processes."""
    train = _script(_TRAIN)
    if train is not None and hasattr(train, "_distributed_worker"):
        train._distributed_worker = distributed_worker  # type: ignore[attr-defined]


def distributed_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    num_devices_per_machine: int,
    machine_rank: int,
    dist_url: str,
    config: Any,
    timeout: timedelta,
    device_type: Literal["cpu", "cuda", "mps"] = "cuda",
) -> Any:
    """Run one of a training's processes, as nerfstudio's launcher does, on the CPU too.

    Upstream picks gloo for the CPU, but asserts CUDA before and after. With CUDA this is upstream's own function.

    Args: those of upstream's function of the same name.
    """
    from nerfstudio.scripts import train
    from nerfstudio.utils import comms

    arguments = (local_rank, main_func, world_size, num_devices_per_machine, machine_rank, dist_url, config, timeout)
    if device_type != "cpu":
        # A process that the launcher has spawned never calls tyro, so here upstream's is still in its place.
        return train._distributed_worker(*arguments, device_type)
    _share_cores(num_devices_per_machine)
    _mend_ddp_on_cpu()
    rank = machine_rank * num_devices_per_machine + local_rank
    torch.distributed.init_process_group("gloo", dist_url, timeout, world_size, rank)
    for machine in range(world_size // num_devices_per_machine):
        first = machine * num_devices_per_machine
        group = torch.distributed.new_group(list(range(first, first + num_devices_per_machine)))
        if machine == machine_rank:
            comms.LOCAL_PROCESS_GROUP = group
    result = main_func(local_rank, world_size, config, rank)
    comms.synchronize()
    torch.distributed.destroy_process_group()
    return result


def _share_cores(processes: int) -> None:
    """Spread this process over its share of the cores only: with more threads than cores all of them get slower."""
    from radcomp_plugins.core import threads

    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    threads.set_num_threads(max(1, threads.get_num_threads() // processes))


def _mend_ddp_on_cpu() -> None:
    """Let pipelines wrap a model on the CPU: upstream names a device to DDP and to gloo's barrier, and both refuse.

    Process-wide, in a process that does nothing but train on the CPU.
    """
    from nerfstudio.pipelines import base_pipeline

    class CpuDDP(DistributedDataParallel):
        def __init__(self, module: torch.nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
            super().__init__(module, **kwargs)

    barrier = torch.distributed.barrier

    def cpu_barrier(*args: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        return barrier(*args, **kwargs)

    base_pipeline.DDP = CpuDDP  # type: ignore[misc]
    torch.distributed.barrier = cpu_barrier


# Points without open3d, and its system libraries ---------------------------------------------------------------------


def install_point_readers() -> None:
    """Have the Blender and nerfstudio dataset parsers read .ply points without open3d.

    open3d needs system libraries that pip does not install, and takes seconds to import.
    """
    from nerfstudio.data.dataparsers import blender_dataparser, nerfstudio_dataparser

    def blender(self: Any, ply_file_path: Path) -> dict[str, Tensor]:
        xyz, rgb = read_points(ply_file_path)
        return {"points3D_xyz": xyz * self.config.scale_factor, "points3D_rgb": rgb}

    stock = nerfstudio_dataparser.Nerfstudio._load_3D_points

    def nerfstudio(self: Any, ply_file_path: Path, transform_matrix: Tensor, scale_factor: float) -> Any:
        if Path(ply_file_path).suffix.lower() != ".ply":
            return stock(self, ply_file_path, transform_matrix, scale_factor)
        xyz, rgb = read_points(ply_file_path)
        if len(xyz) == 0:
            return None
        xyz = xyz @ transform_matrix[:3, :3].T + transform_matrix[:3, 3]
        return {"points3D_xyz": xyz * scale_factor, "points3D_rgb": rgb}

    blender_dataparser.Blender._load_3D_points = blender  # type: ignore[method-assign]
    nerfstudio_dataparser.Nerfstudio._load_3D_points = nerfstudio  # type: ignore[method-assign]


def read_points(path: Path) -> tuple[Tensor, Tensor]:
    """Points of a .ply file, as `open3d.io.read_point_cloud` has them.

    Returns:
        Positions [N, 3] float32 and colours [N, 3] uint8, or [0, 3] where the file has no colours.

    Raises:
        InputError: no such file, not a .ply with x, y, z, truncated, or with values that are not finite.
    """
    from plyfile import PlyData, PlyParseError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected a .ply with the scene's points")
    with open(path, "rb") as file:
        counts = [
            int(count) for count in re.findall(rb"element\s+\w+\s+(\d+)", file.read(2**16).partition(b"end_header")[0])
        ]
    if max(counts, default=0) > path.stat().st_size:
        raise InputError(f"{path}: header says {max(counts)} entries, but the file has {path.stat().st_size} bytes")
    try:
        vertices = PlyData.read(str(path))["vertex"].data
        xyz = np.stack([vertices[axis].astype(np.float32) for axis in "xyz"], axis=-1)
    except (PlyParseError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a .ply with vertices x, y, z: {error}".replace("\n", " ")) from error
    if not np.isfinite(xyz).all():
        raise InputError(f"{path}: has points with NaN or infinite coordinates, expected finite ones")
    return torch.from_numpy(xyz), torch.from_numpy(_point_colors(path, vertices))


def _point_colors(path: Path, vertices: np.ndarray) -> np.ndarray:
    channels = ("red", "green", "blue")
    if not set(channels) <= set(vertices.dtype.names or ()):
        return np.zeros((0, 3), np.uint8)
    rgb = np.stack([vertices[channel] for channel in channels], axis=-1)
    if rgb.dtype.kind == "f":
        return np.rint(np.clip(np.nan_to_num(rgb), 0, 1) * 255).astype(np.uint8)
    if rgb.dtype != np.uint8:
        raise InputError(f"{path}: colours are {rgb.dtype}, expected uchar or float")
    return rgb


def missing_open3d_libraries() -> list[str]:
    """System libraries that open3d needs and this machine lacks."""
    missing = []
    for library in _OPEN3D_LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(library)
    return missing


def one_line(error: BaseException | None) -> str | None:
    """What to tell the user instead of a traceback, for mistakes that the user can mend; None for all others."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, (ImportError, OSError)):
        for library in _OPEN3D_LIBRARIES:
            if f"{library}: cannot open shared object file" in str(error):
                return f"open3d needs {library}, a system library: on Debian or Ubuntu, apt install {OPEN3D_PACKAGES}"
    return None


def install_excepthook() -> None:
    """Have every ns-* command end on a user's mistake with one line instead of a traceback; the exit code stays 1."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = one_line(error)
        if line is None:
            previous(kind, error, trace)
            return
        from nerfstudio.utils.rich_utils import CONSOLE
        from rich.markup import escape

        CONSOLE.print(f"[bold red]Error:[/bold red] {escape(line)}", soft_wrap=True)

    sys.excepthook = hook
