"""Fewer Gaussians without training: dropped or merged, whichever the pictures say is better."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.merge import Merged, merge
from radcomp_plugins.splats.significance import most_significant

MERGE_BELOW = 0.6
"""Share of the Gaussians above which merging is not tried: what dropping takes first hardly shows."""

SCENES_KEPT = 4
"""Merged scenes held at a time; a scene of a million Gaussians takes a quarter of a gigabyte."""


@dataclass(frozen=True)
class Reduced:
    """A scene made of fewer Gaussians.

    Attributes:
        scene: of M Gaussians.
        significance: [M] of each.
        merged: whether neighbours were merged; otherwise the least significant were dropped.
    """

    scene: Gaussians
    significance: Float[Tensor, " M"]
    merged: bool


class Reducer:
    """Reduces one scene to one count after another.

    Args:
        original: The scene.
        significance: [N] of each of its Gaussians.
        psnr_of: PSNR of a scene against what is wanted, dB.
        merging: Whether merging may be chosen.
    """

    def __init__(
        self,
        original: Gaussians,
        significance: Float[Tensor, " N"],
        psnr_of: Callable[[Gaussians], float],
        merging: bool = True,
    ) -> None:
        self.original, self.significance = original, significance
        self._psnr_of, self._merging = psnr_of, merging
        self._merged: dict[int, Merged] = {}
        self._merging_wins: dict[int, bool] = {}

    def at(self, count: int) -> Reduced:
        """The scene of `count` Gaussians."""
        kept = most_significant(self.significance, count / len(self.original))
        dropped = Reduced(self.original.select(kept), self.significance[kept], False)
        if not self._merging or count > MERGE_BELOW * len(self.original):
            return dropped
        found = self._merge(count)
        if count not in self._merging_wins:
            self._merging_wins[count] = self._psnr_of(found.scene) > self._psnr_of(dropped.scene)
        return Reduced(found.scene, found.weights, True) if self._merging_wins[count] else dropped

    def _merge(self, count: int) -> Merged:
        """From the smallest scene at hand that has enough: merging goes in rounds anyway."""
        if count not in self._merged:
            start = min((have for have in self._merged if have >= count), default=None)
            scene, weights = self.original, self.significance
            if start is not None:
                scene, weights = self._merged[start].scene, self._merged[start].weights
            self._merged[count] = merge(scene, weights, count)
            for old in list(self._merged)[:-SCENES_KEPT]:
                del self._merged[old]
        return self._merged[count]
