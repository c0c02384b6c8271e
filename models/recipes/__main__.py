"""`python -m models.recipes NAME HOW OUT.onnx`, or `--all DIR` for every recipe by every exporter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models.recipes import HOWS, RECIPES, export


def main(arguments: list[str] | None = None) -> int:
    """Export one recipe, or all of them to `DIR/NAME.HOW.onnx`; 2 if an export fails, which others do not stop."""
    parser = argparse.ArgumentParser(prog="python -m models.recipes", description="Export recipes to ONNX.")
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES), metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("how", nargs="?", choices=HOWS, metavar="HOW", help=", ".join(HOWS))
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.onnx")
    parser.add_argument("--all", type=Path, metavar="DIR", help="export every recipe by every exporter")
    parser.add_argument("--small", action="store_true", help="the small variants: same structure, less of it")
    options = parser.parse_args(arguments)
    if options.all:
        jobs = [(name, how, options.all / f"{name}.{how}.onnx") for name in RECIPES for how in HOWS]
    elif options.name and options.how and options.out:
        jobs = [(options.name, options.how, options.out)]
    else:
        parser.error("give NAME HOW OUT.onnx, or --all DIR")
    failed = False
    for name, how, path in jobs:
        try:
            print(export(RECIPES[name], path, how, options.small), flush=True)
        # An exporter may raise anything at all; the other models are still wanted.
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            print(f"error: {name}: {how}: {reason[0]}", file=sys.stderr, flush=True)
            failed = True
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
