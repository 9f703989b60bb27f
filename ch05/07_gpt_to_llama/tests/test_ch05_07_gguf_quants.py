"""gguf_quants.py, bit for bit against the gguf package: its own quantized tensors, random bytes, and layouts written by hand."""

import gguf
import gguf_quants
import numpy as np
import pytest
import torch
from gguf_quants import DEQUANTIZE, OTHER_TYPES, TENSOR_TYPES, bytes_of_tensor, unpack_small_scales

KINDS = [name for name, _, _ in TENSOR_TYPES.values()]
QUANTIZED_BY_GGUF = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]  # it has no quantizer for the K formats
SCALES = {  # first byte of each float16 in a block
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def expected(raw: np.ndarray, kind: str, shape) -> torch.Tensor:
    return torch.from_numpy(np.array(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]), dtype=np.float32)).reshape(shape)


def random_blocks(kind: str, num_blocks: int, seed: int) -> np.ndarray:
    """Random bytes whose float16 scales are finite numbers of either sign; the integers take every value."""
    _, per_block, block_bytes = next(entry for entry in TENSOR_TYPES.values() if entry[0] == kind)
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    for place in SCALES[kind]:
        raw[:, place : place + 2] = rng.normal(size=(num_blocks, 1)).astype("<f2").view(np.uint8)
    return raw


@pytest.mark.parametrize("kind", QUANTIZED_BY_GGUF)
def test_what_the_gguf_package_quantizes_reads_back_bit_for_bit(kind):
    weight = np.random.default_rng(1).normal(size=(24, 512)).astype(np.float32)
    raw = gguf.quantize(weight, gguf.GGMLQuantizationType[kind])
    ours = DEQUANTIZE[kind](raw.tobytes(), weight.shape)
    assert ours.dtype == torch.float32 and torch.equal(ours, expected(raw, kind, weight.shape))
    assert len(raw.tobytes()) == bytes_of_tensor(gguf.GGMLQuantizationType[kind].value, weight.shape)


@pytest.mark.parametrize("kind", sorted(SCALES))
def test_random_blocks_equal_the_gguf_packages_bit_for_bit(kind):
    raw = random_blocks(kind, 3000, seed=2)
    per_block = next(entry[1] for entry in TENSOR_TYPES.values() if entry[0] == kind)
    shape = (500, 6 * per_block)
    assert torch.equal(DEQUANTIZE[kind](raw.tobytes(), shape), expected(raw.reshape(500, -1), kind, shape))


def test_every_bfloat16_and_float16_number_is_read():
    raw = np.arange(65_536, dtype="<u2")
    for kind, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        reference = torch.from_numpy(raw.view(np.int16).copy()).view(dtype).float()
        ours = DEQUANTIZE[kind](raw.tobytes(), (65_536,))
        assert torch.equal(ours.isnan(), reference.isnan()) and torch.equal(ours.nan_to_num(7), reference.nan_to_num(7)), kind


def test_the_block_sizes_and_types_are_those_of_ggml():
    for number, (name, per_block, block_bytes) in TENSOR_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (per_block, block_bytes)
        documented = f"{block_bytes * 8 / per_block:g} bits a weight"
        assert documented in DEQUANTIZE[name].__doc__, name
    assert set(DEQUANTIZE) == set(KINDS)
    for number, name in OTHER_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name and number not in TENSOR_TYPES


def test_small_scales_follow_the_layout_written_as_a_loop():
    packed = np.random.default_rng(3).integers(0, 256, (50, 12), dtype=np.uint8)
    scale, minimum = unpack_small_scales(packed)
    for block, row in enumerate(packed.tolist()):
        for i in range(4):
            assert scale[block, i, 0] == row[i] & 63 and minimum[block, i, 0] == row[4 + i] & 63
            assert scale[block, 4 + i, 0] == (row[8 + i] & 15) + 16 * (row[i] >> 6)
            assert minimum[block, 4 + i, 0] == (row[8 + i] >> 4) + 16 * (row[4 + i] >> 6)


def test_a_q6_k_super_block_follows_the_layout_written_as_a_loop():
    raw = random_blocks("Q6_K", 2, seed=4)
    weights = gguf_quants.dequantize_q6_k(raw.tobytes(), (2, 256))
    for block, row in enumerate(raw):
        scale = np.float32(row[208:210].copy().view("<f2")[0])
        for number in range(256):
            part, place = divmod(number, 128)  # half of the super-block, weight in it
            low = int(row[64 * part + place % 64]) >> 4 * (place >= 64) & 15
            high = int(row[128 + 32 * part + place % 32]) >> 2 * (place // 32) & 3
            small = np.float32(row[192 + number // 16].view(np.int8))
            assert weights[block, number] == scale * small * np.float32((low | high << 4) - 32)


@pytest.mark.parametrize("kind", sorted(SCALES))
def test_one_changed_bit_changes_a_weight(kind):
    """No byte of a block is read in vain: each bit of the integers and scales reaches the result."""
    raw = random_blocks(kind, 1, seed=5)[0]
    raw = np.where(raw == 0, 1, raw).astype(np.uint8)
    shape = (next(entry[1] for entry in TENSOR_TYPES.values() if entry[0] == kind),)
    before = DEQUANTIZE[kind](raw.tobytes(), shape)
    for place in range(len(raw)):
        for bit in range(8):
            changed = raw.copy()
            changed[place] ^= 1 << bit
            with np.errstate(invalid="ignore"):  # a flipped exponent bit can make a scale infinite
                assert not torch.equal(DEQUANTIZE[kind](changed.tobytes(), shape), before), (place, bit)


def test_unknown_types_and_rows_that_are_no_whole_blocks_are_named():
    with pytest.raises(ValueError, match="unknown type 10 .Q2_K."):
        bytes_of_tensor(10, (4, 256))
    with pytest.raises(ValueError, match="unknown type 99; known here: F32"):
        bytes_of_tensor(99, (4, 256))
    with pytest.raises(ValueError, match="rows of 250 weights, which Q4_K"):
        bytes_of_tensor(12, (256, 250))
    assert bytes_of_tensor(12, (3, 512)) == 3 * 2 * 144 and bytes_of_tensor(0, ()) == 4
