"""k-means and the moving average against plain float64 references, and the same bits for any number of threads."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from radcomp_plugins.core import threads, vq


@pytest.fixture
def thread_count() -> Iterator[None]:
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def error(x: Tensor, codebook: Tensor, labels: Tensor, w: Tensor) -> float:
    return float((w.double() * (x.double() - codebook[labels].double()).square().sum(1)).sum() / w.double().sum())


def clustered(n: int = 3000, d: int = 9, k: int = 40) -> tuple[Tensor, Tensor]:
    centres = torch.randn(k, d) * 3
    return centres[torch.randint(k, (n,))] + 0.3 * torch.randn(n, d), torch.rand(n) ** 3


@given(st.integers(1, 300), st.integers(1, 200), st.integers(1, 48), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_assign_finds_the_nearest(n: int, k: int, d: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, codes = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator) + 5.0
    labels = vq.assign(x, codes)
    distances = torch.cdist(x.double(), codes.double())
    found = distances.gather(1, labels[:, None])[:, 0]
    assert bool((found <= distances.min(dim=1).values * (1 + 1e-5) + 1e-6).all())


def test_assign_takes_the_lower_of_equal_codes() -> None:
    codes = torch.randn(300, 5)
    codes[200:] = codes[:100]
    assert torch.equal(vq.assign(codes, codes), torch.arange(300) % 200)


def test_kmeans_is_bit_identical_for_any_thread_count(thread_count: None) -> None:
    x, w = clustered()
    results = []
    for count in (1, 2, 4):
        threads.set_num_threads(count)
        results.append(vq.kmeans(x, 100, w, iters=5, seed=3))
    for codebook, labels in results[1:]:
        assert torch.equal(codebook, results[0][0])
        assert torch.equal(labels, results[0][1])
    other, _ = vq.kmeans(x, 100, w, iters=5, seed=4)
    assert not torch.equal(other, results[0][0])


def test_kmeans_is_a_fixed_point_of_lloyd() -> None:
    x, w = clustered(1000, 4, 8)
    codebook, labels = vq.kmeans(x, 8, w, iters=100)
    assert torch.equal(torch.cdist(x.double(), codebook.double()).argmin(1), labels)
    for j in range(8):
        mine = labels == j
        mean = (w[mine, None].double() * x[mine].double()).sum(0) / w[mine].double().sum()
        torch.testing.assert_close(codebook[j].double(), mean, rtol=1e-5, atol=1e-5)


def test_kmeans_finds_the_clusters_and_beats_random_codes() -> None:
    x, w = clustered()
    codebook, labels = vq.kmeans(x, 40, w, iters=10)
    random = x[torch.randperm(len(x))[:40]]
    assert error(x, codebook, labels, w) < 0.25 * error(x, random, vq.assign(x, random), w)
    assert int(torch.bincount(labels, minlength=40).min()) > 0


def test_weights_are_what_is_minimised() -> None:
    x = torch.randn(4000, 6)
    w = torch.where(x[:, 0] > 0, 50.0, 0.5)
    weighted, plain = vq.kmeans(x, 64, w), vq.kmeans(x, 64)
    assert error(x, *weighted, w) < 0.9 * error(x, *plain, w)
    assert error(x, *weighted, torch.ones(4000)) > error(x, *plain, torch.ones(4000))


def test_as_many_codes_as_vectors() -> None:
    x = torch.randn(50, 3)
    codebook, labels = vq.kmeans(x, 50)
    torch.testing.assert_close(codebook[labels], x)


def test_fewer_different_vectors_than_codes() -> None:
    x = torch.randn(3, 4).repeat(20, 1)
    codebook, labels = vq.kmeans(x, 10, torch.rand(60))
    assert codebook.shape == (10, 4)
    torch.testing.assert_close(codebook[labels], x)


def test_no_cluster_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = clustered()
    # Seeds of which all but one are nearest to nothing.
    seeds = np.concatenate([x[:1].numpy(), np.full((39, 9), 1e3, np.float32)])
    monkeypatch.setattr(vq, "_seed_codes", lambda points, w, k, rng: seeds[:k])
    codebook, labels = vq.kmeans(x, 40, w, iters=10)
    assert int(torch.bincount(labels, minlength=40).min()) > 0
    assert error(x, codebook, labels, w) < 0.5 * error(x, *vq.kmeans(x, 1, w), w)


def test_empty_codes_go_to_the_largest_weighted_errors() -> None:
    points = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    codebook = np.array([[0.0], [50.0], [60.0]], np.float32)
    labels, errors = np.zeros(4, np.int64), np.array([0, 1, 4, 9], np.float32)
    vq._refill_empty(codebook, points, np.array([1.0, 100.0, 1.0, 2.0]), labels, errors)
    assert codebook[:, 0].tolist() == [0.0, 1.0, 3.0]


def test_zero_weights_count_alike() -> None:
    x, _ = clustered(500, 3, 5)
    a, b = vq.kmeans(x, 7, torch.zeros(500)), vq.kmeans(x, 7)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_ema_update_is_the_papers_formula() -> None:
    codebook, x, w = torch.randn(5, 4), torch.randn(50, 4), torch.rand(50) * 100
    labels = torch.randint(4, (50,))
    new = vq.ema_update(codebook, x, labels, w, decay=0.8)
    for j in range(5):
        mine = labels == j
        expected = codebook[j]
        if bool(mine.any()):
            expected = 0.8 * codebook[j] + 0.2 * (w[mine, None] * x[mine]).sum(0) / w[mine].sum()
        torch.testing.assert_close(new[j], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(new[4], codebook[4])


def test_ema_update_converges_to_the_weighted_means() -> None:
    x, w = clustered(800, 3, 6)
    codebook, labels = vq.kmeans(x, 6, w, iters=50)
    moved = codebook + 0.05
    for _ in range(60):
        moved = vq.ema_update(moved, x, labels, w)
    torch.testing.assert_close(moved, codebook, rtol=1e-4, atol=1e-4)


def test_reseed_replaces_the_unused_codes_by_the_worst_vectors() -> None:
    x = torch.tensor([[0.0, 0.0], [9.0, 9.0], [5.0, 5.0], [0.1, 0.0]])
    codebook = torch.tensor([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]])
    new = vq.reseed_unused(codebook, torch.tensor([4, 0, 0]), x, torch.tensor([1.0, 1.0, 100.0, 1.0]))
    assert new.tolist() == [[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]]


@pytest.mark.parametrize("k", [0, 11])
def test_code_count_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 10"):
        vq.kmeans(torch.randn(10, 2), k)


def test_bad_input() -> None:
    x = torch.randn(4, 2)
    for bad in (torch.full((4, 2), np.nan), torch.empty(0, 2)):
        with pytest.raises(ValueError, match="vectors"):
            vq.kmeans(bad, 1)
    for w in (torch.ones(3), torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0, np.inf])):
        with pytest.raises(ValueError, match="weights"):
            vq.kmeans(x, 2, w)
    with pytest.raises(ValueError, match="labels"):
        vq.ema_update(x, x, torch.tensor([0, 1, 2, 4]), torch.ones(4))


@pytest.mark.gpu
def test_cuda_finds_the_same_clusters() -> None:
    x, w = clustered()
    cpu, gpu = vq.kmeans(x, 100, w), vq.kmeans(x.cuda(), 100, w.cuda())
    assert gpu[0].is_cuda and gpu[1].is_cuda
    assert error(x, gpu[0].cpu(), gpu[1].cpu(), w) == pytest.approx(error(x, *cpu, w), rel=0.02)
