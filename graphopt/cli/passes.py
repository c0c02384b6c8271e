"""`graphopt passes`: what can be run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options as o
from graphopt.cli.output import only_result, print_json, print_text

if TYPE_CHECKING:
    from graphopt.pipeline.registry import Registered, Registry
    from graphopt.rewriting.base import Option


def passes(
    presets: Annotated[bool, typer.Option("--presets", help="List presets instead.")] = False,
    plugin: o.Plugin = None,
    json: o.Json = False,
) -> None:
    """List every pass with its effect, graph kinds, options and origin."""
    from graphopt.pipeline.registry import Registry

    with only_result(json):
        registry = Registry.discover()
        for where in plugin or ():
            registry.load_plugin(where)
        found = _presets(registry) if presets else [_pass(r) for r in registry]
    if json:
        print_json(found)
    else:
        print_text("\n\n".join((_preset_text if presets else _pass_text)(f) for f in found))


def _pass(registered: Registered) -> dict[str, Any]:
    cls = registered.cls
    return {
        "name": cls.name,
        "summary": cls.summary(),
        "effect": cls.effect.value,
        "kinds": sorted(cls.kinds),
        "measured": cls.measured,
        "origin": registered.origin,
        "options": [_option(opt) for opt in cls.options()],
    }


def _option(opt: Option) -> dict[str, Any]:
    return {
        "name": opt.name,
        "type": opt.type.__name__,
        "default": opt.default,
        "minimum": opt.minimum,
        "maximum": opt.maximum,
        "choices": None if opt.choices is None else list(opt.choices),
        "help": opt.help,
    }


def _presets(registry: Registry) -> list[dict[str, Any]]:
    from graphopt.pipeline.presets import load_preset, preset_names

    found = []
    for name in preset_names():
        preset = load_preset(name, registry)
        steps = [s.name for s in preset.steps]
        found.append(
            {"name": name, "description": preset.description, "effect": preset.effect.value, "rounds": preset.rounds, "passes": steps}
        )
    return found


def _pass_text(found: dict[str, Any]) -> str:
    traits = [found["effect"], ", ".join(found["kinds"]), *(["decided by measurement"] if found["measured"] else []), found["origin"]]
    lines = [f"{found['name']}  ({'; '.join(traits)})", f"    {found['summary']}"]
    for opt in found["options"]:
        shown = str(opt["default"]).lower() if opt["type"] == "bool" else opt["default"]
        lines.append(f"    --set {found['name']}.{opt['name']}={shown}  {opt['type']}{_range(opt)}: {opt['help']}")
    return "\n".join(lines)


def _range(opt: dict[str, Any]) -> str:
    if opt["choices"]:
        return f", one of {', '.join(map(str, opt['choices']))}"
    low, high = opt["minimum"], opt["maximum"]
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" of {low:g} or more"
    return f" of {high:g} or less" if high is not None else ""


def _preset_text(found: dict[str, Any]) -> str:
    rounds = "1 round" if found["rounds"] == 1 else f"up to {found['rounds']} rounds"
    lines = [f"{found['name']}  ({found['effect']}; {rounds})"]
    if found["description"]:
        lines.append(f"    {found['description']}")
    return "\n".join([*lines, f"    {', '.join(found['passes'])}"])
