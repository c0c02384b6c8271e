"""What was found so far, a JSON line each, so that a run that was ended goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Results:
    """Records by key, appended to a file; of two with one key the later counts. A last line that was cut off is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self._found[json.dumps(record["key"])] = record

    def get(self, *key: Any) -> dict[str, Any] | None:
        """The record of a key."""
        return self._found.get(json.dumps(list(key)))

    def add(self, *key: Any, **values: Any) -> dict[str, Any]:
        """Keep a record, in memory and in the file."""
        record = {"key": list(key), **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut = self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as out:
            out.write("\n" * cut + json.dumps(record) + "\n")
        self._found[json.dumps(record["key"])] = record
        return record


def digest(*parts: Path | str) -> str:
    """Of the contents of files, and of texts."""
    made = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                made.update(hashlib.file_digest(file, "sha256").digest())
        else:
            made.update(part.encode())
    return made.hexdigest()[:16]
