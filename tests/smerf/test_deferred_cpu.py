"""The vectorised network against the one it stands for."""

import numpy as np
import pytest
import torch

from radcomp_plugins.smerf.deferred import DeferredNetwork, shade
from radcomp_plugins.smerf.deferred_cpu import evaluate_shared
from radcomp_plugins.smerf.layout import Layout


@pytest.mark.parametrize("activation", ["elu", "relu"])
@pytest.mark.parametrize("concat, width", [(True, 16), (False, 8)])
@pytest.mark.parametrize("count", [1, 37, 1030])
def test_same_as_the_module(activation, concat, width, count):
    layout = Layout(32, 16, activation=activation, feature_concat=concat)
    network = DeferredNetwork(layout, 3, width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    channels = 14 if concat else 7
    features, accumulation = torch.rand(count, channels), torch.rand(count)
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    layers = network.at(torch.tensor([0.2, -0.4, 0.9]), 0)
    inputs = shade(features, accumulation, torch.full((3,), 0.7))
    expected = network.apply_layers(layers, inputs, directions).detach()
    arrays = [(kernel.detach().numpy(), bias.detach().numpy()) for kernel, bias in layers]
    found = evaluate_shared(arrays, activation, features.numpy(), accumulation.numpy(), 0.7, directions.numpy())
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_network_for_other_features_is_refused():
    layers = [(np.zeros((41, 16), np.float32), np.zeros(16, np.float32))] * 3
    rays = np.zeros((5, 7), np.float32), np.zeros(5, np.float32), 0.5, np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="network of"):
        evaluate_shared(layers, "elu", *rays)
    layers = [(np.zeros(shape, np.float32), np.zeros(shape[1], np.float32)) for shape in ((34, 16), (16, 16), (16, 3))]
    with pytest.raises(ValueError, match="5 rays"):
        evaluate_shared(layers, "elu", *rays[:3], np.zeros((4, 3), np.float32))
