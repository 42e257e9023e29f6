"""Quality of pictures against photos, averaged over views."""

from typing import Any

import numpy as np
from torch import Tensor

from radcomp_plugins.core.metrics import Lpips, psnr
from radcomp_plugins.core.ssim import ssim


class Quality:
    """Mean PSNR, SSIM and LPIPS of pictures, and seconds of drawing each."""

    def __init__(self, lpips: Lpips | None = None) -> None:
        self.rows: list[dict[str, float | None]] = []
        self.lpips = lpips

    def add(self, drawn: Tensor, truth: Tensor, seconds: float) -> None:
        """Compare two pictures [H, W, 3] in [0, 1]."""
        pair = [image.cpu().float().permute(2, 0, 1)[None].contiguous() for image in (truth, drawn)]
        row: dict[str, float | None] = {"psnr": float(psnr(drawn.cpu(), truth.cpu())), "ssim": float(ssim(*pair))}
        row["seconds_per_frame"] = seconds
        if self.lpips is not None:
            row["lpips"] = self.lpips(*pair)
        self.rows.append(row)

    def summary(self) -> dict[str, Any]:
        """Means of the metrics, the median of the seconds; LPIPS null with the reason where it cannot be had."""
        result: dict[str, Any] = {}
        for name in self.rows[0] if self.rows else ():
            values = [row[name] for row in self.rows]
            known = [value for value in values if value is not None]
            average = np.median if name == "seconds_per_frame" else np.mean
            result[name] = float(average(known)) if len(known) == len(values) else None
        if self.lpips is not None and result.get("lpips") is None:
            result["lpips_missing"] = self.lpips.reason
        return result
