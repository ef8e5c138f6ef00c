"""OpenVINO's int4 as a contestant of kernels.py; run by it with GROUP HINT THREADS in the peers' environment.

    "matmul 128 500"    the four matrices of a layer of ChatGLM-6B, 128 tokens, for 500 ms: seconds of each run

Weights (u4 - 8) * half-precision scale, one for every GROUP inputs, as its own model converters write them. HINT is the
arithmetic it is asked for: bf16 (its fastest where the CPU has it) or f32.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as op
from peer_worker import repeated, serve_commands

MATRICES = ((12288, 4096), (4096, 4096), (16384, 4096), (4096, 16384))


def request(core: openvino.Core, O: int, I: int, group: int, settings: dict[str, str]) -> openvino.InferRequest:
    rng = np.random.default_rng(0)
    codes = openvino.Tensor(openvino.Type.u4, openvino.Shape([O, I // group, group]))
    codes.data.reshape(-1)[:] = rng.integers(0, 256, O * I // 2, dtype=np.uint8)
    zero = op.constant(np.full((O, I // group, 1), 8, np.float16))
    scales = op.constant((rng.random((O, I // group, 1)) * 0.01).astype(np.float16))
    weight = op.multiply(op.subtract(op.convert(openvino.op.Constant(codes), np.float16), zero), scales)
    flat = op.convert(op.reshape(weight, op.constant(np.array([O, I], np.int64)), False), np.float32)
    x = op.parameter([-1, I], np.float32)
    model = openvino.Model([op.result(op.matmul(x, flat, False, True))], [x])
    return core.compile_model(model, "CPU", settings).create_infer_request()


def commands() -> dict[str, Callable[..., Any]]:
    group, hint, threads = sys.argv[1:]
    core, settings = (
        openvino.Core(),
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": hint,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        },
    )
    requests = [request(core, O, I, int(group), settings) for O, I in MATRICES]

    def matmul(T: int, budget_ms: int) -> list[float]:
        rng = np.random.default_rng(T)
        xs = [rng.standard_normal((T, I), np.float32) for _, I in MATRICES]

        def layer() -> None:
            for one, x in zip(requests, xs, strict=True):
                one.infer({0: x}, share_inputs=True, share_outputs=True)

        return repeated(layer, budget_ms / 1e3)

    return {"matmul": matmul, "about": lambda: f"OpenVINO {openvino.__version__.partition('-')[0]}"}


if __name__ == "__main__":
    serve_commands(commands)
