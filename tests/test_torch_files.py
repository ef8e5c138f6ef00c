"""The helper that writes checkpoints is itself compared, byte for byte, with files of torch."""

import io
import re
import zlib
from pathlib import Path

import pytest
from torch_files import View, state_dict_pickle, write_torch_zip

from glmcpu.convert.torch_zip import read_torch_zip
from glmcpu.convert.weight_file import WeightFile

GOLDEN = Path(__file__).parents[1].parent / "shared" / "golden" / "visible"
TYPES = {"f16": "HalfStorage", "f32": "FloatStorage", "i8": "CharStorage"}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints (../shared/golden) are not here")
@pytest.mark.parametrize("name", ["tiny-mini/pytorch_model-00002-of-00004.bin", "tiny-int8/pytorch_model.bin"])
def test_written_archive_equals_that_of_torch(name: str) -> None:
    golden = (GOLDEN / name).read_bytes()
    file = WeightFile(GOLDEN / name)
    views, storages = {}, {}
    for key, tensor in read_torch_zip(file).items():
        storage = tensor.storage
        views[key] = View(
            TYPES[storage.dtype], storage.key, storage.elements, tensor.offset, tensor.shape, tensor.stride
        )
        storages[storage.key] = (storage.size_bytes, [file.read(storage.begin, storage.size_bytes)])
    file.close()
    written = io.BytesIO()
    write_torch_zip(written, Path(name).stem, state_dict_pickle(views), storages)
    # Each file has a number of its own, made of 40 digits, and their checksum.
    number = re.search(rb"[0-9]{40}(?=PK\x07\x08)", golden)
    assert number is not None
    ours = written.getvalue().replace(b"1234567890" * 4, number[0])
    ours = ours.replace(
        zlib.crc32(b"1234567890" * 4).to_bytes(4, "little"), zlib.crc32(number[0]).to_bytes(4, "little")
    )
    assert ours == golden
