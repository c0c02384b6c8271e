"""Cases of float and int operators that the importer does not pass, each with the reason. One that begins to pass must go from here."""

from __future__ import annotations

#: Name of the case -> why it does not pass.
FAILING: dict[str, str] = {}
