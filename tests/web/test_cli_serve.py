"""`radcomp serve` from the command line."""

import functools
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from radcomp_plugins.cli.main import run
from radcomp_plugins.errors import InputError


def test_serves_until_interrupted(tmp_path: Path):
    (tmp_path / "scene_params.json").write_text("{}")
    command = [sys.executable, "-u", "-m", "radcomp_plugins.cli.main", "serve", str(tmp_path), "--port", "0"]
    # A shell that runs the tests in the background has them ignore interrupts, and this process would inherit that.
    heeds = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    try:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/\?asset=/asset/scene_params\.json", line):
                break
        assert found, process.stderr and process.stderr.read()
        with urllib.request.urlopen(found.group(0), timeout=10) as answer:
            assert b"radcomp viewer" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_is_no_asset_is_one_line(tmp_path: Path):
    with pytest.raises(InputError, match=r"no scene_params\.json"):
        run(["serve", str(tmp_path)])
