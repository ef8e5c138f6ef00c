"""ran(layer_norm, x, ...): what a function that adds operations to a program gives, once they have run."""

from collections.abc import Callable
from typing import Any

import numba

from glmcpu.simd.program import Program


def ran(function: Callable[..., Any], *arguments: Any) -> Any:
    program = Program(numba.get_num_threads())
    result = function(program, *arguments)
    program.finish()
    return result
