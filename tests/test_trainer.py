"""The trainer config that runs anywhere: device, absolute paths, and configs of earlier versions."""

from pathlib import Path

import pytest
import torch
import yaml
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig

from radcomp_plugins import trainer
from radcomp_plugins.splats.config import SplatDatamanagerConfig, SplatPipelineConfig
from radcomp_plugins.trainer import RunAnywhereTrainerConfig

OLD_CONFIG = Path(__file__).parent / "data" / "config_0_1.yml"


def config(**fields) -> RunAnywhereTrainerConfig:
    manager = SplatDatamanagerConfig(data=Path("data/chair"), dataparser=NerfstudioDataParserConfig())
    return RunAnywhereTrainerConfig(method_name="m", pipeline=SplatPipelineConfig(datamanager=manager), **fields)


@pytest.mark.parametrize(
    ("has_cuda", "asked", "used"), [(False, "cuda", "cpu"), (True, "cuda", "cuda"), (True, "cpu", "cpu")]
)
def test_picks_the_cpu_only_where_cuda_is_absent_and_says_so(monkeypatch, capsys, has_cuda, asked, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    run = config()
    run.machine.device_type = asked
    run.set_timestamp()
    assert run.machine.device_type == used
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == (used != asked)
    assert used == asked or "training on the CPU" in lines[0]


def test_saves_absolute_paths_that_mean_the_same_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = config(load_dir=Path("old/nerfstudio_models"))
    run.pipeline.teacher = Path("teacher/config.yml")  # type: ignore[attr-defined]
    run.set_timestamp()
    run.save_config()
    saved = yaml.load(next(tmp_path.glob("outputs/chair/m/*/config.yml")).read_text(), Loader=yaml.Loader)
    assert isinstance(saved, RunAnywhereTrainerConfig)
    assert saved.output_dir == tmp_path / "outputs"
    assert saved.load_dir == tmp_path / "old/nerfstudio_models"
    assert saved.pipeline.datamanager.data == tmp_path / "data/chair"
    assert saved.pipeline.teacher == tmp_path / "teacher/config.yml"  # type: ignore[attr-defined]
    # Names that are relative to the dataset stay so.
    assert saved.relative_model_dir == Path("nerfstudio_models")


def test_a_pipeline_completes_its_config_before_paths_are_made_absolute(monkeypatch, tmp_path):
    class Pipeline(SplatPipelineConfig):
        def prepare(self):
            self.datamanager.data = Path("the/teachers/data")

    monkeypatch.chdir(tmp_path)
    run = config()
    run.pipeline = Pipeline(datamanager=run.pipeline.datamanager)
    run.set_timestamp()
    assert run.pipeline.datamanager.data == tmp_path / "the/teachers/data"


def test_timestamp_and_experiment_are_those_of_nerfstudio():
    run = config()
    run.set_timestamp()
    stamp = run.timestamp
    run.set_timestamp()
    assert run.timestamp == stamp != "{timestamp}"
    assert run.get_base_dir().parts[-3:] == ("chair", "m", stamp)


def test_no_field_is_added_that_an_earlier_config_would_lack():
    """nerfstudio unpickles config.yml without calling __init__, so a new field needs a plain default."""
    added = set(RunAnywhereTrainerConfig.__dataclass_fields__) - set(TrainerConfig.__dataclass_fields__)
    assert all(hasattr(RunAnywhereTrainerConfig, name) for name in added)


def test_config_of_version_0_1_loads_and_is_complete():
    old = yaml.load(OLD_CONFIG.read_text(), Loader=yaml.Loader)
    assert isinstance(old, RunAnywhereTrainerConfig)
    for part in (old, old.pipeline, old.pipeline.model, old.pipeline.datamanager):
        assert [name for name in part.__dataclass_fields__ if not hasattr(part, name)] == []
    assert old.pipeline.model._target is not None


@pytest.mark.parametrize(("device", "kept"), [("cpu", 1), ("cuda", 0)])
def test_a_process_that_trains_on_the_cpu_keeps_its_memory(
    device: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(trainer, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(TrainerConfig, "setup", lambda self, **kwargs: kwargs)
    made = config()
    made.machine.device_type = device  # type: ignore[assignment]
    assert made.setup(local_rank=3) == {"local_rank": 3} and len(calls) == kept
