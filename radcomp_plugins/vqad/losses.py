"""What a training step compares, and on which background."""

import torch
from jaxtyping import Float
from torch import Tensor


def on_background(
    rgb: Float[Tensor, "R 3"], accumulation: Float[Tensor, " R"], background: Float[Tensor, "*R 3"]
) -> Float[Tensor, "R 3"]:
    """Colours of rays in front of a background.

    Args:
        rgb: what the scene sends, without background.
        accumulation: share of the light that it sends.
        background: one colour, or one per ray.
    """
    return rgb + (1.0 - accumulation)[:, None] * background


def photo_on_background(image: Float[Tensor, "R channels"], background: Float[Tensor, "*R 3"]) -> Float[Tensor, "R 3"]:
    """Pixels of a photo, those with straight alpha in front of a background."""
    if image.shape[-1] == 3:
        return image
    return image[:, :3] * image[:, 3:] + (1.0 - image[:, 3:]) * background


def colour(rgb: Float[Tensor, "R 3"], target: Float[Tensor, "R 3"]) -> Float[Tensor, ""]:
    """Mean squared error, of the values as they are in the image files (the paper, section 7.3)."""
    return torch.nn.functional.mse_loss(rgb, target)
