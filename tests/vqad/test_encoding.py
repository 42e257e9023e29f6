"""The codebook encoding: choice by index, gradients straight through it, warm starts, other octrees, checkpoints."""

from typing import Any

import numpy as np
import pytest
import torch

from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.octree_lookup import _vertices_read_torch, interpolate, locate, vertices_read
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.encoding import VQADEncoding, octree_of


def octree(seed: int = 0, count: int = 40, finest: int = 4) -> Octree:
    return Octree.from_finest(np.random.default_rng(seed).integers(0, 8**finest, count), finest, 2)


def encoding(mode: Any = "logits", bits: int = 3, **changes: Any) -> VQADEncoding:
    return VQADEncoding(octree(), 16, bits, mode, init_std=1.0, **changes)


@pytest.mark.parametrize("mode", ["logits", "latent", "fixed"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_forward_is_the_indexed_code(mode: Any, bits: int) -> None:
    made = encoding(mode, bits)
    indices = made.current_indices()
    assert indices.dtype == torch.uint8 and int(indices.max()) < 2**bits
    level = made.octree.level_of_vertices()
    wanted = made.codebook[level, indices.long()]
    assert torch.equal(made.table(), wanted)
    points = torch.rand(500, 3)
    nodes = locate(made.octree, points)
    assert torch.equal(made(points), interpolate(wanted, made.octree, points, nodes))
    assert made(points.view(5, 100, 3)).shape == (5, 100, 16)
    assert made.get_out_dim() == 16


def test_codebook_gradient_is_chosen() -> None:
    grads = []
    for kind in ("hard", "soft"):
        torch.manual_seed(0)
        made = encoding("logits", codebook_gradient=kind)
        made(torch.rand(200, 3)).sum().backward()
        assert made.codebook.grad is not None and made.logits.grad is not None
        grads.append(made.codebook.grad)
    assert not torch.allclose(*grads)


def test_latents_get_the_gradient_of_their_code() -> None:
    made = encoding("latent")
    grad = torch.randn(made.octree.num_vertices, 16)
    made.table().backward(grad)
    assert torch.equal(made.values.grad, grad)  # type: ignore[arg-type]
    level, index = made.octree.level_of_vertices(), made.current_indices().long()
    wanted = torch.zeros_like(made.codebook).index_put((level, index), grad, accumulate=True)
    assert torch.allclose(made.codebook.grad, wanted, atol=1e-4)  # type: ignore[arg-type]


def test_only_touched_vertices_are_looked_up() -> None:
    made = encoding("logits")
    points = torch.rand(30, 3)
    nodes = locate(made.octree, points)
    rows = vertices_read(made.octree, nodes)
    corners = {int(v) for node in nodes[nodes >= 0].tolist() for v in made.octree.corners[node]}
    assert rows.tolist() == sorted(corners)
    assert torch.equal(rows, _vertices_read_torch(made.octree, nodes))
    made(points)
    assert made.last_touched is not None and torch.equal(made.last_touched, rows)
    assert len(rows) < made.octree.num_vertices


def test_memory_does_not_grow_with_samples_times_codes() -> None:
    """Nothing that a look-up keeps for backward has as many numbers as samples x 8 x codes."""
    made, sizes = encoding("logits", bits=8), []
    points = torch.rand(3000, 3)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        made(points).sum().backward()
    assert 0 < max(sizes) <= made.octree.num_vertices * 256 < len(points) * 8 * 256


@pytest.mark.parametrize("level", [2, 3])
def test_a_level_of_detail_is_the_truncated_octree(level: int) -> None:
    made = encoding("fixed")
    points = torch.rand(300, 3)
    short = VQADEncoding(made.octree.truncated(level), 16, 3, "fixed")
    count = short.octree.num_vertices
    short.indices = made.indices[:count]
    short.codebook.data = made.codebook.data[: level - 1].clone()
    made.level = level
    assert torch.equal(made(points), short(points))


@pytest.mark.parametrize("mode", ["logits", "latent", "fixed"])
def test_quantise_starts_from_clusters(mode: Any) -> None:
    made = encoding("full")
    centres = torch.randn(8, 16) * 5
    made.values.data = centres[torch.randint(8, (len(made.values),))] + 0.01 * torch.randn(len(made.values), 16)
    before = made.table().detach().clone()
    made.quantise(mode)
    assert made.mode == mode
    assert float((made.table() - before).abs().max()) < 0.1
    assert (len(made.values) > 0) == (mode == "latent") and (len(made.logits) > 0) == (mode == "logits")
    with pytest.raises(ValueError, match="from mode"):
        made.quantise(mode)


def test_fewer_vertices_than_codes() -> None:
    made = VQADEncoding(Octree.from_finest(np.array([3]), 2, 1), 16, 8, "full", init_std=1.0)
    before = made.table().detach().clone()
    made.quantise("fixed")
    assert torch.allclose(made.table(), before, atol=1e-6)


@pytest.mark.parametrize("mode", ["full", "logits", "latent", "fixed"])
def test_restructure_keeps_what_both_octrees_have(mode: Any) -> None:
    made = encoding(mode)
    parameters = list(made.parameters())
    old, before = made.octree, made.table().detach().clone()
    kept = old.voxels[-1][::2]
    made.restructure(Octree.from_finest(kept, 4, 2))
    assert list(map(id, made.parameters())) == list(map(id, parameters))
    from radcomp_plugins.core.octree import matching_rows

    rows = matching_rows(old, made.octree)
    assert bool((rows >= 0).all())
    assert torch.equal(made.table(), before[rows])
    made.restructure(Octree.from_finest(kept << 3, 5, 2))
    assert made.table().shape == (made.octree.num_vertices, 16)
    assert len(made.codebook) == (0 if mode == "full" else 4)


@pytest.mark.parametrize("mode", ["full", "logits", "latent", "fixed"])
def test_checkpoint_of_another_octree(mode: Any) -> None:
    made = encoding(mode)
    other = VQADEncoding(Octree.dense(1, 1), 16, 3, "full")
    other.load_state_dict(made.state_dict())
    assert other.mode == mode
    assert other.octree.levels == made.octree.levels
    points = torch.rand(100, 3)
    assert torch.equal(other(points), made(points))


def test_checkpoint_that_is_broken() -> None:
    with pytest.raises(InputError, match="vqad checkpoint"):
        octree_of([2, 0, 2], np.array([5, 3]))


def test_commitment_by_hand() -> None:
    made = encoding("latent")
    assert float(made.commitment()) == 0.0
    made(torch.rand(50, 3))
    rows = made.last_touched
    level, index = made.octree.level_of_vertices(), made.current_indices().long()
    codes = made.codebook[level, index]
    wanted = (made.values - codes)[rows].square().mean()
    commitment = made.commitment()
    assert float(commitment) == pytest.approx(float(wanted), rel=1e-5)
    commitment.backward()
    pull = 2 * (made.values - codes)[rows] / (len(rows) * 16)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(made.values.grad[rows], pull, atol=1e-7)  # type: ignore[index]
    assert made.codebook.grad is None or not bool(made.codebook.grad.any())
    assert float(made.commitment()) == 0.0


def test_entropy_and_perplexity() -> None:
    made = encoding("logits", bits=2)
    with torch.no_grad():
        made.logits.zero_()
        made.logits[:, 1] = 20.0
    made(torch.rand(50, 3))
    assert float(made.index_entropy()) < 1e-3
    assert torch.allclose(made.perplexity(), torch.ones(3))
    made.logits.data = 20.0 * torch.eye(4)[torch.arange(len(made.logits)) % 4]
    assert torch.allclose(made.perplexity(), torch.full((3,), 4.0), rtol=0.01)
    assert float(made.index_entropy()) == pytest.approx(2.0, abs=0.02)
    made.index_entropy().backward()
    assert made.logits.grad is not None and bool(torch.isfinite(made.logits.grad).all())


def test_no_indices_at_full_precision() -> None:
    with pytest.raises(ValueError, match="full"):
        encoding("full").current_indices()


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        encoding(bits=bits)
