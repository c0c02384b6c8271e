"""`python -m tests.fuzz --minutes 10 [--seed N]`: random models until the time is over; prints the count and what was wrong."""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path

from tests.fuzz.check import Finding, Rejected, check, presets, save, shrink


def run(
    seconds: float, seed: int, folder: Path, names: tuple[str, ...], *, limit: int | None = None, stop: int = 20
) -> tuple[int, int, list[Finding]]:
    """Check models from `seed` on; how many were checked, how many were turned down, and the findings."""
    pipelines = presets(names)
    started, checked, rejected, findings = time.monotonic(), 0, 0, []
    why: collections.Counter[str] = collections.Counter()
    while time.monotonic() - started < seconds and len(findings) < stop and (limit is None or checked < limit):
        try:
            found = check(seed, pipelines)
            checked += 1
        except Rejected as reason:
            found = None
            rejected += 1
            why[str(reason)[:160]] += 1
        if found is not None:
            found = shrink(found, pipelines)
            findings.append(found)
            without = ", ".join(found.passes) or "-"
            print(f"seed {seed}, {found.preset}: {found.kind}: {found.text}; gone without {without}: {save(found, folder)}", flush=True)
        seed += 1
    for text, count in why.most_common(5):
        print(f"{count} turned down: {text}", file=sys.stderr)
    return checked, rejected, findings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="the first seed; one is added from model to model")
    parser.add_argument("--models", type=int, help="stop after this many")
    parser.add_argument("--preset", action="append", help="clean, default, ort; all by default")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where reproducers go")
    parser.add_argument("--stop", type=int, default=20, help="stop after this many findings")
    options = parser.parse_args()
    names = tuple(options.preset or ("clean", "default", "ort"))
    checked, rejected, findings = run(options.minutes * 60, options.seed, options.out, names, limit=options.models, stop=options.stop)
    print(f"{checked} models checked under {', '.join(names)}, {rejected} turned down by the runtime, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
