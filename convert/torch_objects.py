"""The things a torch checkpoint's pickle may name, and what becomes of them here.

    GLOBAL torch._utils _rebuild_tensor_v2, MARK,
      MARK 'storage' GLOBAL torch HalfStorage '0' 'cpu' 10240 TUPLE BINPERSID     -> StorageRef("f16", "0", 10240)
      offset 0, shape (320, 32), stride (32, 1), requires_grad False, hooks OrderedDict()
    TUPLE, REDUCE                                                                 -> TensorRef

GLOBALS is the whole list. Calling one of its functions builds a description of a tensor or an empty table, never an
object of torch's; `bind` then joins the descriptions to the bytes of the file.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmcpu import limits
from glmcpu.errors import DataError, printable

from .stored_tensor import Storage, StoredTensor, check_view
from .weight_file import WeightFile

_KEY_CHARS = 64


class RefusalError(ValueError):
    """A pickle does what a state dict does not need; the reader adds the file's name and the place."""


@dataclass(frozen=True)
class StorageRef:
    """The storage a pickle names: `elements` elements of `dtype` under `key`."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage; offset and strides in elements, as the pickle states them."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class StorageType:
    dtype: str


@dataclass(frozen=True)
class Function:
    name: str


_ORDERED_DICT = Function("OrderedDict")
_TENSOR = Function("_rebuild_tensor_v2")
_PARAMETER = Function("_rebuild_parameter")

GLOBALS: dict[str, Function | StorageType] = {
    "collections.OrderedDict": _ORDERED_DICT,
    "torch._utils._rebuild_tensor_v2": _TENSOR,
    "torch._utils._rebuild_parameter": _PARAMETER,
    "torch.DoubleStorage": StorageType("f64"),
    "torch.FloatStorage": StorageType("f32"),
    "torch.HalfStorage": StorageType("f16"),
    "torch.BFloat16Storage": StorageType("bf16"),
    "torch.LongStorage": StorageType("i64"),
    "torch.IntStorage": StorageType("i32"),
    "torch.ShortStorage": StorageType("i16"),
    "torch.CharStorage": StorageType("i8"),
    "torch.ByteStorage": StorageType("u8"),
    "torch.BoolStorage": StorageType("bool"),
}


def kind(value: Any) -> str:
    """What a value is, in one word for an error line. Values themselves are never printed: they may hold themselves."""
    return {StorageRef: "storage", TensorRef: "tensor"}.get(type(value), type(value).__name__.lower())


def storage(pid: Any) -> StorageRef:
    """A persistent id: ('storage', type, key, device, elements), in the legacy format with a sixth: None.

    The device is ignored. Raises RefusalError for anything else.
    """
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[5:] not in ((), (None,)):
        raise RefusalError("pickle refers to something else than a storage")
    tag, storage_type, key, device, elements = pid[:5]
    if tag != "storage" or not isinstance(storage_type, StorageType) or not isinstance(device, str):
        raise RefusalError("pickle refers to something else than a storage")
    if not isinstance(key, str) or not 1 <= len(key) <= _KEY_CHARS or not key.isprintable():
        raise RefusalError(f"pickle refers to a storage whose key is not a text of 1 to {_KEY_CHARS} characters")
    if not _is_index(elements):
        raise RefusalError(f"storage '{printable(key, 40)}' does not state how many elements it has")
    return StorageRef(storage_type.dtype, key, elements)


def call(function: Any, args: Any) -> Any:
    """The value of function(*args): an empty OrderedDict or a TensorRef. Raises RefusalError for anything else."""
    if not isinstance(function, Function) or not isinstance(args, tuple):
        raise RefusalError(f"pickle calls a {kind(function)} with a {kind(args)}")
    if function is _ORDERED_DICT and not args:
        return OrderedDict()
    if function is _PARAMETER and len(args) == 3 and isinstance(args[0], TensorRef):
        return args[0]
    if function is _TENSOR and len(args) == 6:
        return _tensor(*args)
    raise RefusalError(f"pickle calls {function.name} with {len(args)} arguments it does not take")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any) -> TensorRef:
    if not isinstance(storage, StorageRef) or not isinstance(requires_grad, bool) or not isinstance(hooks, dict):
        raise RefusalError("a tensor is built from other things than torch builds it from")
    if not _is_index(offset) or not _are_indices(shape) or not _are_indices(stride) or len(shape) != len(stride):
        raise RefusalError(f"a tensor of storage '{printable(storage.key, 40)}' has a bad offset, shape or stride")
    if len(shape) > limits.TENSOR_RANK:
        raise RefusalError(f"a tensor has {len(shape)} dimensions, and at most {limits.TENSOR_RANK} are read")
    return TensorRef(storage, offset, shape, stride)


def _is_index(value: Any) -> bool:
    """An int 0..2**63-1; a bool is none."""
    return type(value) is int and 0 <= value < 1 << 63


def _are_indices(values: Any) -> bool:
    return isinstance(values, tuple) and all(map(_is_index, values))


def state_dict(value: Any, name: str) -> dict[str, TensorRef]:
    """`value` as a table of tensors by name; raises DataError, beginning with `name`, when it is anything else."""
    if not isinstance(value, dict):
        raise DataError(f"{name}: holds a {kind(value)}; expected a dict of tensors by name")
    if len(value) > limits.TENSORS:
        raise DataError(f"{name}: {len(value):,} tensors, and at most {limits.TENSORS:,} are accepted")
    for key, tensor in value.items():
        if not isinstance(tensor, TensorRef):
            raise DataError(f"{name}: '{printable(key, 80)}' is a {kind(tensor)}; expected a dict of tensors by name")
        if not key or not key.isprintable():
            raise DataError(f"{name}: tensor name '{printable(key, 80)}' is refused; expected printable characters")
    return dict(value)


def bind(file: WeightFile, table: Mapping[str, TensorRef], storages: Mapping[str, Storage]) -> dict[str, StoredTensor]:
    """Joins each tensor to its storage; raises DataError when it does not lie inside it, or two disagree about it."""
    tensors = {}
    for name, ref in table.items():
        storage = storages[ref.storage.key]
        if (storage.dtype, storage.elements) != (ref.storage.dtype, ref.storage.elements):
            key = printable(storage.key, 40)
            raise DataError(f"{file.name}: storage '{key}' is described in two ways; download the file again")
        tensors[name] = StoredTensor(storage, ref.offset, ref.shape, ref.stride)
        check_view(tensors[name], f"{file.name}: tensor '{printable(name, 80)}'")
    return tensors
