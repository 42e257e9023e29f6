"""`radcomp serve`: walk through a baked scene in a browser."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class Serve:
    """Serve a baked SMERF scene with the browser viewer, or a VQ-AD file for `radcomp stream`, until Ctrl-C.

    Example: radcomp serve exports/chair
    """

    asset: tyro.conf.Positional[Path]
    """Folder of the asset: the one that holds sm_000 and its like, or scene.vqad. Nothing outside of it is served."""
    port: int = 7008
    """Port to listen on; 0 takes any free one."""
    host: str = "127.0.0.1"
    """Address to listen on. The default lets in this machine only; 0.0.0.0 lets in everybody who can reach it."""

    def main(self) -> None:
        """Listen, print the URL, and answer until interrupted."""
        from nerfstudio.utils.rich_utils import CONSOLE

        from radcomp_plugins.web.server import AssetServer

        with AssetServer(self.asset, self.host, self.port) as server:
            CONSOLE.print(f"Serving {self.asset}, press Ctrl-C to stop. {_opened(server.url)}:", soft_wrap=True)
            CONSOLE.print(server.url, soft_wrap=True, markup=False)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                CONSOLE.print("Stopped.")


def _opened(url: str) -> str:
    """What to do with the URL."""
    return "Read with `radcomp stream`" if url.endswith(".vqad") else "Open in a browser"
