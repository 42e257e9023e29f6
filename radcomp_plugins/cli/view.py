"""`radcomp view FILE ...`: splat files beside each other in a browser."""

import socket
from dataclasses import dataclass
from pathlib import Path
from time import sleep as wait
from typing import Annotated, Literal

import tyro

from radcomp_plugins.errors import InputError

Up = Literal["x", "y", "z", "x-down", "y-down", "z-down"]


@dataclass
class View:
    """Show splat files side by side, or one at a time, in viser's viewer until Ctrl-C.

    Example: radcomp view scene.ply small.rcs
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Splat files of any format, or run or asset folders, all in one frame."""
    port: int = 7009
    """Port to listen on; 0 takes any free one."""
    host: str = "127.0.0.1"
    """Address to listen on. The default lets in this machine only; 0.0.0.0 lets in everybody who can reach it."""
    up: Up = "z"
    """Which way is up: z in nerfstudio's scenes, y-down in most files on the web. The panel changes it."""

    def main(self) -> None:
        """Read, serve, and wait."""
        if not self.files:
            raise InputError("no file to view: give at least one splat file")
        port = claim_port(self.host, self.port)

        from nerfstudio.utils.rich_utils import CONSOLE

        from radcomp_plugins.cli.compare import read_all
        from radcomp_plugins.splats.viewer import Shown, SplatViewer

        scenes, rows = read_all([*self.files], times=1)
        names = [Path(row["path"]).name for row in rows]
        shown = [Shown(n, row["bytes"], scene) for n, row, scene in zip(names, rows, scenes, strict=True)]
        viewer = SplatViewer(shown, self.host, port, self.up)
        for file in shown:
            CONSOLE.print(file.label, soft_wrap=True, highlight=False, markup=False)
        CONSOLE.print(f"Open {viewer.url} in a browser, press Ctrl-C to stop.", soft_wrap=True, highlight=False)
        try:
            while True:
                wait(3600.0)
        except KeyboardInterrupt:
            viewer.stop()
            CONSOLE.print("Stopped.")


def claim_port(host: str, port: int) -> int:
    """A port that can be listened on; viser itself would take another one, or wait for ever.

    Raises:
        InputError: The address cannot be had.
    """
    from radcomp_plugins.web.server import address_problem

    if not 0 <= port <= 65535:
        raise InputError(f"port {port}: expected 1 to 65535, or 0 for any free one")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listener:
            return listener.getsockname()[1]
    except OSError as error:
        raise InputError(address_problem(error, host, port)) from error
