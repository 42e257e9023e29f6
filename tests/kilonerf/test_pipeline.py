"""The three stages in one run: what they find, that a resumed run is the same run, and what they refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kilo_teachers import BallPoints, kilo_config
from tiny_runs import train

from radcomp_plugins.errors import InputError


def state_of(run: Path, step: int) -> dict[str, Any]:
    path = run / f"nerfstudio_models/step-{step:09d}.ckpt"
    return torch.load(path, map_location="cpu", weights_only=False)


def test_run_finds_the_balls(kilo_trainer: Any) -> None:
    grid = kilo_trainer.pipeline.model.grid
    assert max(grid.cells) == 4 and 0.02 < grid.occupancy.mean() < 0.6
    assert grid.step == pytest.approx(1.25 * grid.cell_size[0] / 8)
    assert np.abs(grid.box.mean(axis=0)).max() < 0.3 and 0.8 < (grid.box[1] - grid.box[0]).max() < 1.6


def test_stages_follow_each_other(kilo_trainer: Any) -> None:
    pipeline = kilo_trainer.pipeline
    assert pipeline.distill_steps == 5
    assert [pipeline.rate_at(step) for step in (0, 4, 5, 7)] == pytest.approx([1.0, 0.03, 0.33, 0.0099])
    first, last, tuned = (state_of(kilo_trainer.base_dir, step)["pipeline"] for step in (1, 4, 7))
    name = "_model.networks.color_weight"
    assert not torch.equal(first[name], last[name]) and not torch.equal(last[name], tuned[name])
    # Moments begin anew with fine-tuning.
    state = state_of(kilo_trainer.base_dir, 7)["optimizers"]["networks"]["state"]
    assert float(state[0]["step"]) == 3.0


def test_teacher_is_no_part_of_the_checkpoint(kilo_trainer: Any) -> None:
    names = state_of(kilo_trainer.base_dir, 7)["pipeline"]
    assert all(name.startswith("_model.") for name in names)
    assert not any("teacher" in name or "pts_linears" in name or "lpips" in name for name in names)


@pytest.mark.parametrize("step", [2, 5])
def test_resumed_run_is_the_same_run(kilo_trainer: Any, tmp_path: Path, step: int, with_teacher: Any) -> None:
    with_teacher(BallPoints())
    config = kilo_config(
        tmp_path, kilo_trainer.config.pipeline.teacher, kilo_trainer.config.pipeline.datamanager.dataparser.data
    )
    config.load_checkpoint = kilo_trainer.base_dir / f"nerfstudio_models/step-{step:09d}.ckpt"
    again = train(config)
    whole, resumed = (state_of(run, 7)["pipeline"] for run in (kilo_trainer.base_dir, again.base_dir))
    assert set(whole) == set(resumed)
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def run_with(
    tmp_path: Path, use: Callable[[Any], None], data: Path, teacher: Any, checkpoint: Path, **changes: Any
) -> Any:
    use(teacher)
    config = kilo_config(tmp_path, checkpoint, data, steps=2, **changes.pop("pipeline", {}))
    for name, value in changes.items():
        setattr(config.pipeline.model, name, value)
    return train(config)


def test_box_that_is_given_is_taken(
    tmp_path: Path, with_teacher: Any, kilo_ball_data: Path, plain_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = (-0.2, -0.8, -0.8, 0.9, 0.8, 0.8)
    trainer = run_with(tmp_path, with_teacher, kilo_ball_data, BallPoints(), plain_checkpoint, box=box)
    grid = trainer.pipeline.model.grid
    assert grid.box[0, 1] <= -0.79 and grid.box[0, 0] > -0.5
    assert "comes from outside of the box" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("teacher", "model", "told"),
    [
        (BallPoints(), {"box": (0.0, 0.0, 0.0, -1.0, 1.0, 1.0)}, "lower one below"),
        (BallPoints(), {"box": (7.0, 7.0, 7.0, 8.0, 8.0, 8.0)}, "nothing of what the teacher shows"),
        (BallPoints(far_wall=5.0), {}, "unbounded scene"),
        (BallPoints(density=0.0), {}, "shows nothing"),
        (BallPoints(density=1.0), {}, "occupancy is empty"),
        (BallPoints(), {"box_from": "points"}, "0 SfM points"),
    ],
)
def test_what_cannot_be_distilled_is_told(
    tmp_path: Path,
    with_teacher: Any,
    kilo_ball_data: Path,
    plain_checkpoint: Path,
    teacher: Any,
    model: dict,
    told: str,
) -> None:
    with pytest.raises(InputError, match=told) as error:
        run_with(tmp_path, with_teacher, kilo_ball_data, teacher, plain_checkpoint, **model)
    assert "\n" not in str(error.value)


def test_more_networks_than_memory(
    tmp_path: Path, with_teacher: Any, kilo_ball_data: Path, plain_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from radcomp_plugins.kilonerf import memory

    monkeypatch.setattr(memory, "free_bytes", lambda device: 3_000_000)
    monkeypatch.setattr(memory, "COPIES", 500)
    with pytest.raises(InputError, match="networks need .* GB to train"):
        run_with(tmp_path, with_teacher, kilo_ball_data, BallPoints(), plain_checkpoint)


def test_teachers_that_answer_no_point_queries(tmp_path: Path, kilo_ball_data: Path, teacher_run: Path) -> None:
    with pytest.raises(InputError, match="splat models"):
        train(kilo_config(tmp_path, teacher_run, kilo_ball_data))


def test_plain_checkpoints_are_read_and_placed(tmp_path: Path, kilo_ball_data: Path, plain_checkpoint: Path) -> None:
    """An untrained NeRF is fog everywhere: all that is asked of it is to be asked."""
    config = kilo_config(tmp_path, plain_checkpoint, kilo_ball_data, steps=2)
    config.pipeline.model.box = (-0.6, -0.6, -0.6, 0.6, 0.6, 0.6)
    config.pipeline.datamanager.dataparser.scale_factor = 0.5
    teacher: Any = train(config).pipeline.teacher
    assert type(teacher).__name__ == "PlainNerfTeacher" and teacher.trained_from == 1.0


def test_bare_checkpoint_knows_no_dataset(tmp_path: Path, plain_checkpoint: Path) -> None:
    config = kilo_config(tmp_path, plain_checkpoint, Path())
    with pytest.raises(InputError, match="knows no dataset; give one with --data"):
        train(config)


@pytest.mark.parametrize("overlap", [0.2])
def test_overlapping_networks_train(
    tmp_path: Path, with_teacher: Any, kilo_ball_data: Path, plain_checkpoint: Path, overlap: float
) -> None:
    trainer = run_with(tmp_path, with_teacher, kilo_ball_data, BallPoints(), plain_checkpoint, overlap=overlap)
    assert trainer.pipeline.model.grid.overlap == overlap


@pytest.mark.slow
def test_training_draws_the_balls(
    tmp_path: Path, with_teacher: Any, kilo_ball_data: Path, plain_checkpoint: Path
) -> None:  # fmt: skip
    """From scratch against distilled, and what fine-tuning adds, on held-out pictures."""
    use, scores = with_teacher, {}
    use(BallPoints())
    for name, share, steps in (("distilled", 1.0, 250), ("tuned", 0.5, 500), ("scratch", 0.0, 250)):
        config = kilo_config(tmp_path / name, plain_checkpoint, kilo_ball_data, steps=steps, distill_share=share)
        config.steps_per_save = 10**9
        config.optimizers["networks"]["optimizer"].lr = 5e-3
        trainer = train(config)
        trainer.pipeline.eval()
        scores[name] = trainer.pipeline.get_average_eval_image_metrics()["psnr"]
    assert scores["distilled"] > 20.0 and scores["tuned"] > scores["distilled"] and scores["tuned"] > scores["scratch"]
