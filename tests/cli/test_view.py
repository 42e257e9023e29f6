"""`radcomp view` serves its page, and one node of Gaussians for each file; ports that cannot be had are refused."""

import math
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from radcomp_plugins.cli.main import run
from radcomp_plugins.cli.view import View, claim_port
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ply import write_ply
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.viewer import FLATTEST, ONE, SHOWN_RADIUS, SPACING, Shown, SplatViewer, covariances


def scene(count: int = 30) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    means, quats, scales = (torch.randn(count, n, generator=generator) for n in (3, 4, 3))
    return Gaussians(7 + means, quats, scales - 3, torch.ones(count), torch.zeros(count, 3), torch.zeros(count, 0, 3))


@pytest.fixture
def viewer() -> Iterator[SplatViewer]:
    """Two files, served."""
    shown = [Shown("a.ply", 2040, scene()), Shown("b.rcs", 300, scene(20))]
    viewer = SplatViewer(shown, "127.0.0.1", claim_port("127.0.0.1", 0), "z")
    yield viewer
    viewer.stop()


def test_the_page_is_served_with_a_node_and_a_label_for_each_file(viewer: SplatViewer) -> None:
    with urllib.request.urlopen(viewer.url, timeout=30) as answer:
        assert answer.status == 200 and b"<html" in answer.read().lower()
    assert viewer.url.startswith("http://127.0.0.1:")
    assert [type(handle).__name__ for handle in viewer.splats] == ["GaussianSplatHandle"] * 2
    assert viewer.files[1].label == "b.rcs: 300 bytes, 20 Gaussians"
    apart = np.array(viewer.splats[1].position) - np.array(viewer.splats[0].position)
    assert apart == pytest.approx([SPACING * SHOWN_RADIUS, 0, 0])


def test_switches_and_layout(viewer: SplatViewer) -> None:
    viewer.switches[0].value = False
    viewer.place()
    assert [handle.visible for handle in viewer.splats] == [handle.visible for handle in viewer.labels] == [False, True]
    viewer.layout.value, viewer.chosen.value = ONE, viewer.names[0]
    viewer.place()
    assert [handle.visible for handle in viewer.splats] == [True, False]
    assert np.array(viewer.splats[0].position) == pytest.approx(np.zeros(3))


@pytest.mark.parametrize("up, forward", [("z", (0, 1, 0)), ("y-down", (0, 0, 1)), ("y", (0, 0, -1)), ("x", (0, 0, 1))])
def test_the_camera_stands_before_the_row_with_the_first_file_on_the_left(
    viewer: SplatViewer, up: str, forward: tuple[int, int, int]
) -> None:
    camera = SimpleNamespace(up_direction=np.zeros(3), position=np.zeros(3), look_at=np.zeros(3))
    viewer.turn(up)
    viewer.aim(camera)
    look = camera.look_at - camera.position
    look /= np.linalg.norm(look)
    assert look @ np.array(forward) > 0.9 and look @ camera.up_direction < 0
    right = np.cross(look, camera.up_direction)
    places = [right @ (np.array(handle.position) - camera.look_at) for handle in viewer.splats]
    assert places[0] == pytest.approx(-places[1]) and places[0] < -1


def test_covariances_are_those_of_the_axes() -> None:
    """A quarter turn about z: what is long along x becomes long along y."""
    half = math.sqrt(0.5)
    scales = torch.tensor([[2.0, 0.5, 1.0], [1.0, 1e-9, 1.0]]).log()
    quats = torch.tensor([[half, 0, 0, half], [3.0, 0, 0, 0]])
    g = Gaussians(torch.zeros(2, 3), quats, scales, torch.zeros(2), torch.zeros(2, 3), torch.zeros(2, 0, 3))
    found = covariances(g, 10.0)
    assert torch.allclose(found[0], torch.diag(torch.tensor([25.0, 400.0, 100.0], dtype=torch.float64)), atol=1e-4)
    # A flat one keeps enough thickness to be factored.
    assert float(found[1, 1, 1]) == pytest.approx((10 * FLATTEST) ** 2)
    torch.linalg.cholesky(found)


def test_what_is_sent_is_centred_and_of_one_size(monkeypatch: pytest.MonkeyPatch, viewer: SplatViewer) -> None:
    sent = {}
    monkeypatch.setattr("radcomp_plugins.splats.viewer.add_gaussian_splats", lambda scene, name, **a: sent.update(a))
    viewer._add_splats(0, viewer.files[0])
    assert abs(np.median(sent["centers"], axis=0)).max() < 0.5 * SHOWN_RADIUS
    assert sent["rgbs"] == pytest.approx(0.5) and sent["opacities"] == pytest.approx(1 / (1 + math.exp(-1)))
    spread = np.linalg.norm(sent["centers"], axis=1)
    assert 0.5 * SHOWN_RADIUS < np.quantile(spread, 0.85) < 2 * SHOWN_RADIUS


def test_the_command_serves_until_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ply(tmp_path / "a.ply", scene())
    answers = []

    def interrupt(seconds: float) -> None:
        address = capsys.readouterr().out.split("Open ")[1].split()[0]
        with urllib.request.urlopen(address, timeout=30) as answer:
            answers.append(answer.status)
        raise KeyboardInterrupt

    monkeypatch.setattr("radcomp_plugins.cli.view.wait", interrupt)
    run(["view", str(tmp_path / "a.ply"), "--port", "0"])
    assert answers == [200] and "Stopped" in capsys.readouterr().out


def test_addresses_that_cannot_be_had_and_no_file() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="is taken"):
        claim_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="expected 1 to 65535"):
        claim_port("127.0.0.1", 70000)
    with pytest.raises(InputError, match="cannot listen on 192.0.2.1"):
        claim_port("192.0.2.1", 0)
    with pytest.raises(InputError, match="at least one splat file"):
        View(()).main()
    with pytest.raises(InputError, match="no such file"):
        View((Path("none.ply"),), port=0).main()
