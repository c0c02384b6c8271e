"""The documents tell of every command, option and key of the report, and of none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from graphopt.cli.app import command
from tests.cli.conftest import Cli

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
COMMANDS = command().commands


def section(name: str) -> str:
    return TEXT.split(f"\n## graphopt {name}", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command(name: str) -> None:
    real = {opt for p in COMMANDS[name].params if p.param_type_name == "option" for opt in p.opts if opt.startswith("--")} - {"--help"}
    told = set(re.findall(r"--[a-z][a-z-]*", section(name)))
    if name == "bisect":  # it takes those of `run` that concern pipeline, target and samples
        told |= {opt for opt in real if f"`{opt}" in section("run")}
    assert told - {"--presets"} >= real - {"--presets"}
    everywhere = {opt for c in COMMANDS.values() for p in c.params for opt in (*p.opts, *p.secondary_opts)}
    assert told <= everywhere


def test_every_command_has_its_section() -> None:
    assert sorted(re.findall(r"^## graphopt ([a-z-]+)", TEXT, re.MULTILINE)) == sorted(COMMANDS)


def test_keys_of_the_report(cli: Cli, ok: Path) -> None:
    report = cli("run", ok, "--no-bench", "--passes", "eliminate-identity", "--json").json
    part = section("run").split("### The report", 1)[1]
    assert all(f"`{key}`" in part for key in report)
    assert all(f"`{key}`" in part for key in report["passes"][0])


def test_links_of_the_documents_lead_somewhere() -> None:
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name}: {target}"
