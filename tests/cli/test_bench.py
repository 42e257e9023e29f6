"""radcomp bench: it measures what it says, and refuses what it cannot."""

import json

import pytest

from radcomp_plugins.cli.main import run
from radcomp_plugins.errors import InputError


def test_rasterizer_prints_both_times(capsys):
    run(
        ["bench", "rasterizer", "--num-gaussians", "200", "--size", "24", "--repeats", "3", "--device", "cpu", "--json"]
    )
    result = json.loads(capsys.readouterr().out)
    assert result["num_gaussians"] == 200 and result["device"] == "cpu" and result["threads"] >= 1
    for name in ("forward", "forward_backward"):
        assert 0 < result[name]["min_ms"] <= result[name]["median_ms"]


def test_wrong_numbers_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        run(["bench", "rasterizer", "--size", "0"])
