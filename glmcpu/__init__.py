"""glmcpu: ChatGLM-6B on a CPU, from a checkpoint to a conversation."""

from glmcpu.errors import GlmcpuError

__all__ = ["GlmcpuError", "__version__"]
__version__ = "0.1.0"
