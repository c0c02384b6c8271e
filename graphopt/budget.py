"""What a lossy result may lose, and in which unit that is said: a relative loss, decibels, or a cosine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from graphopt.errors import OptionError

Kind = Literal["loss", "snr", "cosine"]

#: How budgets are written.
FORMS = "a relative loss (0.01 or 1%), a signal-to-noise ratio (30dB) or a cosine (cos:0.99)"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class Budget:
    """What is accepted of a lossy result, of every output on every sample that it is verified on.

    Attributes:
        kind: "loss": of the metric, relative to what the original has; where there is none, ||a - b|| / ||b|| of an output.
            "snr": the least 20 log10(||b|| / ||a - b||). "cosine": the least cosine of the two.
        limit: the number.

    Of outputs that are no floats as large a part of the elements may differ as the loss, or what the decibels come to, or
    as the cosine leaves to 1.
    """

    kind: Kind
    limit: float

    @classmethod
    def of(cls, value: Budget | float | str, where: str = "budget") -> Budget:
        """A budget as somebody states it: a number is a relative loss, a text is read. `where`: what errors call it.

        Raises:
            OptionError: it is none.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, str):
            return cls._read(value.strip(), where)
        if not value >= 0:
            raise OptionError(f"{where} must be 0 or more, not {value}")
        return cls("loss", float(value))

    @classmethod
    def _read(cls, text: str, where: str) -> Budget:
        forms: tuple[tuple[str, Kind, float], ...] = (
            (rf"({_NUMBER})", "loss", 1.0),
            (rf"({_NUMBER})\s*%", "loss", 0.01),
            (rf"({_NUMBER})\s*dB", "snr", 1.0),
            (rf"cos(?:ine)?[:=]\s*({_NUMBER})", "cosine", 1.0),
        )
        for pattern, kind, unit in forms:
            found = re.fullmatch(pattern, text, re.IGNORECASE)
            if found is None:
                continue
            limit = float(found[1]) * unit
            if not math.isfinite(limit) or limit < 0 or (kind == "cosine" and limit > 1):
                wanted = "a cosine is from 0 to 1" if kind == "cosine" else "it must be a finite number, 0 or more"
                raise OptionError(f"{where} {text}: {wanted}")
            return cls(kind, limit)
        raise OptionError(f"{where} {text!r}: expected {FORMS}")

    @property
    def part(self) -> float:
        """What part of the elements of an output that is no float may differ."""
        return {"loss": self.limit, "snr": 10 ** (-self.limit / 20), "cosine": 1 - self.limit}[self.kind]

    @property
    def distance(self) -> float:
        """About which ||a - b|| / ||b|| of an output it allows: of a cosine, that of an error at right angles to the output."""
        return math.sqrt(max(0.0, 1 / self.limit**2 - 1)) if self.kind == "cosine" and self.limit else self.part

    def allows(self, distance: float, cosine: float, flips: float) -> bool:
        """Whether an output may be so far away; what is no number is not allowed."""
        near = cosine >= self.limit if self.kind == "cosine" else distance <= self.part
        return near and flips <= self.part

    def fault(self, distance: float, cosine: float) -> str:
        """Why a float output is too far away, in one clause."""
        if self.kind == "cosine":
            return f"cosine {cosine:.4g} is below the budget of {self.limit:g}"
        if self.kind == "snr":
            return f"signal-to-noise ratio {decibels(distance):.1f} dB is below the budget of {self.limit:g} dB"
        return f"distance {distance:.3g} is above the budget of {self.limit:g}"

    def __str__(self) -> str:
        """As it is written."""
        return {"loss": f"{self.limit:g}", "snr": f"{self.limit:g}dB", "cosine": f"cos:{self.limit:g}"}[self.kind]


#: What is accepted where nobody said: of the outputs 20 dB, as a relative distance; of a metric one part in a hundred.
OUTPUTS = Budget("loss", 0.1)
METRIC = Budget("loss", 0.01)


def decibels(distance: float) -> float:
    """The signal-to-noise ratio at a relative distance."""
    if math.isnan(distance):
        return distance
    return -20 * math.log10(distance) if distance > 0 else math.inf
