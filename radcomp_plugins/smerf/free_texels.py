"""Texels that have been let go of the network: each is a parameter of its own.

A network over hash grids learns the coarse of a scene from few rays, and its fine slowly: every step changes it
everywhere. Once the occupied voxels are known there are not many texels left, and training them one by one costs a
look-up where the network costs a hundred. Not in the paper, whose network trains to the end.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor, nn

from radcomp_plugins.core.gather import gather
from radcomp_plugins.smerf.corners import texels_per_submodel
from radcomp_plugins.smerf.layout import NUM_CHANNELS, Layout
from radcomp_plugins.smerf.reach import cells_of_voxels, needed_texels


class FreeTexels(nn.Module):
    """A table of texels' raw values; empty until they are let go.

    Attributes:
        values: [U, 8] before the sigmoid. The parameter is made at once, so that an optimiser can hold it.
        codes: [U] ascending.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(0, NUM_CHANNELS))
        self.register_buffer("codes", torch.zeros(0, dtype=torch.long))
        self.codes: Int[Tensor, " U"]
        self._places: Int[Tensor, " codes"] = torch.zeros(0, dtype=torch.int32)

    def __len__(self) -> int:
        return len(self.codes)

    def let_go(self, codes: Int[Tensor, " U"], values: Float[Tensor, "U 8"]) -> None:
        """Take over texels at the values they have; codes ascending."""
        self.codes = codes
        # The same object with other data: the optimiser keeps its hold of it, and has no state of it yet.
        self.values.data = values.detach().clone()
        self._places = self._places[:0]

    def places(self) -> Int[Tensor, " codes"]:
        """For every code up to one above the last where it is in the table, -1 where it is not.

        A look-up per texel: binary searches took a tenth of the time of a step of 130,000 samples.
        """
        if len(self._places) == 0 or self._places.device != self.codes.device:
            table = torch.full((int(self.codes[-1]) + 2,), -1, dtype=torch.int32, device=self.codes.device)
            table[self.codes] = torch.arange(len(self.codes), dtype=torch.int32, device=self.codes.device)
            self._places = table
        return self._places

    def look_up(self, codes: Int[Tensor, " N"], otherwise: Callable[[Tensor], Tensor]) -> Float[Tensor, "N 8"]:
        """Values of texels; those that are not in the table come from `otherwise`, called with their codes."""
        table = self.places()
        place = table[codes.clamp(max=len(table) - 1)].long()
        known = place >= 0
        place = place.clamp(min=0)
        found = gather(self.values, place[:, None], torch.ones_like(place[:, None], dtype=self.values.dtype))
        if bool(known.all()):
            return found
        return found.index_copy(0, torch.where(~known)[0], otherwise(codes[~known]))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """A checkpoint says how many there are."""
        for name in ("values", "codes"):
            if prefix + name in state_dict:
                mine: Tensor = getattr(self, name)
                mine.data = torch.empty_like(state_dict[prefix + name], device=mine.device)
        self._places = self._places[:0]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def codes_of_cells(occupied: Bool[np.ndarray, "rows S S S"], layout: Layout) -> Int[np.ndarray, " U"]:
    """Codes of all texels that samples in occupied voxels are interpolated between, ascending."""
    codes = []
    for row, cells in enumerate(occupied):
        base = row * texels_per_submodel(layout)
        codes.append(base + np.flatnonzero(ndimage.binary_dilation(cells, np.ones((3, 3, 3), np.bool_))))
        coarse = cells_of_voxels(cells, layout)
        base += layout.sparse_resolution**3
        for axis in range(3):
            codes.append(
                base + axis * layout.triplane_resolution**2 + np.flatnonzero(needed_texels(coarse, axis, layout))
            )
    return np.concatenate(codes).astype(np.int64)
