"""An exported splat file as a nerfstudio model, so that every stock tool shows the decoded file."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radcomp_plugins.lightgaussian.model import LightGaussianModel
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.splats.gaussians import Gaussians


def decode_asset(data: Tensor) -> Gaussians:
    """The scene in the bytes [B] uint8 of a splat file, of a format that is told by its first bytes.

    Raises:
        InputError: the bytes are no such file.
    """
    content = data.cpu().numpy().astype(np.uint8).tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene"
        path.write_bytes(content)
        return read_splats(path)


class BakedSplatModel(LightGaussianModel):
    """Its only state is the file itself: the checkpoint holds the asset's bytes, and loading decodes them."""

    def populate_modules(self) -> None:
        """Build the model with nothing but room for the file."""
        super().populate_modules()
        self.register_buffer("asset", torch.zeros(0, dtype=torch.uint8))
        self.asset: Tensor

    def load_state_dict(self, dict: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Decode the file and take on its Gaussians."""
        self.asset = dict["asset"].to(self.device)
        self.start_from(decode_asset(self.asset))
        self.step = 30_000
        return torch.nn.modules.module._IncompatibleKeys([], [])

    def estimated_bytes(self) -> int:
        """Bytes of the file, exactly."""
        return self.asset.numel()
