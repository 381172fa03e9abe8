"""A float ONNX file -> the same with integer products, ranges found at run time: ONNX Runtime's own tool, quietly.

onnxruntime.quantization.quantize_dynamic replaces MatMul (and Gemm) by DynamicQuantizeLinear and MatMulInteger,
and LSTM by DynamicQuantizeLSTM, an operator of ONNX Runtime alone. It knows no GRU: that stays in float. The
weights are s8 with a scale per output, as octavo.quantize.dynamic has them. Convolutions are left alone: ranges
of their large inputs cost more than is won, and calibrated Q/DQ graphs (octavo.export) serve them better.
"""

from __future__ import annotations

import logging
from os import PathLike

from octavo.folder import atomic

OPERATORS = ("MatMul", "Gemm", "LSTM")


def dynamic(path: str | PathLike[str], out: str | PathLike[str]) -> dict[str, int]:
    """Write `out` from the float file `path`; how many nodes of each integer operator it has.

    ValueError where nothing can be replaced, or packages are missing.
    """
    try:
        import onnx
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ValueError(f"this needs {error.name}: pip install 'octavo[train]'") from None
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it advises its own pre-processing, which changes nothing here
    try:
        with atomic(out) as temporary:
            # Exporters leave large weights as expressions (Concat, Reshape); the tool wants them computed.
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(temporary)
            options.log_severity_level = 4
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            model = onnx.load(str(temporary))
            del model.graph.value_info[:]  # shapes of weights that the tool is about to transpose
            quantize_dynamic(
                model,
                temporary,
                op_types_to_quantize=list(OPERATORS),
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
            made = [node.op_type for node in onnx.load(str(temporary)).graph.node]
            names = ("MatMulInteger", "DynamicQuantizeLSTM")
            found = {name: made.count(name) for name in names if name in made}
            if not found:
                raise ValueError(
                    f"{path} has no MatMul, Gemm or LSTM with stored weights: nothing to quantize"
                )
    finally:
        log.setLevel(level)
    return found
