"""`radcomp demo`: flags, datasets, what is kept of an interrupted one, and one small demo from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest

from radcomp_plugins.cli import demo as demo_module
from radcomp_plugins.cli import main
from radcomp_plugins.cli.demo import METHODS, Demo
from radcomp_plugins.cli.training import dataset_parser, preset, train
from radcomp_plugins.cli.workspace import Workspace
from radcomp_plugins.errors import InputError


def demo(data: Path | None, folder: Path, **changes: Any) -> Demo:
    """A demo of a few steps."""
    options = {"steps_scale": 0.002, "max_gaussians": 200, "lpips": False, **changes}
    return Demo(output_dir=folder, data=data, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("smerf",)}, "--methods: got 'smerf', expected one or more of lightgaussian"),
        ({"methods": ("lightgaussian", "lightgaussian")}, "each of them once"),
        ({"methods": ()}, "each of them once"),
        ({"steps_scale": 0.0}, "--steps-scale: got 0.0"),
        ({"steps_scale": float("nan")}, "--steps-scale: got nan"),
        ({"max_gaussians": 0}, "--max-gaussians: got 0"),
        ({"data": Path("no/such/folder")}, "no/such/folder: no such folder"),
        ({"views": 1}, "views is 1"),
        ({"size": 8}, "width is 8"),
    ],
)
def test_bad_flags_are_one_line_and_make_nothing(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        demo(**{"data": None, "folder": tmp_path / "out", **changes}).main()
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unknown_scene_is_refused_by_the_command_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["radcomp", "demo", "--scene", "moon", "--output-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        main.entrypoint()
    assert end.value.code == 2
    assert "still-life" in "".join(capsys.readouterr())


def test_a_dataset_is_known_by_its_files(tmp_path, tiny_dataset):
    def parser(name: str, files: dict[str, str]) -> Any:
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return dataset_parser(tmp_path / name)

    assert type(dataset_parser(tiny_dataset)).__name__ == "NerfstudioDataParserConfig"
    assert dataset_parser(tiny_dataset / "transforms.json").load_3D_points
    # Asked to load points that are not there, nerfstudio would stop and ask a question.
    assert not parser("no points", {"transforms.json": "{}"}).load_3D_points
    assert parser("blender", {"transforms_train.json": "{}"}).ply_path is None
    with_points = parser("points", {"transforms_train.json": "{}", "transforms.json": "{}", "points3D.ply": ""})
    assert type(with_points).__name__ == "BlenderDataParserConfig" and with_points.ply_path == Path("points3D.ply")
    colmap = parser("colmap", {"sparse/0/cameras.bin": "", "images/a.jpg": "", "images_2/a.jpg": ""})
    assert (colmap.colmap_path, colmap.downscale_factor) == (Path("sparse/0"), 2)
    with pytest.raises(InputError, match="no folder images/"):
        parser("photos missing", {"sparse/0/cameras.txt": ""})
    with pytest.raises(InputError, match="expected transforms_train.json"):
        parser("empty", {"readme": ""})
    with pytest.raises(InputError, match="not readable as JSON"):
        parser("broken", {"transforms.json": "{"})


def test_a_preset_keeps_its_proportions(tmp_path):
    from nerfstudio.configs.method_configs import all_methods

    whole = all_methods["splatfacto-tiny"]
    half = preset("splatfacto-tiny", tmp_path, 0.5)
    assert half.max_num_iterations == whole.max_num_iterations // 2
    assert half.pipeline.model.stop_split_at == whole.pipeline.model.stop_split_at // 2  # type: ignore[attr-defined]
    assert half.optimizers["means"]["scheduler"].max_steps == whole.optimizers["means"]["scheduler"].max_steps // 2
    assert "viewer" not in half.vis
    few = preset("lightgaussian-tiny", tmp_path, 1e-6).pipeline
    assert (few.co_adaptation_steps, few.distillation_steps, few.vq_finetune_steps) == (1, 1, 1)


class TestWorkspace:
    """Which parts of a demo are kept."""

    SETTINGS = {"scene": "a", "steps_scale": 0.5}

    def open(self, folder: Path, overwrite: bool = False, **changes: Any) -> Workspace:
        return Workspace(folder, {**self.SETTINGS, **changes}, ("scene", "runs"), overwrite=overwrite)

    def test_a_finished_part_is_not_run_again(self, tmp_path):
        calls = []
        for _ in range(2):
            work = self.open(tmp_path / "out")
            work.do("scene", lambda: calls.append("scene"), "scene")
        assert calls == ["scene"]
        assert set(work.seconds) == {"scene"}

    def test_a_part_that_fails_is_not_finished(self, tmp_path):
        def fail() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.open(tmp_path / "out").do("scene", fail, "scene")
        assert self.open(tmp_path / "out").seconds == {}

    def test_other_settings_need_overwrite(self, tmp_path):
        self.open(tmp_path / "out").do("scene", lambda: (tmp_path / "out/scene").mkdir(), "scene")
        with pytest.raises(InputError, match="another steps_scale: --overwrite"):
            self.open(tmp_path / "out", steps_scale=1.0)
        assert (tmp_path / "out/scene").is_dir()
        assert self.open(tmp_path / "out", overwrite=True, steps_scale=1.0).seconds == {}
        assert not (tmp_path / "out/scene").exists()

    def test_a_finished_demo_needs_overwrite_which_keeps_foreign_files(self, tmp_path):
        work = self.open(tmp_path / "out")
        work.do("scene", lambda: None, "scene")
        for name in ("report.json", "notes.txt"):
            (work.folder / name).write_text("{}")
        with pytest.raises(InputError, match="finished demo: --overwrite"):
            self.open(tmp_path / "out")
        assert self.open(tmp_path / "out", overwrite=True).seconds == {}
        assert sorted(path.name for path in work.folder.iterdir()) == ["demo.json", "notes.txt"]

    def test_overwrite_goes_on_with_an_unfinished_demo(self, tmp_path):
        self.open(tmp_path / "out").do("scene", lambda: None, "scene")
        assert set(self.open(tmp_path / "out", overwrite=True).seconds) == {"scene"}

    def test_a_folder_of_something_else_is_never_touched(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("x")
        for overwrite in (False, True):
            with pytest.raises(InputError, match="no demo.json of a demo"):
                self.open(tmp_path, overwrite=overwrite)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_training_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(**_: Any) -> None:
        assert list(tmp_path.glob(".*.partial/**/config.yml"))
        raise KeyboardInterrupt

    monkeypatch.setattr("nerfstudio.scripts.train.train_loop", fail)
    with pytest.raises(KeyboardInterrupt):
        train(preset("splatfacto-tiny", tmp_path, 1.0), 10)
    assert list(tmp_path.iterdir()) == []


def test_demo_ends_with_a_measured_report_and_goes_on_where_it_stopped(tmp_path, tiny_dataset, monkeypatch, capsys):
    folder = tmp_path / "out"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo_module, "export", killed)
        with pytest.raises(KeyboardInterrupt):
            demo(tiny_dataset, folder).main()
    assert not (folder / "lightgaussian").exists() and not (folder / "report.json").exists()
    assert not list(folder.glob(".*"))
    teacher = folder / "runs/splatfacto-tiny/demo/config.yml"
    trained = teacher.stat().st_mtime_ns

    demo(tiny_dataset, folder).main()
    assert teacher.stat().st_mtime_ns == trained
    report = json.loads((folder / "report.json").read_text())
    assert report["schema_version"] == 1
    assert report["scene"]["train_views"] == 9 and report["scene"]["test_views"] == 1
    entry = report["methods"]["lightgaussian"]
    asset = folder / entry["asset"]["path"]
    assert entry["asset"]["bytes"] == asset.stat().st_size
    assert entry["teacher"]["bytes"] == (folder / "teacher.ply").stat().st_size
    assert entry["ratio"] == pytest.approx(entry["teacher"]["bytes"] / asset.stat().st_size)
    assert entry["delta_psnr"] == pytest.approx(entry["asset"]["psnr"] - entry["teacher"]["psnr"])
    assert entry["asset"]["lpips"] is None and "--lpips" in entry["asset"]["lpips_reason"]
    assert list(entry["seconds"]) == ["teacher", "lightgaussian", "lightgaussian export", "measuring"]
    assert [row["stage"] for row in entry["stages"]][0] == "teacher"
    assert entry["asset"]["frame_ms"] > 0 and entry["teacher"]["frame_ms"] > 0
    assert (folder / entry["asset"]["run"]).is_file()
    assert "report.html" in capsys.readouterr().out

    # The figures of the report are those of the file, decoded by nobody but this test.
    from radcomp_plugins import compat
    from radcomp_plugins.splats.evaluate import held_out_views, quality
    from radcomp_plugins.splats.formats.registry import read_splats

    pipeline: Any = compat.load_run(teacher)[1]
    background = pipeline.model._get_background_color()
    views = held_out_views(pipeline.datamanager.fixed_indices_eval_dataloader, background)
    assert quality(read_splats(asset), views, background)["psnr"] == pytest.approx(entry["asset"]["psnr"], abs=1e-6)

    with pytest.raises(InputError, match="finished demo"):
        demo(tiny_dataset, folder).main()


def test_every_method_of_the_demo_is_in_the_menu():
    from nerfstudio.configs.method_configs import all_methods

    assert {method.preset for method in METHODS.values()} <= set(all_methods)
