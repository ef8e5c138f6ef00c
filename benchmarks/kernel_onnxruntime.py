"""onnxruntime's MatMulNBits as a contestant of kernels.py; run by it with GROUP HINT THREADS in the peers' environment.

    "matmul 128 500"    the four matrices of a layer of ChatGLM-6B, 128 tokens, for 500 ms: seconds of each run

Four bits a weight, a scale for every GROUP inputs, products of bytes: accuracy_level 4, its fastest. HINT is not used.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from peer_worker import repeated, serve_commands

MATRICES = ((12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384))
BYTES = 4


def session(O: int, I: int, group: int, threads: int) -> onnxruntime.InferenceSession:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (O, I // group, group // 2), dtype=np.uint8)
    scales = rng.random((O, I // group), dtype=np.float32) * np.float32(0.01)
    attributes = {"K": I, "N": O, "bits": 4, "block_size": group, "accuracy_level": BYTES}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", I])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["t", O])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def commands() -> dict[str, Callable[..., Any]]:
    group, threads = int(sys.argv[1]), int(sys.argv[3])
    sessions = [session(O, I, group, threads) for O, I in MATRICES]

    def matmul(T: int, budget_ms: int) -> list[float]:
        rng = np.random.default_rng(T)
        xs = [rng.standard_normal((T, I), np.float32) for _, I in MATRICES]

        def layer() -> None:
            for one, x in zip(sessions, xs, strict=True):
                one.run(None, {"x": x})

        return repeated(layer, budget_ms / 1e3)

    return {"matmul": matmul, "about": lambda: f"onnxruntime {onnxruntime.__version__}"}


if __name__ == "__main__":
    serve_commands(commands)
