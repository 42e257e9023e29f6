"""Vector quantisation of SH: who is coded, what weighs, and that it repeats."""

import pytest
import torch

from radcomp_plugins.lightgaussian.quantise import Quantised, quantise

OPTIONS = {"ratio": 1.0, "codebook_size": 8, "iterations": 20, "batch_size": 128, "decay": 0.8, "seed": 3}


def vectors(count: int = 400, dims: int = 6) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("iterations", [0, 20])
def test_significant_vectors_pull_the_codes(iterations):
    data = vectors()
    weights = torch.ones(len(data))
    weights[::16] = 500.0
    options = {**OPTIONS, "codebook_size": 32, "iterations": iterations}
    weighted = quantise(data, weights, **options)
    plain = quantise(data, torch.ones(len(data)), **options)

    def error(result: Quantised, members: slice) -> float:
        return float((result.decode(data)[members] - data[members]).square().mean())

    assert error(weighted, slice(0, None, 16)) < 0.5 * error(plain, slice(0, None, 16))
    if iterations == 0:
        # It is paid for by the others.
        assert error(weighted, slice(1, None, 16)) > error(plain, slice(1, None, 16))


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.0])
def test_the_least_significant_share_is_coded_and_the_rest_keeps_its_own(ratio):
    data = vectors()
    significance = torch.rand(len(data), generator=torch.Generator().manual_seed(1))
    result = quantise(data, significance, **{**OPTIONS, "ratio": ratio})
    coded = result.labels >= 0
    assert int(coded.sum()) == round(ratio * len(data))
    if ratio < 1:
        assert significance[coded].max() < significance[~coded].min()
    assert set(result.labels[~coded].tolist()) <= {-1}
    decoded = result.decode(data)
    assert torch.equal(decoded[~coded], data[~coded])
    assert torch.equal(decoded[coded], result.codebook[result.labels[coded].long()])


def test_without_significance_a_random_share_is_coded():
    result = quantise(vectors(), None, **{**OPTIONS, "ratio": 0.5})
    coded = result.labels >= 0
    assert int(coded.sum()) == 200
    assert 60 < int(coded[:200].sum()) < 140


def test_each_vector_has_its_nearest_code():
    data = vectors()
    result = quantise(data, torch.ones(len(data)), **OPTIONS)
    distances = torch.cdist(data.double(), result.codebook.double())
    chosen = distances.gather(1, result.labels.long()[:, None])[:, 0]
    assert bool((chosen <= distances.min(dim=1).values + 1e-5).all())


def test_same_seed_same_bits():
    data, significance = vectors(), torch.rand(400, generator=torch.Generator().manual_seed(1))
    first = quantise(data, significance, **OPTIONS)
    torch.manual_seed(123)
    second = quantise(data, significance, **OPTIONS)
    assert torch.equal(first.codebook, second.codebook) and torch.equal(first.labels, second.labels)
    other = quantise(data, significance, **{**OPTIONS, "seed": 4})
    assert not torch.equal(first.codebook, other.codebook)


def test_moving_average_updates_change_the_codebook():
    data, weights = vectors(), torch.ones(400)
    start = quantise(data, weights, **{**OPTIONS, "iterations": 0})
    assert not torch.equal(start.codebook, quantise(data, weights, **OPTIONS).codebook)


def test_fewer_vectors_than_codes_have_one_each():
    data = vectors(count=5)
    result = quantise(data, torch.ones(5), **{**OPTIONS, "iterations": 0})
    assert len(result.codebook) == 5
    torch.testing.assert_close(result.decode(data), data)


def test_a_share_that_rounds_to_nobody_codes_nobody():
    data = vectors(count=20)
    result = quantise(data, torch.ones(20), **{**OPTIONS, "ratio": 0.001})
    assert result.codebook.shape == (0, 6)
    assert torch.equal(result.decode(data), data)


def test_vectors_no_view_saw_are_coded_all_the_same():
    data = vectors()
    result = quantise(data, torch.zeros(len(data)), **OPTIONS)
    assert bool(result.codebook.isfinite().all())
    assert float((result.decode(data) - data).square().mean()) < 0.8 * float(data.square().mean())
