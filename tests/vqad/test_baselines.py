import numpy as np
import pytest
import torch
from vqad_scenes import shell_voxels

from radcomp_plugins.core.octree import Octree
from radcomp_plugins.vqad import baselines
from radcomp_plugins.vqad.encoding import VQADEncoding
from radcomp_plugins.vqad.field import DirectionalDecoder, VqadField


@pytest.fixture
def field() -> VqadField:
    """Full precision; its features lie near a plane of four dimensions, in 20 clusters."""
    torch.manual_seed(0)
    octree = Octree.from_finest(shell_voxels(4), 4, 3)
    encoding = VQADEncoding(octree, 16, 4, mode="full")
    centres, axes = torch.randn(20, 4), torch.randn(4, 16)
    drawn = centres[torch.randint(20, (octree.num_vertices,))] @ axes + 0.01 * torch.randn(octree.num_vertices, 16) + 2
    encoding.values.data = drawn
    return VqadField(encoding, DirectionalDecoder(16, 16), torch.tensor([[-1.0] * 3, [1.0] * 3]))


def error(one: VqadField, other: VqadField) -> float:
    return float((one.encoding.table() - other.encoding.table()).square().mean().sqrt())


def test_low_rank_keeps_what_varies_most(field) -> None:
    errors = [error(field, baselines.low_rank(field, keep)) for keep in (1, 3, 4, 16)]
    assert errors[0] > errors[1] > 0.1 and errors[2] < 0.02 and errors[3] < 0.01
    # Against the singular values: an SVD drops exactly what lies outside its first axes.
    starts = field.encoding.octree.vertex_starts
    lost = 0.0
    for a, b in zip(starts, starts[1:], strict=False):
        part = field.encoding.values[a:b].double()
        lost += float(torch.linalg.svdvals(part - part.mean(0))[3:].square().sum())
    assert errors[1] == pytest.approx(np.sqrt(lost / field.encoding.values.numel()), rel=1e-2)
    with pytest.raises(ValueError, match="17 axes"):
        baselines.low_rank(field, 17)


def test_clusters_find_the_clusters(field) -> None:
    errors = [error(field, baselines.clustered(field, bits)) for bits in (1, 3, 5)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.2
    assert field.encoding.mode == "full" and baselines.clustered(field, 3).encoding.mode == "fixed"
    with pytest.raises(ValueError, match="expected full"):
        baselines.clustered(baselines.clustered(field, 3), 3)


def test_half_precision_is_float16(field) -> None:
    table = baselines.half_precision(field).encoding.table()
    assert torch.equal(table, field.encoding.values.half().float())


def test_sizes_by_hand(field) -> None:
    vertices = field.encoding.octree.num_vertices
    full, low = baselines.sizes(field), baselines.sizes(field, axes=4)
    assert full.grid == 2 * 16 * vertices and low.grid == 2 * (4 * vertices + 2 * 5 * 16)
    assert full.rest == low.rest and full.total == full.grid + full.rest
    # Octree and decoder are the same in all files.
    coded = baselines.sizes(baselines.clustered(field, 4))
    assert abs(coded.rest - full.rest) < 8
    assert baselines.packed_bytes(baselines.clustered(field, 4)) == -(-vertices * 4 // 8) + 2 * 16 * 16 * 2


def test_training_changes_name_each_method() -> None:
    assert baselines.training_changes("random", 2) == {"compression": "fixed", "bits": 2, "quantise_from": 0.0}
    assert baselines.training_changes("fine-tuned", 6) == {"compression": "fixed", "bits": 6}
    assert baselines.training_changes("logits", 4) == {"compression": "logits", "bits": 4}
