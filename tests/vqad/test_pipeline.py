"""VQ-AD as ns-train runs it: octrees from every source, runs that resume, errors before training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import train
from tiny_vqad import vqad_config, write_ball

from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.model import VqadModel


def state(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.pipeline.model.state_dict().items()}


@pytest.fixture(scope="module")
def depth_run(tmp_path_factory: pytest.TempPathFactory, ball_data: Path) -> Any:
    """A finished run of 200 steps with depth."""
    return train(vqad_config(ball_data, tmp_path_factory.mktemp("run"), 200, octree_from="depth"))


def test_a_run_with_depth_shows_the_ball(depth_run: Any) -> None:
    model: VqadModel = depth_run.pipeline.model
    assert model.field.encoding.mode == "latent"
    metrics, images = depth_run.pipeline.get_eval_image_metrics_and_images(0)
    # An empty picture has about 9 dB.
    assert metrics["psnr"] > 17.0
    levels = [metrics[f"psnr_level_{level}"] for level in (2, 3, 4)]
    assert levels[2] == pytest.approx(metrics["psnr"], abs=1e-3)
    assert levels[0] > 10.0
    assert images["img"].shape == (32, 64, 3)


def test_a_run_without_depth_finds_the_ball(tmp_path: Path, ball_data: Path) -> None:
    trainer = train(vqad_config(ball_data, tmp_path, 200, octree_from="none"))
    model: VqadModel = trainer.pipeline.model
    octree = model.field.octree
    assert octree.finest == 4
    assert len(octree.voxels[-1]) < 0.8 * 8**4
    metrics, _ = trainer.pipeline.get_eval_image_metrics_and_images(0)
    assert metrics["psnr"] > 15.0


def test_same_seed_same_result_also_resumed(tmp_path: Path, ball_data: Path) -> None:
    def run(name: str, steps: int, **changes: Any) -> Any:
        config = vqad_config(ball_data, tmp_path / name, 24, octree_from="none", reshape_at=(0.2, 0.4))
        config.steps_per_save, config.save_only_latest_checkpoint = 1, False
        for key, value in changes.items():
            setattr(config, key, value)
        return train(config)

    whole = run("whole", 24)
    again = run("again", 24, load_dir=whole.checkpoint_dir, load_step=15)
    for name, value in state(whole).items():
        assert torch.equal(value, state(again)[name]), name


def test_octree_from_points(tmp_path: Path, ball_data: Path) -> None:
    config = vqad_config(ball_data, tmp_path, 2, octree_from="points")
    with pytest.raises(InputError, match="no SfM points"):
        train(config)


def test_no_depth_where_it_is_asked_for(tmp_path: Path) -> None:
    data = write_ball(tmp_path / "data", with_depth=False)
    with pytest.raises(InputError, match="names no depth maps"):
        train(vqad_config(data, tmp_path, 2, octree_from="depth"))


def test_auto_takes_depth_first(tmp_path: Path, ball_data: Path) -> None:
    trainer = train(vqad_config(ball_data, tmp_path, 1))
    assert trainer.pipeline.model.field.octree.finest == 4
    assert not bool(trainer.pipeline.model.box_is_loose)


def test_one_process_only(tmp_path: Path, ball_data: Path) -> None:
    config = vqad_config(ball_data, tmp_path, 1)
    with pytest.raises(InputError, match="2 processes"):
        config.pipeline.setup(device="cpu", test_mode="val", world_size=2)


def test_presets_are_on_the_menu() -> None:
    from method_configs import vqad as menu

    paper: Any = menu.vqad_paper.config.pipeline.model
    assert (paper.coarsest_level, paper.finest_level, paper.features, paper.hidden_dim) == (5, 8, 16, 128)
    assert (paper.samples_per_voxel, paper.samples_at, paper.quantise_from) == (16, "coarsest", 0.0)
    rates = {name: group["optimizer"].lr for name, group in menu.vqad_paper.config.optimizers.items()}
    assert rates["grid"] == pytest.approx(100 * rates["decoder"])
    for spec in (menu.vqad, menu.vqad_paper, menu.vqad_tiny):
        assert set(spec.config.optimizers) == {"grid", "codebook", "decoder"}
