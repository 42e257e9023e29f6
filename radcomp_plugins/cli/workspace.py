"""The folder of a long command: which of its parts are finished, and with which settings."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from radcomp_plugins.core.files import read_json, refuse_overwrite, write_json
from radcomp_plugins.errors import InputError

LEDGER = "demo.json"
RESULT = "report.json"


class Workspace:
    """Runs each part once: a command that was interrupted goes on where it was.

    Attributes:
        folder: absolute path.
        settings: what the finished parts depend on.
        seconds: part -> seconds it took, in the order they ran.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], owned: Sequence[str], *, overwrite: bool = False
    ) -> None:
        """Open or make the folder.

        Args:
            folder: Where everything goes.
            settings: JSON values; parts made with other settings do not count.
            owned: Names of the files and folders in it that the command makes; nothing else is ever removed.
            overwrite: Whether a finished result, or one of other settings, may be replaced.

        Raises:
            InputError: The folder holds something else, or what only --overwrite replaces.
        """
        self.folder = Path(folder).expanduser().absolute()
        self.settings = settings
        self.seconds: dict[str, float] = {}
        ledger = self.folder / LEDGER
        if not ledger.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise InputError(
                    f"{folder} holds files, but no {LEDGER} of a demo: give an empty or a new --output-dir"
                )
            refuse_overwrite(self.folder)
        else:
            self._take_over(read_json(ledger), owned, overwrite)
        self._save()

    def _take_over(self, known: dict[str, Any], owned: Sequence[str], overwrite: bool) -> None:
        same = known.get("settings") == self.settings
        finished = (self.folder / RESULT).exists()
        if not overwrite and finished:
            raise InputError(f"{self.folder} holds a finished demo: --overwrite runs it again")
        if not overwrite and not same:
            others = [key for key in self.settings if known.get("settings", {}).get(key) != self.settings[key]]
            raise InputError(
                f"{self.folder} holds a demo with another {' and '.join(others)}: --overwrite replaces it, or give "
                "another --output-dir"
            )
        if same and not finished:
            self.seconds = {str(key): float(value) for key, value in known.get("seconds", {}).items()}
            return
        # First what marks the result as finished, so that a kill in between leaves no report without its files.
        (self.folder / RESULT).unlink(missing_ok=True)
        for name in owned:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _save(self) -> None:
        write_json(self.folder / LEDGER, {"schema_version": 1, "settings": self.settings, "seconds": self.seconds})

    def do(self, name: str, function: Callable[[], None], title: str) -> None:
        """Run a part, unless it is finished, under a headline; then note its time."""
        from nerfstudio.utils.rich_utils import CONSOLE

        if name in self.seconds:
            CONSOLE.rule(f"{title} (finished before)")
            return
        CONSOLE.rule(title)
        began = time.perf_counter()
        function()
        self.seconds[name] = round(time.perf_counter() - began, 3)
        self._save()
