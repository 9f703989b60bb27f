"""Compiled steps against the PyTorch models: equal logits in every form, cut in any way, and at the context's end.

Run it:  pytest ch05/20_fast_cpu_decoding/tests/test_ch05_20_fast_decode.py
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

if os.environ.get("CI") != "true":
    pytest.importorskip("numba", reason="needs numba: python -m pip install numba")

import fast_decode
import fast_storage
import kernels
import numpy as np
from fast_decode import FastModel, StackedKVCache
from gemma3 import Gemma3Model
from llama import Llama3Model, Llama3ModelFast, generate_text_basic_stream
from previous_chapters import GPTModel

FOLDER = Path(fast_decode.__file__).parent
SIZES = {"vocab_size": 97, "context_length": 128, "emb_dim": 64, "n_heads": 4, "n_layers": 3}  # fmt: skip
LLAMA = {**SIZES, "hidden_dim": 96, "n_kv_groups": 2, "rope_base": 10_000.0, "rope_freq": None, "dtype": torch.float32}
GPT = {**SIZES, "drop_rate": 0.1, "qkv_bias": False}
GEMMA = {
    **SIZES, "n_layers": 4, "hidden_dim": 96, "head_dim": 16, "qk_norm": True, "n_kv_groups": 2, "rope_base": 1_000_000.0,
    "rope_local_base": 10_000.0, "sliding_window": 7, "query_pre_attn_scalar": 20, "dtype": torch.float32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
BUILD = {
    "llama": lambda: Llama3ModelFast(LLAMA), "gemma": lambda: Gemma3Model(GEMMA),
    "gpt": lambda: GPTModel(GPT), "gpt, bias": lambda: GPTModel({**GPT, "qkv_bias": True}),
}  # fmt: skip


def random_model(name):
    """With weights larger than usual, norms and biases included, so that every mistake shows."""
    torch.manual_seed(5)
    model = BUILD[name]().eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def llama():
    model = random_model("llama")
    return model, FastModel(model, "float32", threads=1)


def greedy_ids(model, prompt, new_tokens, cache=None, ends=None):
    return [int(ids) for ids in generate_text_basic_stream(model, prompt, new_tokens, ends, cache=cache)]


# ---- the same numbers ----


@pytest.mark.parametrize("name", BUILD)
@torch.inference_mode()
@pytest.mark.slow
def test_every_token_of_a_text_has_the_models_logits(name):
    model, ids = random_model(name), torch.randint(0, 97, (1, 128))
    fast = FastModel(model, "float32")
    cache = fast.new_cache()
    logits = torch.stack([torch.from_numpy(fast.read_token(int(token), cache)) for token in ids[0]])
    assert torch.allclose(logits, model(ids)[0], atol=1e-4)
    with pytest.raises(ValueError, match="context of 128"):
        fast(ids[:, :1], cache)
    with pytest.raises(ValueError, match="context of 128"):
        fast.read_token(1, cache)


def rounded_rows(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def rounded_blocks(weight):
    return rounded_rows(weight.reshape(-1, 32)).reshape(weight.shape)


@pytest.mark.parametrize(("form", "rounded"), [("int8", rounded_rows), ("int8_blocks", rounded_blocks)])
@torch.inference_mode()
@pytest.mark.slow
def test_int8_has_the_logits_of_the_model_with_rounded_weights(llama, form, rounded):
    model, ids = random_model("llama"), torch.randint(0, 97, (1, 20))
    fast = FastModel(model, form)
    cache = fast.new_cache()
    logits = torch.stack([torch.from_numpy(fast.read_token(int(token), cache)) for token in ids[0]])
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.copy_(rounded(module.weight))
    assert torch.allclose(logits, model(ids)[0], atol=1e-3)
    assert not torch.allclose(logits, llama[0](ids)[0], atol=1e-3)  # rounding does show
    assert fast.reads < 0.35 * llama[1].reads


@torch.inference_mode()
def test_a_text_may_be_cut_anywhere_and_cropped(llama):
    model, fast = llama
    ids = torch.randint(0, 97, (1, 90))
    expected = model(ids)[0]
    for seed in range(6):
        cuts = torch.randint(1, 12, (60,), generator=torch.Generator().manual_seed(seed)).tolist()  # longer ones go to PyTorch
        cache, read = fast.new_cache(), 0
        for size in cuts:
            logits = fast(ids[:, read : read + size], cache)
            read = min(read + size, 90)
            assert len(cache) == read and torch.allclose(logits[0, 0], expected[read - 1], atol=1e-4)
            if read == 90:
                break
            if size == 5 and read > 20:
                read -= 15
                cache.crop(read)
    cache.reset()
    assert len(cache) == 0 and torch.allclose(fast(ids[:, :7], cache)[0, 0], expected[6], atol=1e-4)


def test_the_stream_writes_what_the_model_writes_and_stops_where_it_stops(llama):
    model, fast = llama
    for length in (1, 3, 30):
        prompt = torch.randint(0, 97, (1, length))
        expected = greedy_ids(model, prompt, 90)
        assert greedy_ids(fast, prompt, 90, fast.new_cache()) == expected
        end = expected[40]
        assert greedy_ids(fast, prompt, 90, fast.new_cache(), end) == expected[: expected.index(end)]
    with pytest.raises(ValueError, match="do not fit the context of 128"):
        greedy_ids(fast, prompt, 100, fast.new_cache())


@torch.inference_mode()
def test_threads_change_nothing_and_may_be_used_by_several_callers(llama):
    model, fast = llama
    two, ids = FastModel(model, "float32", threads=2), torch.randint(0, 97, (1, 4))
    expected = fast(ids, fast.new_cache())
    found = []
    callers = [threading.Thread(target=lambda: found.append(two(ids, two.new_cache()))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 4 and all(torch.equal(one, expected) for one in found)


@pytest.mark.slow
def test_compiled_steps_leave_pytorchs_threads_as_they_are():
    code = """
import torch; torch.set_num_threads(1)
import numpy as np
from kernels import parts_times
y = np.empty(4, np.float32)
parts_times(np.ones((4, 8), np.float32), np.ones(4, np.float32), np.zeros(1, np.float32), np.ones(8, np.float32), y, 2)
print(y.tolist(), torch.get_num_threads())
"""
    assert run_python(code) == "[8.0, 8.0, 8.0, 8.0] 1"


FILE_NAMES = {
    "W_query": "attn_q", "W_key": "attn_k", "W_value": "attn_v", "out_proj": "attn_output",
    "fc1": "ffn_gate", "fc2": "ffn_up", "fc3": "ffn_down",
}  # fmt: skip


@torch.inference_mode()
@pytest.mark.slow
def test_file_blocks_have_the_logits_of_the_weights_undone():
    model, tensors = Llama3Model({**LLAMA, "vocab_size": 96}).eval(), FakeFile()
    for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]:
        part = name.rsplit(".", 1)[-1]
        file_name = "output.weight" if part == "out_head" else f"blk.{name.split('.')[1]}.{FILE_NAMES[part]}.weight"
        weight = tensors.add(file_name, "Q8_0" if part == "out_head" else "Q4_1", *linear.weight.shape)
        if part in ("W_query", "W_key"):  # the model's partners stand half a head apart
            weight = weight.view(-1, 8, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        linear.weight.copy_(weight)
    metadata = {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2}
    fast, ids = FastModel(model, fast_decode.file_blocks(metadata, tensors)), torch.randint(0, 96, (1, 20))
    cache = fast.new_cache()
    logits = torch.stack([torch.from_numpy(fast.read_token(int(token), cache)) for token in ids[0]])
    assert torch.allclose(logits, model(ids)[0], atol=1e-3)


class FakeFile(dict):
    """Random GGUF tensors with what file_blocks reads, and their weights by a plain loop over bytes."""

    def raw(self, name):
        return self[name]

    def add(self, name, kind, rows, d_in):
        generator, weights, data = torch.Generator().manual_seed(len(self)), [], b""
        for _ in range(rows * d_in // 32):
            scale, minimum = (torch.rand(2, generator=generator) * 0.05).half()
            numbers = torch.randint(0, 16 if kind == "Q4_1" else 256, (32,), generator=generator)
            if kind == "Q4_1":
                data += scale.numpy().tobytes() + minimum.neg().numpy().tobytes()
                data += bytes(int(low) | int(high) << 4 for low, high in zip(numbers[:16], numbers[16:]))
                weights += [float(scale) * int(q) - float(minimum) for q in numbers]
            else:
                scale = scale / 8
                data += scale.numpy().tobytes() + bytes(numbers.tolist())
                weights += [float(scale) * (int(q) - 256 * (int(q) > 127)) for q in numbers]
        self[name] = (kind, (rows, d_in), data)
        return torch.tensor(weights).view(rows, d_in)


def rounded_vector(x):
    """Blocks of 32 numbers as whole numbers from -127 to 127 times their scale, by hand."""
    blocks = x.reshape(-1, 32).astype(np.float32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    numbers = np.rint(blocks * (np.float32(127) / np.maximum(largest, np.float32(1e-30))))
    return (numbers * (largest / np.float32(127))).reshape(-1)


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
@pytest.mark.slow
def test_the_rounded_product_is_the_exact_one_of_the_rounded_vector(size):
    numbers, file = np.random.default_rng(3), FakeFile()
    weight = file.add("w", "Q4_1", 48, 160).double().numpy()
    x = (size * numbers.standard_normal(160)).astype(np.float32)
    x[32:64] = 0  # a block without any scale
    y, exact = np.empty(48, np.float32), np.empty(48, np.float32)
    kernels.multiply(fast_storage.store_file_blocks(*file["w"], rounded=True), x, y, 1)
    kernels.multiply(fast_storage.store_file_blocks(*file["w"]), x, exact, 1)
    assert np.allclose(y, weight @ rounded_vector(x), atol=1e-5 * size)
    assert np.allclose(exact, weight @ x, atol=1e-5 * size)
    assert not np.allclose(y, exact, atol=1e-3 * size)  # rounding does show


@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x0F, 0xF0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_fit_a_word_of_16_bits(byte, sign):
    data = (np.float16(1).tobytes() + np.float16(-8).tobytes() + bytes([byte] * 16)) * 16
    x, y = np.full(32, sign, np.float32), np.empty(16, np.float32)
    kernels.multiply(fast_storage.store_file_blocks("Q4_1", (16, 32), data, rounded=True), x, y, 1)
    assert np.allclose(y, sign * 16 * ((byte & 15) + (byte >> 4) - 16), rtol=1e-6)


@pytest.mark.parametrize("name", ["plain llama", "gemma"])
@torch.inference_mode()
def test_a_cache_filled_by_any_model_is_continued_by_the_step(name):
    model = Llama3Model(LLAMA).eval() if name == "plain llama" else random_model(name)
    fast, ids = FastModel(model, "float32"), torch.randint(0, 97, (1, 30))
    cache, expected = fast.new_cache(), model(ids)[0]
    for start, stop in ((0, 10), (10, 11), (11, 20), (20, 21), (21, 30)):  # PyTorch and the step in turns
        assert torch.allclose(fast(ids[:, start:stop], cache)[0, 0], expected[stop - 1], atol=1e-4)
    cache.update(0, None)
    assert cache.get(0) is None


# ---- what is refused ----


def test_wrong_calls_are_refused_in_one_line(llama):
    model, fast = llama
    ids, cache = torch.zeros(1, 3, dtype=torch.long), fast.new_cache()
    for wrong, options, message in (
        (ids.repeat(2, 1), {}, "one text"), (ids, {"attention_mask": ids}, "one text"), (ids, {"only_last": False}, "one text"),
        (ids + 97, {}, "outside the vocabulary"), (ids - 1, {}, "outside the vocabulary"), (ids[:, :0], {}, "no token"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fast(wrong, cache, **options)
    assert len(cache) == 0
    with pytest.raises(ValueError, match="new_cache"):
        fast(ids, None)
    with pytest.raises(ValueError, match="known are float32, int8"):
        FastModel(model, "int4")
    with pytest.raises(ValueError, match="threads"):
        FastModel(model, threads=0)
    with pytest.raises(ValueError, match="no compiled step for a Linear"):
        FastModel(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="cannot crop"):
        cache.crop(1)
    with pytest.raises(ValueError, match="multiple of 32"):
        fast_storage.store_int8_blocks(torch.zeros(16, 40).numpy())
    with pytest.raises(ValueError, match="multiple of 16"):
        fast_storage.store_int8_blocks(torch.zeros(24, 64).numpy())
    with pytest.raises(ValueError, match="Q4_K"):
        fast_storage.store_file_blocks("Q4_K", (16, 256), b"")


def test_the_cache_refuses_what_it_cannot_hold():
    cache = StackedKVCache(2, 8)
    with pytest.raises(ValueError, match="one text"):
        cache.append(0, torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4))
    with pytest.raises(ValueError, match="context of 8"):
        cache.append(0, torch.zeros(1, 1, 9, 4), torch.zeros(1, 1, 9, 4))
    with pytest.raises(ValueError, match="reordered"):
        cache.reorder(torch.tensor([0, 0]))
    assert len(cache) == 0 and cache.get(0) is None and cache.get_all() == [None, None]


# ---- other machines ----


def run_python(code, **environment):
    """What a new Python in this folder prints; it must end well."""
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_numba_one_line_says_what_is_missing_and_the_model_still_works():
    code = """
import sys; sys.modules["numba"] = None
import torch
from fast_decode import FastModel, StackedKVCache
from llama import Llama3ModelFast, generate_text_basic_stream
model = Llama3ModelFast({"vocab_size": 9, "context_length": 8, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "hidden_dim": 8,
    "n_kv_groups": 1, "rope_base": 10000.0, "rope_freq": None, "dtype": torch.float32}).eval()
print(len(list(generate_text_basic_stream(model, torch.tensor([[1]]), 3, cache=StackedKVCache(1, 8)))))
try:
    FastModel(model)
except ImportError as error:
    print(error)
"""
    count, line = run_python(code).splitlines()
    assert count == "3" and "pip install numba" in line


PRODUCT = """
import numpy as np
{before}
import compiled_linears, fast_storage, machine_code
y = np.empty(3, np.float32)
compiled_linears.kept_multiply(fast_storage.store_float32(np.ones((3, 4), np.float32)), np.arange(4, dtype=np.float32), y, 1)
print(y.tolist(), machine_code.COMPILED)
"""


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path):
    (tmp_path / "file").write_text("")
    place = run_python(PRODUCT.format(before=""), LLM_COURSE_CACHE=str(tmp_path / "file" / "x"), XDG_CACHE_HOME=str(tmp_path / "good"))
    assert place.startswith("[6.0, 6.0, 6.0]") and str(tmp_path / "good") in place
    refuse = "import tempfile\ndef refuse(**_): raise PermissionError('read-only')\ntempfile.TemporaryFile = refuse"
    assert run_python(PRODUCT.format(before=refuse)) == "[6.0, 6.0, 6.0] None"


@pytest.mark.slow
def test_two_processes_may_compile_at_once_and_a_third_compiles_nothing(tmp_path):
    environment = {**os.environ, "LLM_COURSE_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", PRODUCT.format(before="")]
    both = [subprocess.Popen(command, cwd=FOLDER, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all(process.communicate()[0].startswith("[6.0, 6.0, 6.0]") and process.returncode == 0 for process in both)
    code = PRODUCT.format(before="") + "print(sum(compiled_linears.kept_multiply.stats.cache_hits.values()))"
    assert run_python(code, LLM_COURSE_CACHE=str(tmp_path)).endswith("\n1")


STEP = """
import sys, torch
from fast_decode import FastModel
from llama import Llama3ModelFast
from previous_chapters import GPTModel
torch.manual_seed(1)
model = GPTModel({gpt}) if sys.argv[1] == "gpt" else Llama3ModelFast({llama})
fast, ids = FastModel(model, "float32"), torch.arange(9)[None]
cache = fast.new_cache()
with torch.inference_mode():
    for token_id in range(9):
        logits = fast(ids[:, token_id : token_id + 1], cache)
    print(torch.allclose(logits[0, 0], model.eval()(ids)[0, -1], atol=1e-4), sum(fast.step.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_a_step_kept_by_a_process_that_found_other_kept_code_runs_in_the_next_process(tmp_path):
    # The second process compiles its step beside the code that the first has kept; the third loads it.
    command = [sys.executable, "-c", STEP.format(gpt=GPT, llama=LLAMA)]
    environment = {**os.environ, "LLM_COURSE_CACHE": str(tmp_path)}
    for name, hits in (("llama", 0), ("gpt", 0), ("gpt", 1), ("llama", 1)):
        done = subprocess.run([*command, name], cwd=FOLDER, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, f"True {hits}"), done.stderr[-500:]


def test_no_two_running_processes_share_a_folder_of_machine_code(tmp_path):
    environment = {**os.environ, "LLM_COURSE_CACHE": str(tmp_path)}
    wait = [sys.executable, "-c", "import machine_code; print(machine_code.COMPILED, flush=True); input()"]
    first = subprocess.Popen(wait, cwd=FOLDER, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    place = first.stdout.readline().strip()
    code = "import machine_code; print(machine_code.COMPILED)"
    beside = run_python(code, LLM_COURSE_CACHE=str(tmp_path))
    first.kill()  # without a chance to clean up
    first.communicate()
    assert beside != place and Path(beside).parent == Path(place).parent == next((tmp_path / "llm-course").iterdir())
    assert run_python(code, LLM_COURSE_CACHE=str(tmp_path)) == place


def test_an_edit_of_any_source_means_a_new_folder_of_machine_code(tmp_path):
    sources = ("machine_code.py", "fast_storage.py", "kernels.py", "decode_steps.py", "compiled_linears.py")
    for name in sources:
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import machine_code; print(machine_code.COMPILED)"
    places = [run_python(code, LLM_COURSE_CACHE=str(tmp_path))]
    for name in sources:
        with open(tmp_path / name, "a", encoding="utf-8") as file:
            file.write("# edited\n")
        places.append(run_python(code, LLM_COURSE_CACHE=str(tmp_path)))
    assert len(set(places)) == len(places)
