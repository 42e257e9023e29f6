"""`radcomp`: make trained radiance fields small and fast.

The subcommands lie in modules of their own, which import what is heavy only when they run.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro

from radcomp_plugins.cli.bench import BENCHES
from radcomp_plugins.cli.compare import Compare
from radcomp_plugins.cli.compress import Compress
from radcomp_plugins.cli.demo import Demo
from radcomp_plugins.cli.export import EXPORTS, spell_out_flags
from radcomp_plugins.cli.info import Info
from radcomp_plugins.cli.scene import Scene
from radcomp_plugins.cli.serve import Serve
from radcomp_plugins.cli.stream import Stream
from radcomp_plugins.cli.view import View
from radcomp_plugins.errors import InputError


@dataclass
class Export:
    """Write a trained run as files that other programs open."""

    method: Union[EXPORTS]  # type: ignore[valid-type]  # noqa: UP007
    """What kind of run it is."""

    def main(self) -> None:
        """Run the chosen export."""
        self.method.main()


@dataclass
class Bench:
    """Measure speed on this machine."""

    what: Union[BENCHES]  # type: ignore[valid-type]  # noqa: UP007
    """What to measure."""

    def main(self) -> None:
        """Run the chosen benchmark."""
        self.what.main()


COMMANDS = (
    Annotated[Bench, tyro.conf.subcommand(name="bench")],
    Annotated[Compare, tyro.conf.subcommand(name="compare")],
    Annotated[Compress, tyro.conf.subcommand(name="compress")],
    Annotated[Demo, tyro.conf.subcommand(name="demo")],
    Annotated[Export, tyro.conf.subcommand(name="export")],
    Annotated[Info, tyro.conf.subcommand(name="info")],
    Annotated[Scene, tyro.conf.subcommand(name="scene")],
    Annotated[Serve, tyro.conf.subcommand(name="serve")],
    Annotated[Stream, tyro.conf.subcommand(name="stream")],
    Annotated[View, tyro.conf.subcommand(name="view")],
)

BARE_FLAGS = ("--overwrite", "--json")


def run(args: Sequence[str] | None = None) -> None:
    """Parse a command line and run it; `args` is sys.argv's rest by default."""
    commands: Any = Union[COMMANDS]  # noqa: UP007
    command = tyro.cli(
        commands,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagConversionOff),
        prog="radcomp",
        description="Make trained radiance fields small and fast.",
        args=spell_out_flags(sys.argv[1:] if args is None else args, BARE_FLAGS),
    )
    command.main()


def entrypoint() -> None:
    """The console script: a user's mistake is one line and exit code 1."""
    try:
        run()
    except InputError as error:
        print_error(str(error))
        sys.exit(1)
    except (ImportError, OSError) as error:
        from radcomp_plugins.compat import one_line

        line = one_line(error)
        if line is None:
            raise
        print_error(line)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def print_error(line: str) -> None:
    """Print one line, however long, with nothing in it taken for markup."""
    from nerfstudio.utils.rich_utils import CONSOLE
    from rich.markup import escape

    CONSOLE.print(f"[bold red]Error:[/bold red] {escape(line)}", soft_wrap=True)


if __name__ == "__main__":
    entrypoint()
