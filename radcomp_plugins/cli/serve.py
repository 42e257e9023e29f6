"""`radcomp serve`: walk through a baked scene in a browser."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass
class Serve:
    """Serve a baked SMERF scene with the browser viewer, until Ctrl-C.

    Example: radcomp serve exports/chair
    """

    asset: tyro.conf.Positional[Path]
    """Folder of the asset: the one that holds sm_000 and its like. Nothing outside of it is served."""
    port: int = 7008
    """Port to listen on; 0 takes any free one."""
    host: str = "127.0.0.1"
    """Address to listen on. The default lets in this machine only; 0.0.0.0 lets in everybody who can reach it."""

    def main(self) -> None:
        """Listen, print the URL, and answer until interrupted."""
        from nerfstudio.utils.rich_utils import CONSOLE

        from radcomp_plugins.web.server import AssetServer

        with AssetServer(self.asset, self.host, self.port) as server:
            CONSOLE.print(f"Serving {self.asset}, press Ctrl-C to stop. Open in a browser:", soft_wrap=True)
            CONSOLE.print(server.url, soft_wrap=True, markup=False)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                CONSOLE.print("Stopped.")
