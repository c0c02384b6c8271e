"""Settings of the session under which a model is faster than in a plain one, found by measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from graphopt.measurement import FinalGraph, Speed
from graphopt.settings import Settings

#: What settings must gain at the lower end of the interval to be worth a file beside the model.
LEAST_GAIN = 1.02
_STEP_GAIN = 1.01  # what a single step of the search must gain, likewise
_SECONDS = 20.0  # for the whole search, at the most
_LEAST_SECONDS = 5.0  # of a model that runs in no time
_RUNS, _SESSIONS = 1000, 20  # what the time for the search covers, between those two bounds
_TRIAL_SHARE = 0.1  # of the time, for a step
_SECOND_LOOK = 0.25  # for a step that seems to gain, but not beyond the noise
_FINAL_SHARE = 0.3  # for the figure that is reported
_LONGEST_RUN_MS = 700.0  # of models slower than that too few pairs fit into a step
# Optimizers of the runtime that are known to lose on some targets, tried first. Whether they do here, the clock says.
_SUSPECTS = ("SkipLayerNormFusion", "NchwcTransformer", "NhwcTransformer", "TransposeOptimizer", "ConvActivationFusion", "ConstantFolding")
# What these do is never slower: constants that are shared, subexpressions and transposed copies that are not computed twice.
_HARMLESS = frozenset({"ConstantSharing", "CommonSubexpressionElimination", "EnsureUniqueDQForNodeUnit", "InsertCastTransformer"})


class Bench(Protocol):
    """What the search needs of a file."""

    def race_settings(self, path: Path, a: Settings, b: Settings, seconds: float, decide: float | None = None) -> Speed: ...

    def graph_with(self, path: Path, settings: Settings | None) -> FinalGraph | None: ...

    def optimizers(self, path: Path) -> tuple[str, ...]: ...

    def tell(self, text: str) -> None: ...


@dataclass(frozen=True)
class Tuned:
    """Settings that gain, and what they gain over a plain session."""

    settings: Settings
    speed: Speed

    def figures(self) -> dict[str, Any]:
        return {key: getattr(self.speed, key) for key in ("ratio", "low", "high", "pairs")}


def tune(
    bench: Bench,
    path: Path,
    *,
    threads: int,
    cores: int,
    run_ms: float,
    session_ms: float = 0.0,
    with_threads: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned | None:
    """The settings that make a session on the file fastest, None where none gain at least 2 % beyond the noise.

    Greedy: each change is measured beside the best settings so far, in interleaved pairs that stop as soon as it is
    clear on which side it falls, and is kept where it gains. A change of optimizations that leaves the runtime with a
    graph that was tried already is not timed. What is best in the end is measured again beside a plain session, since
    the best of many noisy figures flatters itself; that figure is what counts.

    Args:
        bench: measures.
        path: the model.
        threads: as asked for; 0: all cores.
        cores: how many that are.
        run_ms, session_ms: milliseconds that a run takes in a plain session, and that making one takes; the time for the
            search, 5 to 20 seconds, follows them.
        with_threads: whether threads are tried: not on a device, and not where other work loads the machine, beside
            which fewer threads always look better.
    """
    plain = best = Settings(threads=threads)
    if run_ms > _LONGEST_RUN_MS:
        return None
    seconds = min(_SECONDS, _LEAST_SECONDS + (_RUNS * run_ms + _SESSIONS * session_ms) / 1e3)
    end = clock() + seconds * (1 - _FINAL_SHARE)
    seen = {(bench.graph_with(path, plain), plain.threads, ())}
    for change in _changes(bench, path, threads or cores, with_threads):
        if clock() >= end:
            break
        trial = change(best)
        if trial is None or trial == best:
            continue
        graph = bench.graph_with(path, trial)
        key = graph, trial.threads, tuple(sorted(trial.config.items()))
        if graph is not None and key in seen:
            continue
        seen.add(key)
        bench.tell(f"trying a session with {describe(trial, plain)}")
        speed = bench.race_settings(path, best, trial, _TRIAL_SHARE * seconds, _STEP_GAIN)
        if not _gains(speed, _STEP_GAIN) and speed.ratio >= LEAST_GAIN and clock() < end:
            # A gain that drowns in noise: a longer look, which alone counts.
            speed = bench.race_settings(path, best, trial, _SECOND_LOOK * seconds, _STEP_GAIN)
        if _gains(speed, _STEP_GAIN):
            best = trial
    if best == plain:
        return None
    bench.tell(f"measuring a session with {describe(best, plain)}")
    speed = bench.race_settings(path, plain, best, _FINAL_SHARE * seconds)
    return Tuned(best, speed) if _gains(speed, LEAST_GAIN) else None


def _gains(speed: Speed, least: float) -> bool:
    return speed.faster and speed.low >= least


def _changes(bench: Bench, path: Path, threads: int, with_threads: bool) -> Iterator[Callable[[Settings], Settings | None]]:
    """One change after the other, the likelier ones first."""
    fewer = threads // 2
    while with_threads and fewer:  # small models: handing out the work takes longer than doing it
        yield lambda best, n=fewer: replace(best, threads=n) if (best.threads or threads) <= 2 * n else None
        fewer //= 2
    active = [name for name in bench.optimizers(path) if name not in _HARMLESS]
    for name in sorted(active, key=lambda n: (_SUSPECTS.index(n) if n in _SUSPECTS else len(_SUSPECTS))):
        yield lambda best, n=name: replace(best, disabled=(*best.disabled, n))
    if with_threads and threads > 1:
        yield lambda best: replace(best, config={**best.config, "session.intra_op.allow_spinning": "0"}) if best.threads != 1 else None
    for level in ("extended", "basic") if active else ():
        yield lambda best, level=level: replace(best, level=level, disabled=())


def describe(settings: Settings, plain: Settings) -> str:
    """What is not as in a plain session, in words."""
    parts = []
    if settings.disabled:
        parts.append(f"{', '.join(settings.disabled)} switched off")
    if settings.level != plain.level:
        parts.append(f"optimization level {settings.level}")
    if settings.threads != plain.threads:
        parts.append(f"{settings.threads} thread{'' if settings.threads == 1 else 's'}")
    parts += [f"{key.removeprefix('session.')} = {value}" for key, value in settings.config.items()]
    return ", ".join(parts) or "nothing changed"
