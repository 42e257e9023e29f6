"""The parts of the study that decide what is compared."""

import json
from types import SimpleNamespace

import pytest
import torch
from kilo_scenes import shell_scene

from benchmarks.kilonerf_study import CHANGES, Sweep, Workshop, few_views, jumps
from radcomp_plugins.errors import InputError
from radcomp_plugins.kilonerf.grid import CellLookup
from radcomp_plugins.kilonerf.scene import NetworkShape


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 20), ("val", 3), ("test", 4)):
        frames = [{"file_path": f"./{split}/r_{k}", "transform_matrix": []} for k in range(count)]
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    return folder


def names(folder, split):
    return [frame["file_path"] for frame in json.loads((folder / f"transforms_{split}.json").read_text())["frames"]]


def test_few_views_are_spread_over_the_photos_and_the_others_stay(dataset, tmp_path):
    few = few_views(dataset, tmp_path / "few", 4, seed=1)
    chosen = [int(name.rsplit("_", 1)[1]) for name in names(few, "train")]
    assert sorted((b - a) % 20 for a, b in zip(chosen, chosen[1:] + chosen[:1], strict=True)) == [5, 5, 5, 5]
    assert names(few, "test") == [str((dataset / f"test/r_{k}").resolve()) for k in range(4)]
    assert names(few_views(dataset, tmp_path / "again", 4, seed=1), "train") == names(few, "train")
    with pytest.raises(InputError, match="has 20 training views, expected 1 to as many"):
        few_views(dataset, tmp_path / "many", 21, seed=0)


def test_steps_are_scaled_once(dataset, tmp_path):
    shop = Workshop(tmp_path, dataset, 0.1)
    assert shop.config("kilonerf-tiny", "a").max_num_iterations == 3000
    assert shop.config("nerfacto-tiny", "b").max_num_iterations == 800


@pytest.mark.parametrize("name", CHANGES)
def test_changes_name_settings_that_there_are(name, dataset, tmp_path):
    shop = Workshop(tmp_path, dataset, 0.1)
    config = shop.config("kilonerf-tiny", name, **CHANGES[name])
    for key, value in CHANGES[name].items():
        owner = config.pipeline.model if key.startswith("model__") else config.pipeline
        assert getattr(owner, key.removeprefix("model__")) == value
    assert set(vars(config.pipeline)) == set(vars(shop.config("kilonerf-tiny", "default").pipeline))
    assert set(vars(config.pipeline.model)) == set(vars(shop.config("kilonerf-tiny", "default").pipeline.model))


def test_a_change_that_there_is_not_is_one_line(dataset, tmp_path):
    with pytest.raises(InputError, match="--only 'grid 7': expected some of default, "):
        Sweep(dataset, tmp_path / "teacher", tmp_path / "out.json", only=("grid 7",)).main()


def test_jumps_are_those_between_cells():
    lookup = CellLookup(shell_scene(NetworkShape(width=8, position_octaves=2))[0].grid)

    def ask(points, directions):
        even = lookup.locate(points)[0].double() % 2 == 0
        # Every network says something of its own, and the same all over its cell.
        return torch.where(even, 0.5, 1.5).float(), torch.where(even, 0.25, 0.75).float()[:, None].expand(-1, 3)

    found = jumps(SimpleNamespace(lookup=lookup, ask=ask), 4000, 0)
    assert found["opacity, inside"] == found["colour, inside"] == 0.0
    whole = float(torch.exp(torch.tensor(-0.5)) - torch.exp(torch.tensor(-1.5)))
    assert 0.2 * whole < found["opacity, face"] <= whole and 0.1 < found["colour, face"] <= 0.5
