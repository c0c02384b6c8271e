"""What was measured once on a target, kept in the user's cache folder so that a second run need not measure it again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

_MOST_FILES = 400  # the oldest go


def folder() -> Path:
    """`$XDG_CACHE_HOME/graphopt/latency`, or the same in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphopt" / "latency"


def key(*parts: Any) -> str:
    """A digest of everything that a measurement depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def get(name: str) -> Any | None:
    """What is kept under a key; None where nothing is, or nothing that can be read."""
    try:
        return json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def put(name: str, value: Any) -> None:
    """Keep a value as JSON. A cache that cannot be written to is no error: nothing is kept then."""
    with contextlib.suppress(OSError):
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(prefix=".new-", dir=place)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(value, file)
            os.replace(written, place / f"{name}.json")
        finally:
            Path(written).unlink(missing_ok=True)
        kept = sorted(place.glob("*.json"), key=lambda f: f.stat().st_mtime)
        for old in kept[:-_MOST_FILES]:
            old.unlink(missing_ok=True)
