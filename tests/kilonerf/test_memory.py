"""What does not fit is refused with the number and what would."""

import re

import pytest

from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf import memory
from radcomp_plugins.kilonerf.networks import TinyNetworks
from radcomp_plugins.kilonerf.scene import NetworkShape


@pytest.fixture(autouse=True)
def one_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)


def test_parameters_are_counted_as_they_are() -> None:
    for shape in (NetworkShape(), NetworkShape(16, 4, 2)):
        assert memory.parameters_of(shape) == sum(p.numel() for p in TinyNetworks(1, shape).parameters())
    assert memory.parameters_of(NetworkShape()) == 6212


def test_too_many_networks() -> None:
    memory.check_networks(600, 16, NetworkShape(), 2048, "cpu")
    with pytest.raises(InputError, match="20,000 networks need 4.1 GB.*1.0 GB are free") as error:
        memory.check_networks(20_000, 64, NetworkShape(), 2048, "cpu")
    fits = int(re.findall(r"grid-longest (\d+)", str(error.value))[0])
    # Networks grow at least with the square of the resolution.
    memory.check_networks(int(20_000 * (fits / 64) ** 2), fits, NetworkShape(), 2048, "cpu")
    assert 20 < fits < 40


def test_too_many_voxels() -> None:
    memory.check_voxels((16, 16, 16), 16, "cpu")
    with pytest.raises(InputError, match="largest grid that fits") as error:
        memory.check_voxels((64, 64, 64), 16, "cpu")
    fits = int(re.findall(r"grid-longest (\d+)", str(error.value))[0])
    memory.check_voxels((fits, fits, fits), 16, "cpu")
    with pytest.raises(InputError):
        memory.check_voxels((fits + 2, fits + 2, fits + 2), 16, "cpu")
