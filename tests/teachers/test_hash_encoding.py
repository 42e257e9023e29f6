"""The CPU twin of nerfstudio's HashEncoding: same numbers, same parameters, same gradients."""

import pytest
import torch
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.field_components.mlp import MLPWithHashEncoding

from radcomp_plugins.teachers import hash_encoding
from radcomp_plugins.teachers.hash_encoding import CpuTwinHashEncoding, use_cpu_twin


def encoding(**options: int) -> HashEncoding:
    torch.manual_seed(0)
    sizes = {"num_levels": 6, "max_res": 300, "log2_hashmap_size": 9, "hash_init_scale": 1.0, **options}
    return HashEncoding(implementation="torch", **sizes)


@pytest.mark.parametrize("options", [{}, {"features_per_level": 1}, {"features_per_level": 4}, {"num_levels": 1}])
def test_values_and_gradients_are_nerfstudios(options):
    stock, twin = encoding(**options), encoding(**options)
    assert use_cpu_twin(twin) == 1
    x = torch.rand(400, 3)
    x[:50] = (16 * x[:50]).round() / 16  # on grid points
    x[0], x[1] = 0.0, 1.0
    grads = torch.randn(400, stock.get_out_dim())
    results = []
    for module in (stock, twin):
        points = x.clone().requires_grad_()
        out = module(points)
        out.backward(grads)
        # On grid points nerfstudio's floor and ceiling meet, where its slope is that of nothing.
        assert points.grad is not None
        results.append((out, module.hash_table.grad, points.grad[50:]))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(results[1][2], results[0][2], atol=2e-2, rtol=1e-4)


def test_it_is_the_kernels_that_compute(monkeypatch):
    twin = encoding()
    use_cpu_twin(twin)
    calls = []
    original = hash_encoding.hash_encode
    monkeypatch.setattr(hash_encoding, "hash_encode", lambda *args: calls.append(1) or original(*args))
    twin(torch.rand(5, 3))
    assert calls == [1]


def test_any_batch_shape():
    twin, stock = encoding(), encoding()
    use_cpu_twin(twin)
    x = torch.rand(4, 5, 3)
    torch.testing.assert_close(twin(x), stock(x), atol=1e-6, rtol=1e-6)


def test_swapping_keeps_objects_parameters_and_state():
    network = MLPWithHashEncoding(num_levels=2, log2_hashmap_size=6, max_res=20, layer_width=8, out_dim=4)
    before, state = [id(p) for p in network.parameters()], {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    assert use_cpu_twin(network) == 1
    assert [id(p) for p in network.parameters()] == before
    assert list(network.state_dict()) == list(state)
    network(torch.rand(9, 3)).sum().backward()
    optimizer.step()
    changed = [key for key, value in network.state_dict().items() if not torch.equal(value, state[key])]
    assert any(key.endswith("hash_table") for key in changed)
    assert isinstance(network.model[0], HashEncoding)


def test_a_second_time_and_subclasses_are_left_alone():
    class Other(HashEncoding):
        pass

    both = torch.nn.Sequential(encoding(), Other(num_levels=2, log2_hashmap_size=4, implementation="torch"))
    assert use_cpu_twin(both) == 1
    assert type(both[0]) is CpuTwinHashEncoding and type(both[1]) is Other
    assert use_cpu_twin(both) == 0


def test_position_gradients_can_be_left_out():
    twin = encoding()
    use_cpu_twin(twin, position_gradients=False)
    x = torch.rand(10, 3, requires_grad=True)
    twin(x).sum().backward()
    assert x.grad is None and twin.hash_table.grad is not None
