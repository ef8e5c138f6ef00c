"""What LLVM makes of one word for a CPU that need not be this one: compiled, never run."""

from collections.abc import Callable

import pytest
from llvmlite import binding, ir

BYTES = ir.VectorType(ir.IntType(8), 64)
INTS = ir.VectorType(ir.IntType(32), 16)
HALVES = ir.VectorType(ir.IntType(16), 16)
FLOATS = ir.VectorType(ir.FloatType(), 16)

Word = Callable[..., ir.Value]
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


def assembly(word: Word, inputs: list[ir.Type], output: ir.Type, triple: str, cpu: str, features: str) -> list[str]:
    """The instructions of a function that loads the inputs from memory and stores word(builder, *inputs).

    Skips the test where this llvmlite cannot compile for `triple`.
    """
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple(triple)
    except RuntimeError as error:
        pytest.skip(f"this llvmlite does not compile for {triple}: {error}")
    module = ir.Module()
    module.triple = triple
    kind = ir.FunctionType(ir.VoidType(), [t.as_pointer() for t in [output, *inputs]])
    function = ir.Function(module, kind, "word")
    builder = ir.IRBuilder(function.append_basic_block())
    values = [builder.load(pointer, align=1) for pointer in function.args[1:]]
    builder.store(word(builder, *values), function.args[0], align=1)
    builder.ret_void()
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3)
    text = machine.emit_assembly(binding.parse_assembly(str(module)))
    return [line.strip() for line in text.splitlines() if line.startswith("\t") and not line.startswith("\t.")]
