"""A SMERF student of the coloured balls, trained for a few seconds."""

from typing import Any

import pytest
import torch
from analytic_teacher import BallTeacher, orbit_rays
from nerfstudio.data.scene_box import SceneBox

from radcomp_plugins.smerf.config import SmerfModelConfig
from radcomp_plugins.smerf.datamanager import CAMERA_ORIGINS
from radcomp_plugins.smerf.model import SmerfModel
from radcomp_plugins.smerf.rays import JitterSettings, TaughtPool, taught_pool, weighty_points

SETTINGS = JitterSettings(jitter_origin=0.03, jitter_rotation=0.03, photo_share=0.0, query_chunk=32768)


def small_model(**changes: Any) -> SmerfModel:
    """An untrained student of cameras on a sphere around the balls."""
    settings: dict[str, Any] = {
        "triplane_resolution": 128, "sparse_resolution": 32, "hash_levels": 6, "hash_max_res": 128,
        "hash_log2_size": 14, "hidden_width": 16, "deferred_grid": 2, "deferred_width": 8, "alpha_cull_threshold": 0.0,
        "sparsity_samples": 2000, "first_step": 1.0, **changes,
    }  # fmt: skip
    origins = torch.nn.functional.normalize(torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    model = SmerfModel(
        SmerfModelConfig(**settings),
        scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=10,
        metadata={CAMERA_ORIGINS: 2.5 * origins},
    )
    return model


def ball_pool(model: SmerfModel, patches: int) -> TaughtPool:
    """Patches of rays with the ball teacher's answers."""
    return taught_pool(orbit_rays(patches), torch.zeros(patches * 9, 3), BallTeacher(), model.submodels, SETTINGS)


def train(model: SmerfModel, steps: int, patches: int = 64, lr: float = 1e-2) -> list[float]:
    """Train on the balls; returns the sum of the losses at each step."""
    with torch.no_grad():
        for _ in range(3):
            model.mark_occupied(
                *weighty_points(ball_pool(model, 1000), 0.005, model.submodels, 4.0 / model.layout.sparse_resolution)
            )
        model.occupancy.measure()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, eps=1e-15, betas=(0.9, 0.99))
    pool, history = ball_pool(model, 1000), []
    model.train()
    for step in range(steps):
        model.set_progress(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10) * 0.03 ** (step / steps)
        outputs = model.taught_outputs(pool.select(torch.randint(len(pool), (patches,))))
        loss = sum(model.get_loss_dict(outputs, {}).values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        history.append(float(loss))
    model.eval()
    return history


@pytest.fixture(scope="session")
def trained_student() -> SmerfModel:
    """A student of the balls that shows them."""
    torch.manual_seed(0)
    model = small_model()
    train(model, 120)
    return model
