"""Each workaround for nerfstudio, torch and open3d: it helps, and what it mends is broken without it."""

import copy
import io
import json
import math
import shutil
import sys
import threading
import types
import typing
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Annotated, Union

import numpy as np
import pytest
import torch
import tyro
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils import eval_utils

from radcomp_plugins import compat
from radcomp_plugins.core import metrics
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.baked_config import BakedSmerfModelConfig
from radcomp_plugins.splats.config import SplatDatamanagerConfig

# Checkpoints under torch >= 2.6 ---------------------------------------------------------------------------------------


@pytest.fixture
def no_safe_globals():
    """torch as it is before the plugins are imported."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def checkpoint(written_by: bytes) -> io.BytesIO:
    """A checkpoint with the numpy scalars that schedulers leave, as numpy 1 or numpy 2 names them."""
    plain, renamed = io.BytesIO(), io.BytesIO()
    torch.save({"lr": np.float64(0.5), "step": np.int64(3), "weights": torch.ones(2)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(renamed, "w") as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray" in data or b"cnumpy.core.multiarray" in data
                data = data.replace(b"numpy._core.multi", b"numpy.core.multi")
                data = data.replace(b"cnumpy.core.multiarray", b"c" + written_by)
            target.writestr(item, data)
    renamed.seek(0)
    return renamed


@pytest.mark.parametrize("written_by", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_checkpoints_of_either_numpy_load_with_weights_only(no_safe_globals, written_by):
    with pytest.raises(Exception, match="[Uu]nsupported global"):
        torch.load(checkpoint(written_by), weights_only=True)
    compat.register_safe_globals()
    state = torch.load(checkpoint(written_by), weights_only=True)
    assert state["lr"] == 0.5 and state["step"] == 3


def test_torch_load_itself_is_not_patched_and_still_refuses_code(no_safe_globals):
    compat.register_safe_globals()
    assert torch.load.__module__ == "torch.serialization"
    buffer = io.BytesIO()
    torch.save({"x": Namespace()}, buffer)
    buffer.seek(0)
    with pytest.raises(Exception, match="[Uu]nsupported global"):
        torch.load(buffer)


# LPIPS ----------------------------------------------------------------------------------------------------------------


class Downloads(torch.nn.Module):
    """Stands for torchmetrics' class, which downloads when it is built."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.net = torch.nn.Linear(2, 2)


@pytest.fixture
def offline(monkeypatch):
    from torchmetrics.image import lpip

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", Downloads)
    monkeypatch.setattr(metrics, "_networks", {})
    monkeypatch.setattr(metrics, "_failures", {"alex": "LPIPS (alex): weights not available: no network"})
    return lpip


def test_lazy_lpips_replaces_the_class_for_this_thread_and_this_block_only(offline):
    built = {}
    with compat.lazy_lpips():
        other = threading.Thread(
            target=lambda: built.update(other=offline.LearnedPerceptualImagePatchSimilarity(normalize=True))
        )
        other.start()
        other.join()
        built["here"] = offline.LearnedPerceptualImagePatchSimilarity(normalize=True)
    assert isinstance(built["here"], compat.LazyLpips) and isinstance(built["other"], Downloads)
    assert offline.LearnedPerceptualImagePatchSimilarity is Downloads
    with pytest.raises(KeyError), compat.lazy_lpips():
        raise KeyError
    assert offline.LearnedPerceptualImagePatchSimilarity is Downloads


def test_lazy_lpips_in_many_threads_leaves_nothing_behind(offline):
    def build(results):
        with compat.lazy_lpips():
            results.append(type(offline.LearnedPerceptualImagePatchSimilarity(normalize=True)))

    results: list[type] = []
    threads = [threading.Thread(target=build, args=(results,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [compat.LazyLpips] * 8
    assert offline.LearnedPerceptualImagePatchSimilarity is Downloads


class ModelWithLpips(torch.nn.Module):
    def __init__(self, lpips):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.lpips = lpips


def test_stock_checkpoints_load_into_ours_and_ours_carry_no_alexnet(offline):
    stock, ours = ModelWithLpips(Downloads()), ModelWithLpips(compat.LazyLpips(normalize=True))
    assert "lpips.net.weight" in stock.state_dict()
    ours.load_state_dict(stock.state_dict(), strict=True)
    assert set(ours.state_dict()) == {"scale"}
    with pytest.raises(RuntimeError, match="Unexpected"):
        ours.load_state_dict({**stock.state_dict(), "other.weight": torch.ones(1)}, strict=True)
    assert set(compat.without_lpips(stock.state_dict())) == {"scale"}


def test_missing_lpips_is_nan_with_a_reason_said_once(offline, capsys):
    lpips = compat.LazyLpips(normalize=True)
    assert lpips.reason is None
    image = torch.rand(1, 3, 8, 8)
    assert math.isnan(lpips(image, image)) and math.isnan(lpips(image, image))
    assert lpips.reason and "no network" in lpips.reason
    assert capsys.readouterr().out.count("No LPIPS") == 1


def test_lpips_takes_images_of_both_ranges(offline, monkeypatch):
    class Mean(torch.nn.Module):
        def forward(self, image, target):
            assert image.min() >= 0
            return image.mean()

        def reset(self):
            pass

    monkeypatch.setitem(metrics._networks, "alex", Mean())
    image = torch.full((1, 3, 4, 4), -0.5)
    assert float(compat.LazyLpips(normalize=False)(image, image)) == pytest.approx(0.25)
    assert float(compat.LazyLpips(normalize=True)(-image, -image)) == pytest.approx(0.5)


# Runs that moved ------------------------------------------------------------------------------------------------------


def make_run(root: Path, output_dir: Path, data: Path) -> tuple[TrainerConfig, Path]:
    """A run folder at root/outputs/scene/method/time and the config that trained it."""
    manager = SplatDatamanagerConfig(data=data, dataparser=NerfstudioDataParserConfig(data=data))
    config = TrainerConfig(
        output_dir=output_dir, method_name="method", experiment_name="scene", timestamp="time", data=data,
        pipeline=VanillaPipelineConfig(datamanager=manager),
    )  # fmt: skip
    run = root / "outputs/scene/method/time"
    (run / "nerfstudio_models").mkdir(parents=True)
    return config, run


def data_of(config: TrainerConfig) -> list[Path]:
    manager: typing.Any = config.pipeline.datamanager
    return [typing.cast(Path, config.data), manager.data, manager.dataparser.data]


def test_a_run_opened_from_another_folder_finds_checkpoints_and_relative_data(tmp_path, monkeypatch):
    root = tmp_path / "project"
    config, run = make_run(root, Path("outputs"), Path("data/scene"))
    for folder in (root / "data/scene", tmp_path / "elsewhere/data/scene"):
        folder.mkdir(parents=True)
    # The other folder has data of the same name; the run's own is meant.
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert not config.get_checkpoint_dir().exists()
    compat.reroot(config, run / "config.yml")
    assert config.get_checkpoint_dir() == run / "nerfstudio_models"
    assert data_of(config) == [root / "data/scene"] * 3


def test_a_project_that_moved_with_absolute_paths_in_it(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    config, _ = make_run(old, old / "outputs", old / "data/scene")
    (old / "data/scene").mkdir(parents=True)
    config.pipeline.teacher = old / "outputs/teacher/config.yml"  # type: ignore[attr-defined]
    shutil.move(old, new)
    compat.reroot(config, new / "outputs/scene/method/time/config.yml")
    assert config.get_checkpoint_dir() == new / "outputs/scene/method/time/nerfstudio_models"
    assert data_of(config) == [new / "data/scene"] * 3


def test_a_run_copied_alone_keeps_data_that_is_where_it_was(tmp_path):
    root = tmp_path / "project"
    config, run = make_run(root, root / "outputs", root / "data/scene")
    (root / "data/scene").mkdir(parents=True)
    shutil.copytree(run, tmp_path / "flat")
    compat.reroot(config, tmp_path / "flat/config.yml")
    assert config.get_checkpoint_dir() == tmp_path / "flat/nerfstudio_models"
    assert data_of(config) == [root / "data/scene"] * 3
    # A config that was mended, saved and copied again is mended anew.
    shutil.copytree(run, tmp_path / "again")
    compat.reroot(config, tmp_path / "again/config.yml")
    assert config.get_checkpoint_dir() == tmp_path / "again/nerfstudio_models"


def test_an_asset_is_looked_for_beside_the_run(tmp_path, monkeypatch):
    config, run = make_run(tmp_path, Path("outputs"), Path("data/scene"))
    monkeypatch.chdir(tmp_path)
    for folder in (run, tmp_path / "elsewhere/run"):
        config.pipeline.model = BakedSmerfModelConfig(asset=Path(".."))
        compat.reroot(config, folder / "config.yml")
        assert typing.cast(BakedSmerfModelConfig, config.pipeline.model).asset == folder.parent


def test_paths_inside_the_dataset_and_missing_data_stay_as_they_are(tmp_path, monkeypatch):
    config, run = make_run(tmp_path, Path("outputs"), Path("/nowhere/scene"))
    manager: typing.Any = config.pipeline.datamanager
    manager.dataparser.images_path = Path("images")
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(run)
    compat.reroot(config, Path("config.yml"))
    assert manager.dataparser.images_path == Path("images")
    assert data_of(config) == [Path("/nowhere/scene")] * 3


def test_every_module_that_imported_eval_setup_gets_ours_once(monkeypatch):
    stock = getattr(eval_utils.eval_setup, "_radcomp_original", eval_utils.eval_setup)
    monkeypatch.setattr(eval_utils, "eval_setup", stock)
    script = types.ModuleType("a_script")
    script.eval_setup = stock  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_script", script)
    compat.use_our_eval_setup()
    ours = eval_utils.eval_setup
    assert ours is not stock and script.eval_setup is ours  # type: ignore[attr-defined]
    compat.use_our_eval_setup()
    assert eval_utils.eval_setup is ours


def test_missing_run_unknown_method_and_stray_files_are_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        compat.load_run(tmp_path)
    (tmp_path / "config.yml").write_text("[1, 2]")
    with pytest.raises(InputError, match="got a list"):
        compat.load_run(tmp_path)
    (tmp_path / "config.yml").write_text("!!python/object:no_such_package.Config {}")
    with pytest.raises(InputError, match="not readable") as caught:
        compat.load_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_dataset) -> Path:
    """A run of two steps, trained with relative paths in project/, of which nothing remembers where it was."""
    from nerfstudio.scripts import train

    root = tmp_path_factory.mktemp("project")
    shutil.copytree(tiny_dataset, root / "data")
    config = copy.deepcopy(all_methods["splatfacto-tiny"])
    config.output_dir, config.data, config.max_num_iterations, config.vis = (
        root / "outputs",
        root / "data",
        2,
        "tensorboard",
    )
    train.main(config)
    (path,) = root.glob("outputs/data/splatfacto-tiny/*/config.yml")
    return path


def test_a_trained_run_that_moved_loads_and_evaluates_without_lpips_weights(tiny_run, tmp_path, monkeypatch, capsys):
    root = tiny_run.parents[4]
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    try:
        path = moved / tiny_run.relative_to(root)
        compat.use_our_eval_setup()
        with pytest.raises((SystemExit, AssertionError)):
            eval_utils.eval_setup._radcomp_original(path)  # type: ignore[attr-defined]
        monkeypatch.chdir(tmp_path)
        config, pipeline, found, step = compat.load_run(path.parent)
        assert found == path.parent / "nerfstudio_models/step-000000001.ckpt" and step == 1
        # ns-render dataset replaces these two on the target while it builds a datamanager of its own.
        assert hasattr(config.pipeline.datamanager._target, "setup_train")
        monkeypatch.setattr(metrics, "_networks", {})
        monkeypatch.setattr(metrics, "_failures", {"alex": "no weights"})
        results: typing.Any = pipeline.get_average_eval_image_metrics(get_std=True)
        assert results["lpips"] is None and results["lpips_missing"] == "no weights"
        assert results["psnr"] > 0
        json.dumps({"lpips": results["lpips"]}, allow_nan=False)

        (moved / "data").rename(moved / "renamed")
        with pytest.raises(InputError, match="dataset is not at"):
            compat.load_run(path)
        (moved / "renamed").rename(moved / "data")
        (path.parent / "nerfstudio_models/notes.txt").touch()
        with pytest.raises(InputError, match=r"notes\.txt"):
            compat.load_run(path)
        (path.parent / "nerfstudio_models/notes.txt").unlink()
    finally:
        shutil.move(moved, root)


def test_a_stock_model_takes_our_checkpoint_and_ours_a_stock_one(tiny_run, offline):
    """Ours has no lpips.* entries, stock ones have; nerfstudio's pipeline and our LazyLpips bridge both ways."""
    from nerfstudio.models.splatfacto import SplatfactoModel
    from nerfstudio.pipelines.base_pipeline import Pipeline

    state = torch.load(next(tiny_run.parent.glob("nerfstudio_models/*.ckpt")), weights_only=True)["pipeline"]
    assert not [key for key in state if "lpips" in key]
    config = copy.deepcopy(all_methods["splatfacto"]).pipeline.model

    class OnlyModel(Pipeline):
        def __init__(self, model):
            torch.nn.Module.__init__(self)
            self._model = model

    from nerfstudio.data.scene_box import SceneBox

    stock = SplatfactoModel(config, scene_box=SceneBox(torch.ones(2, 3)), num_train_data=9)
    assert isinstance(stock.lpips, Downloads)
    OnlyModel(stock).load_state_dict(state)
    assert torch.equal(stock.means, state["_model.gauss_params.means"])
    with_alexnet = {f"_model.{key}": value for key, value in stock.state_dict().items()}
    assert "_model.lpips.net.weight" in with_alexnet
    _, pipeline, _, _ = compat.load_run(tiny_run)
    pipeline.model.load_state_dict({key[7:]: value for key, value in with_alexnet.items()}, strict=True)


# ns-export ------------------------------------------------------------------------------------------------------------


def test_only_the_exporters_own_union_gets_our_subcommands(monkeypatch):
    class Mesh:
        pass

    class Cloud:
        pass

    commands = tyro.conf.FlagConversionOff[
        Union[  # noqa: UP007
            Annotated[Mesh, tyro.conf.subcommand(name="mesh")], Annotated[Cloud, tyro.conf.subcommand(name="cloud")]
        ]
    ]
    exporter = types.ModuleType(compat._EXPORTER)
    exporter.Commands = commands  # type: ignore[attr-defined]
    assert compat._with_our_exports(commands) is commands
    monkeypatch.setitem(sys.modules, compat._EXPORTER, exporter)
    union, *markers = typing.get_args(compat._with_our_exports(commands))
    names = [typing.get_args(member)[1].name for member in typing.get_args(union)]
    assert names[:2] == ["mesh", "cloud"] and "lightgaussian" in names
    assert markers == list(typing.get_args(commands)[1:])
    assert compat._with_our_exports(Mesh) is Mesh


@pytest.mark.slow
def test_ns_export_shows_and_parses_stock_and_our_subcommands(monkeypatch, capsys, tmp_path):
    """Against the real exporter, so that a change of it upstream is noticed."""
    try:
        from nerfstudio.scripts import exporter
    except OSError as error:
        pytest.skip(f"the stock exporter cannot be imported here: {compat.one_line(error)}")
    from radcomp_plugins.cli.export import ExportSplats

    monkeypatch.setattr(sys, "argv", ["ns-export", "--help"])
    with pytest.raises(SystemExit, match="0"):
        exporter.entrypoint()
    shown = capsys.readouterr().out
    assert "gaussian-splat" in shown and "lightgaussian" in shown
    done = []
    monkeypatch.setattr(ExportSplats, "main", lambda self: done.append(self))
    monkeypatch.setattr(exporter.ExportGaussianSplat, "main", lambda self: done.append(self))
    for name, flags in (("splats", ["--overwrite"]), ("gaussian-splat", [])):
        monkeypatch.setattr(sys, "argv", ["ns-export", name, "--load-config", "c.yml", "--output-dir", "d", *flags])
        exporter.entrypoint()
    assert done[0].overwrite is True and done[1].output_dir == Path("d")


# Points without open3d ------------------------------------------------------------------------------------------------

HEADER = "ply\nformat {form} 1.0\nelement vertex {count}\nproperty float x\nproperty float y\nproperty float z\n"
COLORS = "property {kind} red\nproperty {kind} green\nproperty {kind} blue\n"


def write_binary(path: Path, count: int = 3, xyz: float = 1.5) -> None:
    rows = np.zeros(3, dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    rows["xyz"] = [[0, 1, 2], [3, 4, 5], [xyz, 0, 0]]
    rows["rgb"] = [[0, 128, 255], [1, 2, 3], [254, 253, 7]]
    header = HEADER.format(form="binary_little_endian", count=count) + COLORS.format(kind="uchar") + "end_header\n"
    path.write_bytes(header.encode() + rows.tobytes())


def test_points_of_binary_and_text_files(tmp_path):
    write_binary(tmp_path / "a.ply")
    xyz, rgb = compat.read_points(tmp_path / "a.ply")
    assert xyz.tolist() == [[0, 1, 2], [3, 4, 5], [1.5, 0, 0]] and xyz.dtype == torch.float32
    # Exactly as stored: open3d's way over floats turns some values into the next lower.
    assert rgb.tolist() == [[0, 128, 255], [1, 2, 3], [254, 253, 7]] and rgb.dtype == torch.uint8
    text = HEADER.format(form="ascii", count=1) + COLORS.format(kind="float") + "end_header\n1 2 3 0 0.5 2\n"
    (tmp_path / "b.ply").write_text(text)
    assert compat.read_points(tmp_path / "b.ply")[1].tolist() == [[0, 128, 255]]
    (tmp_path / "c.ply").write_text(HEADER.format(form="ascii", count=1) + "end_header\n1 2 3\n")
    assert compat.read_points(tmp_path / "c.ply")[1].shape == (0, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"solid teapot", "not a .ply"),
        (HEADER.format(form="ascii", count=10**15).encode() + b"end_header\n", "header says 1000000000000000"),
        (HEADER.format(form="binary_little_endian", count=4).encode() + b"end_header\n" + b"\0" * 30, "not a .ply"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n", "x, y, z"),
        (HEADER.format(form="ascii", count=1).encode() + b"end_header\n1 nan 3\n", "finite"),
    ],
)
def test_damaged_points_are_one_line(tmp_path, content, message):
    path = tmp_path / "points.ply"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        compat.read_points(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_dataset_points_load_without_open3d(tmp_path, monkeypatch):
    write_binary(tmp_path / "a.ply")
    monkeypatch.setitem(sys.modules, "open3d", None)  # importing it now fails, as without its system libraries
    parser = NerfstudioDataParserConfig(data=tmp_path).setup()
    transform = torch.tensor([[0.0, 0, 1, 10], [0, 1, 0, 0], [1, 0, 0, 0]])
    loaded = parser._load_3D_points(tmp_path / "a.ply", transform, 0.5)
    assert loaded["points3D_xyz"].tolist() == [[6, 0.5, 0], [7.5, 2, 1.5], [5, 0, 0.75]]
    with pytest.raises(ImportError):
        parser._load_3D_points(tmp_path / "a.pcd", transform, 0.5)  # upstream's own reader


@pytest.mark.slow
def test_points_agree_with_open3d(tmp_path):
    try:
        import open3d
    except (ImportError, OSError) as error:
        pytest.skip(f"open3d cannot be imported here: {compat.one_line(error) or error}")
    write_binary(tmp_path / "a.ply")
    cloud = open3d.io.read_point_cloud(tmp_path / "a.ply")
    xyz, rgb = compat.read_points(tmp_path / "a.ply")
    np.testing.assert_array_equal(np.asarray(cloud.points, dtype=np.float32), xyz.numpy())
    np.testing.assert_allclose(np.asarray(cloud.colors) * 255, rgb.numpy(), atol=1e-6)


# One line instead of a traceback --------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["libusb-1.0.so.0", "libGL.so.1", "libEGL.so.1"])
def test_a_missing_system_library_is_one_line_with_the_packages(library):
    line = compat.one_line(OSError(f"{library}: cannot open shared object file: No such file or directory"))
    assert line is not None and library in line and "apt install libusb-1.0-0 libgl1 libegl1" in line


def test_missing_system_libraries_are_found_without_importing_open3d(monkeypatch):
    def load(name):
        if name == "libusb-1.0.so.0":
            raise OSError(name)

    monkeypatch.setattr(compat.ctypes, "CDLL", load)
    assert compat.missing_open3d_libraries() == ["libusb-1.0.so.0"]


def test_other_errors_keep_their_traceback():
    assert compat.one_line(OSError("libfoo.so.1: cannot open shared object file")) is None
    assert compat.one_line(ValueError("x")) is None
    assert compat.one_line(InputError("say this")) == "say this"


def test_excepthook_prints_the_line_and_passes_all_else_on(monkeypatch, capsys):
    passed = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: passed.append(args))
    compat.install_excepthook()
    error = InputError("scene.ply: got [red] of " + "x" * 200)
    sys.excepthook(InputError, error, None)
    assert capsys.readouterr().out == f"Error: {error}\n" and not passed
    sys.excepthook(ValueError, ValueError("x"), None)
    assert len(passed) == 1 and capsys.readouterr().out == ""


def test_apply_is_idempotent(monkeypatch):
    before = tyro.cli, sys.excepthook, Nerfstudio._load_3D_points
    compat.apply()
    compat.apply()
    assert before == (tyro.cli, sys.excepthook, Nerfstudio._load_3D_points)
