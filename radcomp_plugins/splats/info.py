"""What a splat file holds: its bytes by attribute, its Gaussians and the ranges of their numbers."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from radcomp_plugins.splats.formats.registry import FORMATS, splat_format_of
from radcomp_plugins.splats.gaussians import Gaussians


def describe_file(path: Path) -> dict[str, Any]:
    """Facts of a splat file of any format, ready for JSON.

    Returns:
        "file format", "variant", "frame", "gaussians" that can be drawn and "not finite", stored but left out; "bytes";
        "attributes": bytes and bits per stored Gaussian of each; "parts": the same bytes as the format lays them out;
        the facts of `describe_scene`; and "warnings" of the reader, if any.

    Raises:
        InputError: What the format's reader refuses.
    """
    known = FORMATS[splat_format_of(path)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scene = known.read(path)
        parts = known.parts(path)
    facts: dict[str, Any] = {"file format": known.name, "title": known.title}
    if parts.variant:
        facts["variant"] = parts.variant
    facts |= {"frame": known.frame, **describe_scene(scene), "not finite": parts.count - len(scene)}
    facts["bytes"] = parts.bytes
    facts["bytes per gaussian"] = f"{parts.bytes / parts.count:.2f}"
    facts["attributes"] = {
        name: {"bytes": size, "bits per gaussian": round(8 * size / parts.count, 3)}
        for name, size in parts.by_attribute().items()
    }
    facts["parts"] = [{k: v for k, v in asdict(part).items() if v is not None} for part in parts.parts]
    told = list(dict.fromkeys(str(warning.message) for warning in caught))
    return facts | ({"warnings": told} if told else {})


def describe_scene(scene: Gaussians) -> dict[str, Any]:
    """Facts of Gaussians: count, SH degree, bounding box of the means, and ranges of what is drawn.

    Scales are standard deviations in world units, opacities lie in 0 to 1.
    """
    low, high = scene.means.amin(0).tolist(), scene.means.amax(0).tolist()
    return {
        "gaussians": len(scene),
        "sh degree": scene.sh_degree,
        "antialiased": scene.antialiased,
        "bounds": " ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(low, high, strict=True)),
        "scales": _range(scene.scales.double().clamp(max=700).exp()),
        "opacities": _range(scene.opacities.double().sigmoid()),
    }


def _range(values: Tensor) -> dict[str, float]:
    flat = values.flatten()
    numbers = {"least": flat.min(), "median": torch.median(flat), "greatest": flat.max()}
    return {name: float(f"{float(value):.4g}") for name, value in numbers.items()}
