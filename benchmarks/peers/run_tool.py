"""Run one tool over one model: `run_tool.py TOOL IN.onnx OUT.onnx [MODEL_TYPE]`. Runs in the tools' own environment.

Each tool is called as its own documentation does it for an inference model. Imports nothing of graphopt.
"""

import sys


def _save(model, path):
    import onnx

    onnx.save(model, path)


def onnxsim(source, target):
    import onnx
    import onnxsim

    model, _ = onnxsim.simplify(onnx.load(source))
    _save(model, target)


def onnxslim(source, target):
    import onnxslim

    onnxslim.slim(source, target)


def onnxoptimizer(source, target):
    import onnx
    import onnxoptimizer

    _save(onnxoptimizer.optimize(onnx.load(source), onnxoptimizer.get_fuse_and_elimination_passes(), fixed_point=True), target)


def onnxscript(source, target):
    import onnx
    from onnxscript import optimizer, rewriter

    model = onnx.load(source)
    model = optimizer.optimize(model) or model
    model = rewriter.rewrite(model)
    _save(optimizer.optimize(model) or model, target)


def ort_fusions(source, target):
    import onnx_ir as ir
    from onnxscript import optimizer
    from onnxscript.rewriter import ort_fusions

    model = ir.load(source)
    optimizer.optimize(model)
    result = ort_fusions.optimize_for_ort(model)
    ir.save(result[0] if isinstance(result, tuple) else result or model, target)


def ort_basic(source, target):
    _ort_offline(source, target, "ORT_ENABLE_BASIC")


def ort_extended(source, target):
    _ort_offline(source, target, "ORT_ENABLE_EXTENDED")


def _ort_offline(source, target, level):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = target
    options.log_severity_level = 3
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def ort_transformers(source, target, model_type):
    from onnxruntime.transformers import optimizer

    optimizer.optimize_model(
        source, model_type=model_type, num_heads=0, hidden_size=0, opt_level=1, use_gpu=False
    ).save_model_to_file(target)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
