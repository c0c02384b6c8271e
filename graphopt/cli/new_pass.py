"""`graphopt new-pass`: a working plug-in to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli.output import print_text


def new_pass(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the pass, in kebab-case.", show_default=False)],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder to write to.")] = Path("."),
) -> None:
    """Write a working pass and its test, to be changed into yours."""
    from graphopt.plugins import write_skeleton

    source, test = write_skeleton(name, folder)
    print_text(
        f"wrote {source}\nwrote {test}\n\n"
        f"try it:   graphopt run MODEL.onnx --plugin {source} --passes {name}\n"
        f"test it:  python -m pytest {test}"
    )
