"""What a torch pickle may name: a flat table of tensors that agree about their storage, and no more."""

from pathlib import Path

import pytest

from glmcpu.convert.stored_tensor import Storage
from glmcpu.convert.torch_objects import RefusalError, StorageRef, TensorRef, bind, call, state_dict
from glmcpu.convert.weight_file import WeightFile
from glmcpu.errors import DataError

TENSOR = TensorRef(StorageRef("f16", "0", 12), 0, (3, 4), (4, 1))


@pytest.mark.parametrize(
    ("value", "fragment"),
    [
        ([TENSOR], "holds a list"),
        (None, "holds a nonetype"),
        (TENSOR, "holds a tensor"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({"model": {"a": TENSOR}}, "'model' is a dict"),
        ({"a\0": TENSOR}, r"tensor name 'a\x00'"),
        ({"": TENSOR}, "tensor name ''"),
        ({str(n): TENSOR for n in range(4097)}, "4,097 tensors"),
    ],
)
def test_only_a_flat_table_of_tensors_is_a_state_dict(value: object, fragment: str) -> None:
    with pytest.raises(DataError) as caught:
        state_dict(value, "m.bin")
    assert str(caught.value).startswith("m.bin: ")
    assert fragment in str(caught.value)


def test_whatever_is_called_is_on_the_list() -> None:
    with pytest.raises(RefusalError, match="calls a builtin_function_or_method"):
        call(print, ("x",))


def test_tensors_that_disagree_about_their_storage_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"x")
    file = WeightFile(tmp_path / "m.bin")
    other = TensorRef(StorageRef("f32", "0", 6), 0, (6,), (1,))
    storages = {"0": Storage(file, "0", "f16", 12, 0)}
    assert bind(file, {"a": TENSOR}, storages)["a"].shape == (3, 4)
    with pytest.raises(DataError, match="storage '0' is described in two ways"):
        bind(file, {"a": TENSOR, "b": other}, storages)
    file.close()
