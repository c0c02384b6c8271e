"""graphopt's quantization beside ONNX Runtime's own, NNCF, Neural Compressor and Olive, in one run.

    make quantization-peers            # once: the other tools and the data, in build/quantization-peers
    python -m models.recipes --all DIR # once: the full-size recipes
    python -m benchmarks.quantization [MODEL...] [--recipes DIR] [--tools A,B] [--threads 1,2] [--seconds 4]

Every tool runs as a process of its own over every model, calibrates on the same samples, and its result is scored on
others: see `tasks.py` for what counts. Results that run are timed beside the float model in turns of all of them, under
all of the runtime's optimizations. What was made, scored and timed is kept in `--work`, a JSON line each: a run that was
ended goes on where it was, and what a change of graphopt's code touches is made again. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.quantization import cases, data, table, tools
from benchmarks.quantization.measure import Model, collect, machine
from benchmarks.quantization.results import Results
from graphopt.errors import GraphoptError

PHASES = ("make", "score", "time")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="MODEL")
    parser.add_argument("--recipes", type=Path, metavar="DIR", help="exported recipes: ResNet-50, MobileNetV2, RepVGG-A0, BERT-base")
    parser.add_argument("--tools", default=",".join(tools.TOOLS), help="default: %(default)s")
    parser.add_argument("--phases", default=",".join(PHASES), help="default: %(default)s; empty: tables of what is known")
    parser.add_argument("--threads", default="1,2", help="to time with. Default: %(default)s")
    parser.add_argument("--build-threads", type=int, default=1, help="that graphopt measures its choices with. Default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="longest time for one figure")
    parser.add_argument("--timeout", type=float, default=600.0, help="longest time for one tool on one model")
    parser.add_argument("--python", type=Path, default=tools.DEFAULT_PYTHON, help="of the other tools' environment")
    parser.add_argument("--work", type=Path, default=data.DEFAULT_WORK)
    parser.add_argument("--out", type=Path, help="write the tables to a file too")
    options = parser.parse_args()
    os.environ["GRAPHOPT_QUANTIZATION_WORK"] = str(options.work.resolve())
    unknown = [name for name in options.tools.split(",") if name not in tools.TOOLS]
    if unknown:
        parser.error(f"no such tool: {', '.join(unknown)}")
    chosen = [tools.TOOLS[name] for name in options.tools.split(",")]
    threads = [int(t) for t in options.threads.split(",") if t]
    phases = [phase for phase in options.phases.split(",") if phase]
    if "make" in phases and any(tool.preset is None for tool in chosen):
        if not options.python.exists():
            print(f"{options.python}: not there; `make quantization-peers` sets the other tools up", file=sys.stderr)
            return 2
        collect(options.python, options.work)
    results = Results(options.work / "results.jsonl")
    rows = []
    for case in cases.cases(options.recipes):
        if options.names and case.name not in options.names:
            continue
        if lacking := cases.missing(case):
            print(f"{case.name}: left out, there is no {lacking}.npz", file=sys.stderr)
            continue
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        model = Model(case, options.work, results)
        mine = [tool for tool in chosen if tools.applies(tool, case)]
        for tool in mine if "make" in phases else ():
            model.make(tool, python=options.python, threads=options.build_threads, timeout=options.timeout)
        for tool in mine if "score" in phases else ():
            model.judge(tool)
        for count in threads if "time" in phases else ():
            try:
                model.time(mine, count, options.seconds)
            except GraphoptError as error:
                print(f"{case.name}: {error}", file=sys.stderr)
        rows.append(model.row(chosen, threads))
    text = table.report(rows, threads, machine())
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
