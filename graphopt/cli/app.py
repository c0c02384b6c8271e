"""The commands, gathered."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from graphopt.cli import bench, bisect, compress, convert, diff, export, inspect, new_pass, passes, run, verify

_app = typer.Typer(
    name="graphopt", add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"graphopt {version('graphopt')}")
        raise typer.Exit


@_app.callback()
def _graphopt(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Make a trained model as fast as this machine allows, and prove that it still computes the same thing.

    Exit codes: 0 done and verified; 1 done, but not verified; 2 request or input at fault.
    """


for _name, _function in (
    ("run", run.run),
    ("export", export.export),
    ("compress", compress.compress),
    ("passes", passes.passes),
    ("inspect", inspect.inspect),
    ("convert", convert.convert),
    ("verify", verify.verify),
    ("bench", bench.bench),
    ("bisect", bisect.bisect),
    ("diff", diff.diff),
    ("new-pass", new_pass.new_pass),
):
    _app.command(_name)(_function)


def command() -> Any:
    """The whole command line, as typer's command object."""
    return typer.main.get_command(_app)
