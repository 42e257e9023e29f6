"""Recovery without photos: a changed scene is trained towards the pictures that the original gives of virtual views."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.splats.draw import draw
from radcomp_plugins.splats.fake_quantise import FakeQuantiser, Palette
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.rasterize import rasterize
from radcomp_plugins.splats.views import PinholeView

LEARNING_RATES = {"quats": 1e-3, "scales": 5e-3, "opacities": 2.5e-2, "sh0": 2.5e-3, "shN": 1.25e-4}
MEANS_RATE = 1e-4
"""Of the positions, in units of the scene's extent. All are the rates of splatfacto or near them."""

LAST_RATE = 0.1


def recover(
    gaussians: Gaussians,
    original: Gaussians,
    views: Sequence[PinholeView],
    steps: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    quantiser: FakeQuantiser | None = None,
    palette: Palette | None = None,
) -> Gaussians:
    """Adam on the mean absolute error to the original's own pictures, alphas included.

    Alphas are compared as well, so that the result does not depend on the background that a viewer chooses.

    Args:
        gaussians: The scene to train, not changed.
        original: The scene whose pictures are the truth.
        views: Cameras to train on.
        steps: Pictures trained on, 0 for none.
        seed: Draws the views' order.
        progress: Called with the steps done and `steps`.
        quantiser: Of the format that the scene will be written in: what is drawn is the decoded file.
        palette: The higher SH that the quantiser wants, trained in place of each Gaussian's own.

    Returns:
        A scene of as many Gaussians, for a writer with the quantiser's options.
    """
    if steps < 1 or len(gaussians) == 0:
        return gaussians
    truths: list[tuple[Tensor, Tensor] | None] = [None] * len(views)
    start = gaussians.tensors if palette is None else {**gaussians.tensors, "shN": palette.entries}
    parameters = {name: tensor.detach().clone().requires_grad_() for name, tensor in start.items()}
    extent = float((original.means - original.means.median(dim=0).values).norm(dim=1).quantile(0.8)) if len(
        original
    ) < 2**24 else 1.0  # fmt: skip
    rates = {"means": MEANS_RATE * max(extent, 1e-9), **LEARNING_RATES}
    groups = [{"params": [p], "lr": rates[name]} for name, p in parameters.items() if p.numel()]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, LAST_RATE ** (1 / steps))
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(steps):
        order = order or torch.randperm(len(views), generator=generator).tolist()
        at = order.pop()
        if (truth := truths[at]) is None:
            truth = truths[at] = draw(original, views[at])[:2]
        render, alpha = _draw(_scene(gaussians, parameters, palette, quantiser), views[at])
        loss = (render - truth[0]).abs().mean() + (alpha - truth[1]).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    trained = _scene(gaussians, {name: p.detach() for name, p in parameters.items()}, palette, None)
    good = trained.finite()
    return trained if bool(good.all()) else trained.select(good)


def _scene(
    like: Gaussians, parameters: dict[str, Tensor], palette: Palette | None, quantiser: FakeQuantiser | None
) -> Gaussians:
    """The scene of the parameters, of which "shN" are the palette's entries where there is one; quantised."""
    if palette is None:
        scene = replace(like, **parameters)
        return scene if quantiser is None else quantiser(scene)
    plain = {name: tensor for name, tensor in parameters.items() if name != "shN"}
    if quantiser is None:
        return replace(like, **plain, shN=parameters["shN"][palette.labels])
    return quantiser(replace(like, **plain), replace(palette, entries=parameters["shN"]))


def _draw(g: Gaussians, view: PinholeView) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W 1"]]:
    render, alpha, _ = rasterize(
        g.means, g.quats, g.scales.exp(), g.opacities.sigmoid(), torch.cat([g.sh0[:, None], g.shN], dim=1),
        view.viewmat[None], view.K[None], view.width, view.height, sh_degree=g.sh_degree,
        rasterize_mode="antialiased" if g.antialiased else "classic",
    )  # fmt: skip
    return render[0], alpha[0]
