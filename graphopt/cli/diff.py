"""`graphopt diff`: what one model has that another has not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import print_json, print_text


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="An ONNX model.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    most: Annotated[int, typer.Option(min=1, metavar="N", help="How many nodes and weights of each sort to list.")] = 20,
    json: o.Json = False,
) -> None:
    """Compare two models as graphs: interface, opsets, operators, nodes by name, weights by content."""
    from graphopt.diff import diff as compare
    from graphopt.formats import load_model

    for path in (a, b):
        o.onnx_only(path, "graphopt diff")
    found = compare(load_model(a).graph, load_model(b).graph)
    if json:
        print_json({"a": str(a), "b": str(b), **found.to_dict()})
    else:
        print_text(_text(found.to_dict(), most))


def _text(found: dict[str, Any], most: int) -> str:
    if found["same"]:
        return "the models are the same: interface, opsets, nodes and weights"
    lines: list[str] = []
    for title in ("interface", "opsets", "metadata"):
        if found[title]:
            lines += [title, *(f"  {line}" for line in found[title])]
    if found["operators"]:
        lines += ["operators", *(f"  {c['operator']}: {c['before']:,} to {c['after']:,}" for c in found["operators"])]
    for title in ("nodes", "initializers"):
        part = found[title]
        counts = ", ".join(f"{len(part[kind]):,} {kind}" for kind in ("added", "removed", "changed") if part[kind])
        if not counts:
            continue
        lines.append(f"{title}: {counts}")
        for sign, kind in (("+", "added"), ("-", "removed")):
            lines += [f"  {sign} {entry}" for entry in part[kind][:most]] + _more(part[kind], most)
        for entry in part["changed"][:most]:
            lines.append(f"  ~ {entry['name']}: {'; '.join(entry['changes'])}")
        lines += _more(part["changed"], most)
    return "\n".join(lines)


def _more(entries: list[Any], most: int) -> list[str]:
    return [f"    and {len(entries) - most:,} more (--most or --json lists them)"] if len(entries) > most else []
