"""Damaged and malicious GGUF files: each ends in one ValueError line, in little time, without memory for what it claims."""

import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf_reader import find_smollm2, main, read_gguf

LIMIT_SECONDS, LIMIT_BYTES = 2, 2_000_000  # of each refusal; the files claim up to 2**64 bytes


def text(value) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key, kind: int, value: bytes) -> bytes:
    """A metadata entry: key, type, value."""
    return text(key) + struct.pack("<I", kind) + value


def array(key, kind: int, length: int, values: bytes) -> bytes:
    return entry(key, 9, struct.pack("<IQ", kind, length) + values)


def tensor(name, dimensions=(32,), kind=0, offset=0, count=None) -> bytes:
    """An entry of the tensor table; dimensions in the file's order."""
    count = len(dimensions) if count is None else count
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", count, *dimensions, kind, offset)


def gguf_bytes(entries=(), tensors=(), weights=b"", version=3, order="<", counts=None) -> bytes:
    num_tensors, num_entries = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, num_tensors, num_entries) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + weights


F32 = bytes(128)  # 32 weights
HUGE = 2**64 - 1
HOSTILE = {
    "empty": (b"", "not a GGUF file"),
    "wrong magic": (b"GGML" + gguf_bytes()[4:], "not a GGUF file"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1"),
    "big-endian": (gguf_bytes(order=">"), "big-endian"),
    "absurd number of tensors": (gguf_bytes(counts=(HUGE, 0)), "truncated|not printable"),
    "absurd number of entries": (gguf_bytes(counts=(0, HUGE)), "truncated|not printable"),
    "absurd number of entries, all zeros": (gguf_bytes(counts=(0, HUGE), weights=bytes(50_000_000)), "are called"),
    "absurd key length": (gguf_bytes([struct.pack("<Q", HUGE) + b"key"]), "truncated"),
    "absurd string length": (gguf_bytes([entry("a", 8, struct.pack("<Q", 2**62))]), "truncated"),
    "absurd list of numbers": (gguf_bytes([array("a", 4, 2**62, b"")]), "truncated"),
    "absurd list of texts": (gguf_bytes([array("a", 8, HUGE, b"")]), "truncated"),
    "list of texts longer than the file": (gguf_bytes([array("a", 8, 10**6, text("x") * 20)]), "truncated"),
    "list of lists": (gguf_bytes([array("a", 9, 1, struct.pack("<IQ", 4, 1) + b"\1\0\0\0")]), "lists inside lists"),
    "lists nested without end": (gguf_bytes([array("a", 9, 1, struct.pack("<IQ", 9, 1) * 100_000)]), "lists inside lists"),
    "unknown metadata type": (gguf_bytes([entry("a", 77, b"")]), "unknown type 77"),
    "list of an unknown type": (gguf_bytes([array("a", 77, 1, b"")]), "unknown type 77"),
    "key that is not UTF-8": (gguf_bytes([entry(b"\xff\xfe", 7, b"\1")]), "not UTF-8"),
    "text that is not UTF-8": (gguf_bytes([entry("a", 8, text(b"ab\xc3"))]), "not UTF-8"),
    "text in a list that is not UTF-8": (gguf_bytes([array("a", 8, 2, text("x") + text(b"\xed\xa0\x80"))]), "not UTF-8"),
    "key with a line end": (gguf_bytes([entry("a\nb", 7, b"\1")]), "not printable"),
    "key of a megabyte": (gguf_bytes([entry("a" * 10**6, 7, b"\1")]), "1,000,000 characters"),
    "key twice": (gguf_bytes([entry("a", 7, b"\1"), entry("a", 7, b"\0")]), "are called a"),
    "tensor twice": (gguf_bytes([], [tensor("t"), tensor("t", offset=128)], F32 * 2), "are called t"),
    "tensor name with an escape": (gguf_bytes([], [tensor("\x1b[2J")], F32), "not printable"),
    "tensor type unknown": (gguf_bytes([], [tensor("t", kind=99)], F32), "unknown type 99"),
    "tensor type not read here": (gguf_bytes([], [tensor("t", (256,), kind=10)], F32), r"unknown type 10 \(Q2_K\)"),
    "no dimensions": (gguf_bytes([], [tensor("t", ())], F32), "0 dimensions"),
    "absurd number of dimensions": (gguf_bytes([], [tensor("t", count=2**32 - 1)], F32), "4,294,967,295 dimensions"),
    "absurd dimension": (gguf_bytes([], [tensor("t", (HUGE,))], F32), "truncated"),
    "product beyond 64 bits": (gguf_bytes([], [tensor("t", (2**32, 2**32, 2**32, 2**32))], F32), "truncated"),
    "product that is 0 in 64 bits": (gguf_bytes([], [tensor("t", (2**32, 2**32))], F32), "truncated"),
    "dimension of 0": (gguf_bytes([], [tensor("t", (32, 0))], F32), "empty"),
    "rows that are no whole blocks": (gguf_bytes([], [tensor("t", (48, 2), kind=8)], F32), "rows of 48 weights"),
    "rows that are no whole super-blocks": (gguf_bytes([], [tensor("t", (128, 2), kind=12)], F32), "rows of 128 weights"),
    "offset beyond the file": (gguf_bytes([], [tensor("t", offset=2**63)], F32), "truncated"),
    "tensor ends beyond the file": (gguf_bytes([], [tensor("t", offset=32)], F32), "truncated"),
    "offset that is not aligned": (gguf_bytes([], [tensor("t", offset=4)], F32 * 2), "no multiple of 32"),
    "same offset": (gguf_bytes([], [tensor("t"), tensor("u")], F32 * 2), "t and u share bytes"),
    "overlap": (gguf_bytes([], [tensor("u", offset=96), tensor("t")], F32 * 2), "t and u share bytes"),
    "alignment 0": (gguf_bytes([entry("general.alignment", 4, bytes(4))], [tensor("t")], F32), "alignment is 0"),
    "alignment 12": (gguf_bytes([entry("general.alignment", 4, b"\x0c\0\0\0")], [tensor("t")], F32), "alignment is 12"),
    "negative alignment": (gguf_bytes([entry("general.alignment", 5, b"\xe0\xff\xff\xff")], [tensor("t")], F32), "alignment is -32"),
    "alignment as text": (gguf_bytes([entry("general.alignment", 8, text("32\n"))], [tensor("t")], F32), "alignment is '32"),
    "alignment beyond the file": (gguf_bytes([entry("general.alignment", 4, b"\0\0\0\x80")], [tensor("t")], F32), "truncated"),
}


def refusal(path, pattern: str) -> None:
    """Reading fails with one line that matches and names the file, within the limits."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=pattern) as caught:
            read_gguf(path)
        seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 400 and path.name in message
    assert seconds < LIMIT_SECONDS and peak < LIMIT_BYTES + 3 * min(path.stat().st_size, 2_000_000), (seconds, peak)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_line(tmp_path, name):
    data, pattern = HOSTILE[name]
    (tmp_path / "hostile.gguf").write_bytes(data)
    refusal(tmp_path / "hostile.gguf", pattern)


def test_the_hand_made_files_are_right_where_nothing_is_wrong(tmp_path):
    """Otherwise the refusals above might have another reason than the one they are named for."""
    weights = np.arange(64, dtype="<f4")
    whole = gguf_bytes(
        [entry("general.alignment", 4, b"\x40\0\0\0"), array("names", 8, 2, text("ä") + text("")), array("numbers", 3, 2, b"\1\0\xff\xff"),
         array("none", 8, 0, b""), entry("yes", 7, b"\1")],
        [tensor("u", (8, 4), offset=128), tensor("t", (32,))],
    )
    whole += bytes(-len(whole) % 64) + weights.tobytes()
    (tmp_path / "good.gguf").write_bytes(whole)
    metadata, tensors = read_gguf(tmp_path / "good.gguf")
    assert metadata == {"general.alignment": 64, "names": ["ä", ""], "numbers": [1, -1], "none": [], "yes": True}
    assert tensors["t"].tolist() == weights[:32].tolist() and tensors["u"].tolist() == weights[32:].reshape(4, 8).tolist()


@pytest.mark.slow
def test_a_file_cut_at_every_kilobyte_of_its_description_is_named(tmp_path):
    """A vocabulary of 1,500 entries with scores and merges, then tensors: over 200 cuts, and each byte of the start."""
    writer = gguf.GGUFWriter(tmp_path / "whole.gguf", "llama")
    tokens = [f"token {i} é" for i in range(1500)]
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.scores", [0.5] * 1500)
    writer.add_array("tokenizer.ggml.merges", [f"a{i} b{i}" for i in range(1500)])
    for layer in range(40):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = (tmp_path / "whole.gguf").read_bytes()
    metadata, tensors = read_gguf(tmp_path / "whole.gguf")
    assert metadata["tokenizer.ggml.tokens"] == tokens and len(tensors) == 40
    described = min(start for _, _, start, _ in tensors.table.values())
    cuts = [*range(120), *range(120, described, 1024), *range(described - 60, described + 200, 7), len(whole) - 1]
    assert len(cuts) > 200
    path = tmp_path / "cut.gguf"
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut.gguf"):
            read_gguf(path)


@pytest.mark.slow
def test_random_damage_never_ends_in_anything_but_a_line(tmp_path):
    """800 copies of a small file with one to four bytes changed: read, or refused with ValueError."""
    whole = bytearray(gguf_bytes(
        [entry("general.alignment", 4, b"\x20\0\0\0"), array("names", 8, 2, text("one") + text("two")), array("n", 6, 3, bytes(12))],
        [tensor("t", (32, 2), kind=8), tensor("u", (8, 4), offset=96)], bytes(96) + F32,
    ))
    rng = np.random.default_rng(6)
    path, read = tmp_path / "damaged.gguf", 0
    for _ in range(800):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            metadata, tensors = read_gguf(path)
            read += all(tensors[name].numel() > 0 for name in tensors)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and "damaged.gguf" in str(error)
    assert 50 < read < 750


def test_the_program_refuses_in_one_line(tmp_path, capsys):
    (tmp_path / "x.gguf").write_bytes(HOSTILE["list of lists"][0])
    with pytest.raises(SystemExit) as stop:
        main(["--path", str(tmp_path / "x.gguf")])
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_vocabulary_of_262144_entries_is_read_fast(tmp_path):
    """Gemma's size: texts, scores and types. 0.35 s on the processor it was written on; a slow one gets 1.5 s."""
    tokens = [f"piece{i}" for i in range(262_144)]
    packed = b"".join(map(text, tokens))
    scores = np.arange(262_144, dtype="<f4")
    (tmp_path / "v.gguf").write_bytes(gguf_bytes(
        [array("tokens", 8, len(tokens), packed), array("scores", 6, len(tokens), scores.tobytes())], [tensor("t")], F32
    ))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        metadata, _ = read_gguf(tmp_path / "v.gguf")
        seconds.append(time.process_time() - start)
    assert metadata["tokens"] == tokens and metadata["scores"] == scores.tolist()
    assert min(seconds) < 1.5


def test_smollm2_is_read_fast():
    start = time.process_time()
    read_gguf(find_smollm2())
    assert time.process_time() - start < 1.5
