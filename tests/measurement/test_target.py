"""What the machine is called."""

import pytest

from graphopt.errors import ProviderError
from graphopt.measurement import Target, detect, target
from graphopt.runtime import usable_cores

AVX512 = {"avx", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ({"sse2"}, "sse2"),
        ({"sse2", "avx", "avx2", "fma"}, "avx2"),
        ({"avx", "avx2", "avx_vnni"}, "avx-vnni"),
        (AVX512, "avx512"),
        ({"avx", "avx2", "avx512f"}, "avx2"),  # without BW, DQ and VL the runtime's kernels do not use it
        (AVX512 | {"avx512_vnni"}, "avx512-vnni"),
        (AVX512 | {"avx512_vnni", "avx_vnni", "amx_tile", "amx_int8"}, "amx-int8"),
        ({"fp", "asimd"}, "neon"),
        ({"fp", "asimd", "asimddp"}, "neon-dotprod"),
        ({"asimd", "asimddp", "i8mm"}, "neon-i8mm"),
        (set(), "unknown"),
    ],
)
def test_isa(flags, isa):
    assert target.isa_of(flags) == isa


def test_detect_from_cpuinfo(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some  CPU 9000\nflags\t\t: sse2 avx avx2\n\nprocessor\t: 1\nmodel name\t: Other\n")
    monkeypatch.setattr(target, "_CPUINFO", info)
    assert detect("cpu", 3) == Target("cpu", "Some CPU 9000", 3, "avx2")
    assert detect("CPUExecutionProvider").to_dict() == {
        "provider": "cpu",
        "device": "Some CPU 9000",
        "threads": usable_cores(),
        "isa": "avx2",
    }


def test_detect_without_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr(target, "_CPUINFO", tmp_path / "none")
    assert detect("cpu", 1).device != ""


def test_detect_a_gpu(monkeypatch):
    monkeypatch.setattr("graphopt.runtime.resolve_provider", lambda name: "CUDAExecutionProvider")
    monkeypatch.setattr(target, "_output", lambda *command: "NVIDIA H100 80GB HBM3, 9.0\nNVIDIA H100 80GB HBM3, 9.0")
    assert detect("cuda", 2) == Target("cuda", "NVIDIA H100 80GB HBM3", 2, "sm_90")


def test_absent_provider():
    with pytest.raises(ProviderError):
        detect("abacus")
