"""glmcpu: ChatGLM-6B on a CPU, from a checkpoint to a conversation.

    import glmcpu
    model = glmcpu.Model.load("chatglm-6b-int4_g32")
    response, history = model.chat("你好")

Importing this costs NumPy; Numba and the tokenizer are imported when a model is loaded.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmcpu.errors import BusyError, ContextWarning, DataError, GlmcpuError, MachineError, NetworkError, UsageError

if TYPE_CHECKING:
    from glmcpu.chat import ChatSession
    from glmcpu.engine import Engine
    from glmcpu.generate import Token
    from glmcpu.model import Model
    from glmcpu.sampling import Sampler
    from glmcpu.stream import Stream

__version__ = "0.1.0"
__all__ = [
    "BusyError",
    "ChatSession",
    "ContextWarning",
    "DataError",
    "Engine",
    "GlmcpuError",
    "MachineError",
    "Model",
    "NetworkError",
    "Sampler",
    "Stream",
    "Token",
    "UsageError",
    "__version__",
]

# Installed, convert/ lies in this folder; where Python runs in a checkout's root, it lies beside it.
_beside = Path(__file__).parents[1]
if (_beside / "convert" / "zip_directory.py").is_file():
    __path__.append(str(_beside))

_LAZY = {
    "ChatSession": "glmcpu.chat",
    "Engine": "glmcpu.engine",
    "Model": "glmcpu.model",
    "Sampler": "glmcpu.sampling",
    "Stream": "glmcpu.stream",
    "Token": "glmcpu.generate",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'glmcpu' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
