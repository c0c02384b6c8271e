"""The target: where a model will run. Timings mean something only together with it."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from graphopt import runtime

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Target:
    """Where a model runs.

    provider: ONNX Runtime's execution provider, short ("cpu", "cuda").
    device: the name of the CPU or GPU.
    threads: threads within an operator.
    isa: the strongest instruction set that matters to the kernels, see `isa_of`; "sm_90" and the like on CUDA;
        "unknown" where the system does not tell.
    """

    provider: str
    device: str
    threads: int
    isa: str

    def to_dict(self) -> dict:
        return asdict(self)


def detect(provider: str = "cpu", threads: int = 0) -> Target:
    """The target that this machine is, with `threads` threads (0: the usable cores).

    Raises ProviderError where the provider is unknown or absent from this build of ONNX Runtime.
    """
    short = runtime.short_name(runtime.resolve_provider(provider))
    threads = threads or runtime.usable_cores()
    if short in ("cuda", "tensorrt") and (gpu := _gpu()):
        return Target(short, gpu[0], threads, gpu[1])
    fields = _cpuinfo()
    return Target(short, _cpu_name(fields), threads, isa_of(_flags(fields)))


def isa_of(flags: set[str]) -> str:
    """The strongest of the instruction sets that decide which kernels ONNX Runtime picks.

    flags: as Linux spells them in /proc/cpuinfo ("flags" on x86, "Features" on ARM).
    The order follows the speed of int8 products: MLAS (ONNX Runtime's kernels) takes AMX before AVX-512 VNNI before
    AVX-VNNI. "avx512" means the F, BW, DQ and VL parts together, which is what MLAS asks for.
    """
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
    ranked = (
        ("amx-int8", {"amx_tile", "amx_int8"} <= flags),
        ("avx512-vnni", avx512 and "avx512_vnni" in flags),
        ("avx-vnni", "avx_vnni" in flags and not avx512),
        ("avx512", avx512),
        ("avx2", "avx2" in flags),
        ("avx", "avx" in flags),
        ("sse2", "sse2" in flags),
        ("neon-i8mm", {"asimd", "i8mm"} <= flags),
        ("neon-dotprod", {"asimd", "asimddp"} <= flags),
        ("neon", bool({"asimd", "neon"} & flags)),
    )
    return next((name for name, present in ranked if present), "unknown")


def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor; none where there is no /proc/cpuinfo."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError), _CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip() and fields:
                break
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return fields


def _flags(fields: dict[str, str]) -> set[str]:
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    if not flags and platform.system() == "Darwin" and platform.machine() == "arm64":
        # Every Apple M chip has the dot products of ARMv8.2; which have i8mm, sysctl knows.
        i8mm = _output("sysctl", "-n", "hw.optional.arm.FEAT_I8MM") == "1"
        flags = {"asimd", "asimddp"} | ({"i8mm"} if i8mm else set())
    return flags


def _cpu_name(fields: dict[str, str]) -> str:
    if name := fields.get("model name"):
        return " ".join(name.split())
    if platform.system() == "Darwin" and (name := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return name
    # ARM kernels print no name, only part numbers; `platform` at least tells the architecture.
    return platform.processor() or platform.machine() or "unknown"


def _gpu() -> tuple[str, str] | None:
    """Name and compute capability ("sm_90") of the GPU that CUDA calls device 0; None where there is none to see."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if visible:
        query += ["-i", visible]
    lines = _output(*query).splitlines()
    if not lines:
        return None
    name, _, capability = lines[0].rpartition(",")
    return name.strip(), "sm_" + capability.strip().replace(".", "")


def _output(*command: str) -> str:
    """What a command prints; empty where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
