"""Run one tool over one model: `run_tool.py TOOL IN.onnx OUT.onnx CALIBRATION_DIR [ARCHITECTURE]`.

Runs in the tools' own environment and imports nothing of graphopt. Each tool is called as its own documentation does it;
all of them calibrate on the same samples, CALIBRATION_DIR/*.npz. ARCHITECTURE: "bert" or "vit" where the model is such a
transformer. A last line "NOTE ..." on standard output says what had to be done otherwise.
"""

import glob
import os
import sys

import numpy as np
import onnx


class Samples:
    """A calibration data reader, as ONNX Runtime and what is built on it take them."""

    def __init__(self, folder):
        self.files = sorted(glob.glob(os.path.join(folder, "*.npz")))
        self.at = 0

    def __len__(self):
        return len(self.files)

    def get_next(self):
        if self.at >= len(self.files):
            return None
        self.at += 1
        return self[self.at - 1]

    def rewind(self):
        self.at = 0

    def __getitem__(self, i):
        if i >= len(self.files):
            raise IndexError(i)
        with np.load(self.files[i]) as arrays:
            return dict(arrays)


def _prepared(source, target):
    """The model after ONNX Runtime's preprocessing for quantization: shapes, and its basic optimizations."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = target + ".prepared.onnx"
    try:
        quant_pre_process(source, path, auto_merge=True)
    except Exception as error:
        print("NOTE symbolic shapes failed in preprocessing:", type(error).__name__)
        quant_pre_process(source, path, skip_symbolic_shape=True)
    return path


def _opset(path):
    return next((o.version for o in onnx.load(path, load_external_data=False).opset_import if o.domain in ("", "ai.onnx")), 0)


def ort_static(source, target, folder, architecture):
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    prepared = _prepared(source, target)
    per_channel = _opset(prepared) >= 13
    if not per_channel:
        print("NOTE per tensor: opset below 13")
    quantize_static(
        prepared, target, Samples(folder), quant_format=QuantFormat.QDQ, per_channel=per_channel, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip
    os.remove(prepared)


def ort_dynamic(source, target, folder, architecture):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = _prepared(source, target)
    quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=_opset(prepared) >= 13)
    os.remove(prepared)


def ort_dynamic_matmul(source, target, folder, architecture):
    """The advice for transformers: products of matrices alone."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = _prepared(source, target)
    operators = ["MatMul", "Gemm", "Attention", "LSTM"]
    quantize_dynamic(prepared, target, weight_type=QuantType.QInt8, per_channel=_opset(prepared) >= 13, op_types_to_quantize=operators)
    os.remove(prepared)


def ort_int4(source, target, folder, architecture):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    prepared = _prepared(source, target)
    quantizer = MatMulNBitsQuantizer(onnx.load(prepared), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    onnx.save(quantizer.model.model, target)
    os.remove(prepared)


def nncf(source, target, folder, architecture):
    import logging

    import nncf as tool

    tool.set_log_level(logging.ERROR)
    prepared = _prepared(source, target)
    more = {"model_type": tool.ModelType.TRANSFORMER} if architecture else {}
    samples = list(Samples(folder))
    onnx.save(tool.quantize(onnx.load(prepared), tool.Dataset(samples), subset_size=len(samples), **more), target)
    os.remove(prepared)


def neural_compressor(source, target, folder, architecture):
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, config, quantize

    class Reader(Samples, data_reader.CalibrationDataReader):
        pass

    quantize(source, target, config.StaticQuantConfig(
        calibration_data_reader=Reader(folder), quant_format=QuantFormat.QDQ, per_channel=_opset(source) >= 13
    ))  # fmt: skip
    beside = glob.glob(glob.escape(target) + "_data")
    onnx.save(onnx.load(target), target)
    for path in beside:
        os.remove(path)


def olive(source, target, folder, architecture):
    import shutil
    import tempfile

    import torch
    from olive.data.component.dataset import BaseDataset
    from olive.data.registry import Registry
    from olive.workflows import run

    @Registry.register_dataset("graphopt_samples")
    def graphopt_samples(data_dir=None, **_):
        return BaseDataset([{name: torch.from_numpy(np.array(value)) for name, value in fed.items()} for fed in Samples(folder)])

    @Registry.register_pre_process("graphopt_untouched")
    def graphopt_untouched(dataset, **_):
        return dataset

    data = {
        "name": "samples", "type": "DataContainer", "load_dataset_config": {"type": "graphopt_samples"},
        "pre_process_data_config": {"type": "graphopt_untouched"}, "dataloader_config": {"type": "no_auto_batch_dataloader"},
    }  # fmt: skip
    work = tempfile.mkdtemp()
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    run({
        "input_model": {"type": "ONNXModel", "model_path": source},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [data],
        "passes": {"quantize": {
            "type": "OnnxStaticQuantization", "data_config": "samples", "quant_format": "QDQ", "per_channel": _opset(source) >= 13,
        }},
        "host": "here", "target": "here", "output_dir": work, "cache_dir": os.path.join(work, "cache"), "log_severity_level": 3,
    })  # fmt: skip
    made = sorted((p for p in glob.glob(work + "/**/*.onnx", recursive=True) if "/cache/" not in p), key=os.path.getmtime)
    onnx.save(onnx.load(made[-1]), target)
    shutil.rmtree(work)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    globals()[name](*arguments, *([""] * (4 - len(arguments))))
