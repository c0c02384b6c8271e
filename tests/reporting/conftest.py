"""A report with something of everything."""

import pytest

from graphopt.reporting import PassRecord, Refusal, Report


@pytest.fixture
def report():
    conv = [Refusal(f"c{i}", "Conv output has several consumers") for i in range(12)]
    training = [Refusal("b<1> [bold]", "BatchNormalization in training mode")]
    idle = ("eliminate-identity", "infer-shapes", "inline-functions", "merge-equal-initializers", "flush-denormals")
    return Report(
        model={
            "path": "models/effnet.onnx",
            "kind": "onnx",
            "opset": 17,
            "inputs": [{"name": "image", "type": "tensor(float)", "shape": ["batch", 3, 224, None]}],
            "outputs": [{"name": "logits", "type": "tensor(float)", "shape": None}],
        },
        output="models/a/rather/deep/folder/for/the/results/of/this/run/effnet.optimized.onnx",
        target={"provider": "cpu", "device": "AMD EPYC", "threads": 2, "isa": "avx2"},
        before={"nodes": 613, "bytes": 18_912_345, "parameters": 4_630_000, "operators": {"Cast": 300, "Conv": 49, "x::Gelu": 1}},
        after={"nodes": 94, "bytes": 18_700_000, "parameters": 4_630_000, "operators": {"Conv": 49, "x::Gelu": 1}},
        passes=[
            PassRecord("fold-constants", "exact", 1410, [], 613, 203, 1.234, "kept"),
            PassRecord("fuse-conv-bn", "rounding", 49, conv + training, 203, 154, 0.034, "kept"),
            PassRecord("eliminate-common-subexpressions", "exact", 3, [], 154, 94, 0.01, "kept"),
            PassRecord("quantize-weights", "lossy", 9, [], 94, 94, 0.5, "rolled-back", "output 'logits' off by 0.3"),
            PassRecord("my-pass", "exact", 0, [], 94, 94, 0.001, "failed", "ValueError: [/red] no such axis"),
            *(PassRecord(name, "exact", 0, [], 94, 94, 0.001, "no-change") for name in idle),
        ],
        verification={
            "verdict": "equivalent",
            "samples": 4,
            "sizes": 2,
            "outputs": [{"name": "logits", "max_abs": 3.2e-6, "max_rel": 1.2e-5, "cosine": 0.9999999, "ok": True}],
        },
        speed={
            "ratio": 1.234, "low": 1.21, "high": 1.25, "before_ms": 46.6, "after_ms": 37.9, "pairs": 40,
            "session_before_ms": 210.0, "session_after_ms": 80.0,
        },
        quality={"metric": "accuracy", "before": 0.9806, "after": 0.9806, "samples": 360},
        seconds={"load": 0.03, "passes": 1.9, "verify": 4.2, "bench": 6.0, "save": 0.04},
        notes=["the batch size is dynamic"],
        warnings=["the output 'aux' is constant on every sample <script>alert(1)</script>, which proves nothing of it"],
    )  # fmt: skip
