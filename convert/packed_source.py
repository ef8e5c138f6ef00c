"""A model packed in f16 or f32 as the source of a smaller one: nothing was lost in it, so it stands for its checkpoint.

The file is read as a checkpoint's files are, a slab of rows at a time into buffers, and every tensor is compared with
its checksum on the way. Stored blocks (blocks of 16 outputs, I, 16) become rows again.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import packed
from glmcpu.errors import DataError, printable, shown
from glmcpu.model import read_config
from glmcpu.packed import PackedFile
from glmcpu.safetensors_header import read_header

from . import stored_tensor
from .chatglm import Source
from .origin import Origin
from .safetensors_reader import read_safetensors
from .weight_file import WeightFile

EXACT = ("f16", "f32")
"""The formats a model can be made smaller from: their array `values` holds the weights themselves."""

_ROWS = 16  # outputs in a block


class PackedTensors:
    """The tensors of a packed file under our own names: matrices as (O, I) float32, vectors as they are."""

    def __init__(self, file: WeightFile, contents: packed.Contents, outputs: dict[str, int]) -> None:
        self.files = (file.path,)
        self._outputs = outputs
        self._stored = {
            name: replace(tensor, storage=replace(tensor.storage, checksum=_crc(contents.checksums[name], file.name)))
            for name, tensor in read_safetensors(file).items()
        }

    def slabs(self, name: str, rows: int) -> Iterator[NDArray[np.float32]]:
        """Blocks of `rows` rows, a multiple of 16, of matrix `name`; each is valid until the next is asked for.

        Raises DataError when the checksum differs, MachineError when the file cannot be read or changes meanwhile.
        """
        left = self._outputs[name]
        for values in stored_tensor.slabs(self._stored[f"{name}.values"], rows // _ROWS):
            rows_of = values.transpose(0, 2, 1).reshape(-1, values.shape[1])[:left]
            yield rows_of
            left -= len(rows_of)

    def read(self, name: str) -> NDArray[Any]:
        """The whole vector `name`, in memory of its own; errors as `slabs`."""
        return stored_tensor.read(self._stored[name])


@contextlib.contextmanager
def open_packed(path: Path) -> Iterator[Origin]:
    """Opens a packed model in f16 or f32; the file must not change until the block ends.

    Raises DataError when it is none, or holds weights that are rounded already; MachineError when it cannot be read.
    """
    name = shown(path)
    with contextlib.closing(WeightFile(path)) as file:
        if "format_version" not in read_header(file.file, file.size_bytes, file.name).metadata:
            raise DataError(
                f"{name}: is not a packed model; give the folder of a checkpoint (config.json and the weights), or a "
                "model packed with --weights f16"
            )
        model = PackedFile(path)
        generation, config = read_config(model)
        matrices, vectors = generation.matrices(config), generation.vectors(config)
        if rounded := sorted({kind for kind in model.formats.values() if kind not in EXACT}):
            raise DataError(
                f"{name}: its weights are {printable(' '.join(rounded))}, rounded already; convert the checkpoint, or "
                f"a model packed with --weights {EXACT[0]}"
            )
        for matrix, (O, I) in matrices.items():
            model.weight(matrix, O, I)
        for vector, n in vectors.items():
            model.vector(vector, n)
        source = dict(model.contents.source)
        made_of = source.pop("files", {})
        yield Origin(
            name=name,
            tensors=PackedTensors(file, model.contents, {matrix: O for matrix, (O, _) in matrices.items()}),
            config=config,
            sources={matrix: Source(matrix, O, I, 0, None) for matrix, (O, I) in matrices.items()},
            dtypes=dict(model.formats),
            vectors={vector: (vector, n) for vector, n in vectors.items()},
            tokenizer=model.tokenizer(),
            notes=(),
            about={**source, "made_of": made_of},
        )


def _crc(text: str, name: str) -> int:
    try:
        return int(text, 16)
    except ValueError as error:
        raise DataError(
            f"{name}: {printable(text, 20)!r} in its header is no checksum; copy or convert the model again"
        ) from error
