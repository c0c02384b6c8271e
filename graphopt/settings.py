"""Settings of a session of ONNX Runtime: which of its own optimizations it runs, on how many threads, and what else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Levels of the runtime's graph optimizations, as a file of settings names them, and what ONNX Runtime calls them.
LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True)
class Settings:
    """How a session is made, beyond its provider.

    Attributes:
        level: of the runtime's graph optimizations, one of `LEVELS`.
        disabled: names of its optimizers that are switched off ("SkipLayerNormFusion"); it ignores unknown ones.
        threads: threads within an operator; 0: as many as there are usable cores.
        config: further entries by their key in ONNX Runtime ("session.intra_op.allow_spinning": "0").
    """

    level: str = "all"
    disabled: tuple[str, ...] = ()
    threads: int = 0
    config: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The settings under the names that ONNX Runtime's documentation uses."""
        return {
            "graph_optimization_level": self.level,
            "disabled_optimizers": list(self.disabled),
            "intra_op_num_threads": self.threads,
            "config": dict(self.config),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Settings:
        """The settings in what `to_dict` gave; a key that is missing has its default.

        Raises:
            ValueError: what is no such thing, with the key at fault.
        """
        if not isinstance(data, dict):
            raise ValueError("the settings are not an object")
        known = cls().to_dict()
        if unknown := sorted(data.keys() - known.keys()):
            raise ValueError(f"unknown setting {unknown[0]!r} (known: {', '.join(known)})")
        level, disabled, threads, config = (data.get(key, default) for key, default in known.items())
        if level not in LEVELS:
            raise ValueError(f"graph_optimization_level must be one of {', '.join(LEVELS)}, not {level!r}")
        if not isinstance(disabled, list) or not all(isinstance(name, str) for name in disabled):
            raise ValueError("disabled_optimizers must be a list of names")
        if not isinstance(threads, int) or isinstance(threads, bool) or not 0 <= threads <= 4096:
            raise ValueError(f"intra_op_num_threads must be a whole number of 0 or more, not {threads!r}")
        if not isinstance(config, dict) or not all(isinstance(value, str) for value in config.values()):
            raise ValueError("config must be an object of texts")
        return cls(level, tuple(disabled), threads, config)
