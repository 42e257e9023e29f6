from pathlib import Path

import pytest

from radcomp_plugins.cli.scene import Scene
from radcomp_plugins.errors import InputError


def test_scene_writes_a_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from radcomp_plugins.scenes import dataset, shapes, still_life, world

    tiny = world.Scene({"m": world.Material()}, [shapes.sphere(0.7, "m", texel=0.3)], gather=4)
    kind = dataset.SceneKind(lambda seed: tiny, still_life.cameras, True, 50)
    monkeypatch.setitem(dataset.SCENES, "still-life", kind)
    Scene("still-life", tmp_path / "s", views=3, size=20, width=24).main()
    assert len(list((tmp_path / "s" / "images").iterdir())) == 3
    assert "2 training and 1 test views" in " ".join(capsys.readouterr().out.split())


def test_size_zero_is_not_taken_for_absent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="width is 0"):
        Scene("still-life", tmp_path / "s", size=0).main()
    with pytest.raises(InputError, match="height is 0"):
        Scene("still-life", tmp_path / "s", height=0).main()
