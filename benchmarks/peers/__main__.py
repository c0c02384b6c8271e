"""graphopt beside onnxsim, OnnxSlim, onnxoptimizer, onnxscript and ONNX Runtime's own offline optimizers, in one run.

    make peers                                        # once: the other tools, in build/peers
    python -m benchmarks.peers [MODEL...] [--recipes DIR] [--tools A,B] [--threads 1,2] [--seconds 8] [--out FILE.jsonl]

Every tool runs as a process of its own over every model of the public zoo, or over the recipes in DIR (`python -m
models.recipes --all DIR`). Each result is verified against the original at two sizes with the runtime's optimizations
off and on, and, where the runtime does not end with the graph that it makes of the original (shown as =), timed beside
it in interleaved pairs under all of the runtime's optimizations. graphopt's results are timed beside the best of the
others too. Results of the other tools are kept in `--work` and used again. `--out` keeps a line a model; models that are
in it already are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import models, table, tools
from benchmarks.peers.measure import Measurer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--recipes", type=Path, metavar="DIR", help="the exported recipes in DIR instead of the zoo")
    parser.add_argument("--tools", default=",".join(tools.TOOLS), help="default: %(default)s")
    parser.add_argument("--threads", default="1,2", help="to time with; empty: nothing is timed. Default: %(default)s")
    parser.add_argument("--seconds", type=float, default=8.0, help="longest time for one figure")
    parser.add_argument("--timeout", type=float, default=300.0, help="longest time for one tool on one model")
    parser.add_argument("--python", type=Path, default=tools.DEFAULT_PYTHON, help="of the other tools' environment")
    parser.add_argument("--work", type=Path, default=Path("build/peer-results"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = [tools.TOOLS[name] for name in options.tools.split(",")]
    threads = [int(t) for t in options.threads.split(",") if t]
    if any(tool.preset is None for tool in chosen) and not options.python.exists():
        print(f"{options.python}: not there; `make peers` sets the other tools up", file=sys.stderr)
        return 2
    rows = _rows(options.out)
    measurer = Measurer(options.python, options.work, threads, options.seconds, options.timeout)
    for case in models.zoo() if options.recipes is None else models.recipes(options.recipes):
        if case.name in rows or (options.names and case.name not in options.names):
            continue
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        rows[case.name] = measurer.model(case, chosen)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as out:
                out.write(json.dumps(rows[case.name]) + "\n")
    found = list(rows.values())
    print(table.table(found, threads), table.summary(found, threads), sep="\n\n")
    short = table.shortfalls(found, threads)
    print("\nWhere graphopt falls short:\n" + "\n".join(f"* {line}" for line in short) if short else "\ngraphopt falls short nowhere.")
    return 0


def _rows(path: Path | None) -> dict[str, dict[str, Any]]:
    if path is None or not path.exists():
        return {}
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {row["model"]: row for row in rows}


if __name__ == "__main__":
    sys.exit(main())
