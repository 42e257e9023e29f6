"""Image quality: PSNR, LPIPS that needs nothing at start-up, and error maps. SSIM has a module of its own.

Images have values in [0, 1]. LPIPS (Zhang et al. 2018) needs weights that torchvision downloads; where they cannot be
had, its value is None and the reason is kept, never a made-up figure.
"""

import pickle
import threading
import urllib.request
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

LpipsNet = Literal["alex", "vgg"]

_DOWNLOAD_TIMEOUT_S = 10.0
_TORCHVISION_WEIGHTS = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights"}
# Dark to light through purple and orange: ordered in brightness, so it reads in grey and for colour-blind eyes.
_RAMP = ((0.00, 0.00, 0.02), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.00, 0.64))

_networks: dict[str, Any] = {}
_failures: dict[str, str] = {}
_lock = threading.Lock()


def psnr(target: Float[Tensor, "*shape"], image: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio in dB over all values of two images in [0, 1]; infinite where they are equal."""
    mse = (target.double() - image.double()).square().mean()
    return (-10.0 * torch.log10(mse)).float()


def error_map(
    target: Float[Tensor, "H W 3"], image: Float[Tensor, "H W 3"], max_error: float = 0.25
) -> Float[Tensor, "H W 3"]:
    """Colours for the mean absolute error per pixel: black at 0, light yellow at `max_error` and above.

    Args:
        target: [H, W, 3] reference.
        image: [H, W, 3] image under test.
        max_error: error, in units of the image, that gets the lightest colour; positive.
    """
    ramp = target.new_tensor(_RAMP)
    error = (target - image).abs().mean(dim=-1)
    position = (error / max_error).clamp(0, 1) * (len(_RAMP) - 1)
    low = position.floor().long().clamp(max=len(_RAMP) - 2)
    return torch.lerp(ramp[low], ramp[low + 1], (position - low)[..., None])


class Lpips:
    """Perceptual distance that is built on first use, once per process and network.

    Attributes:
        net: "alex", nerfstudio's choice, or "vgg", that of the 3DGS literature. Their values do not compare.
        reason: why there is no value, None until a call has failed.
    """

    def __init__(self, net: LpipsNet = "alex") -> None:
        self.net: LpipsNet = net
        self.reason: str | None = None

    @torch.no_grad()
    def __call__(self, target: Float[Tensor, "B 3 H W"], image: Float[Tensor, "B 3 H W"]) -> float | None:
        """Mean distance over the batch, or None where the weights cannot be had.

        Args:
            target: [B, 3, H, W] reference in [0, 1].
            image: [B, 3, H, W] image under test in [0, 1].
        """
        with _lock:
            metric = _network(self.net)
            if metric is None:
                self.reason = _failures[self.net]
                return None
            metric.to(image.device)
            value = float(metric(image.float(), target.float()))
            # torchmetrics keeps every score it has seen.
            metric.reset()
        return value


def _network(net: str) -> Any | None:
    """The metric for one backbone; a failure is remembered, so that an offline machine waits for it only once."""
    if net not in _networks and net not in _failures:
        try:
            _networks[net] = _build(net)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            _failures[net] = f"LPIPS ({net}): weights not available: {error}".replace("\n", " ")
    return _networks.get(net)


def _build(net: str) -> Any:
    import torchvision.models
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    url = getattr(torchvision.models, _TORCHVISION_WEIGHTS[net]).IMAGENET1K_V1.url
    if not (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]).is_file():
        # torch.hub downloads without a timeout, and would hang for minutes behind a firewall that drops packets.
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_DOWNLOAD_TIMEOUT_S):
            pass
    return LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=True)  # type: ignore[arg-type]
