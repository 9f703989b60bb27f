"""Models of this course that write one token at a time with compiled steps, several times faster than PyTorch on a CPU.

    from fast_decode import FastModel
    fast = FastModel(model, weights="int8")
    for ids in generate_text_basic_stream(fast, prompt, 100, cache=fast.new_cache()): ...

The PyTorch model reads the prompt, which it does well; each new token takes one call of a compiled function over weights in a
form of their own. For Llama 3 and SmolLM2, Gemma 3, and chapter 4's GPTModel (gpt2-mini, GPT-2). Needs the package numba.
"""

import threading

import numpy as np
import torch
from fast_storage import as_array, bytes_of, pad_rows, stack_matrices, store_file_blocks, store_float32, store_int8, store_int8_blocks
from previous_chapters import KVCache

try:
    import numba
    from decode_steps import gemma_step, gpt_step, llama_step
except ImportError:
    numba = None

FORMS = {"float32": store_float32, "int8": store_int8, "int8_blocks": store_int8_blocks}
READ_BY_STEPS = 4  # up to so many tokens are read one by one: a pass of the PyTorch model would take longer
ONE_AT_A_TIME = threading.Lock()  # numba's threads serve one caller; a server may have several


class StackedKVCache(KVCache):
    """A KVCache of one text whose layers lie in one tensor each for keys and values, (n_layers, groups, room, head_dim).

    PyTorch models and compiled steps write to the same memory. Notebook, section 6.
    """

    def __init__(self, n_layers: int, max_length: int):
        super().__init__(n_layers, max_length)
        self.reset()

    def reset(self):
        self.keys = self.values = torch.empty(len(self.cache), 0, 0, 0)
        self.lengths = [0] * len(self.cache)

    def __len__(self):
        return self.lengths[0]

    def get(self, layer_idx):
        length = self.lengths[layer_idx]
        return (self.keys[layer_idx, None, :, :length], self.values[layer_idx, None, :, :length]) if length else None

    def get_all(self):
        return [self.get(layer_idx) for layer_idx in range(len(self.lengths))]

    def update(self, layer_idx, value):
        """Replace a layer's entry, as the plain models do after joining old and new keys."""
        self.lengths[layer_idx] = 0
        if value is not None:
            self.append(layer_idx, *value)

    def reorder(self, rows):
        raise ValueError("this cache holds one text, whose row cannot be reordered")

    def make_room(self, length: int, groups: int, head_dim: int) -> None:
        """Room for `length` tokens, twice what is needed now but never more than max_length; ValueError beyond it."""
        if length > self.max_length:
            raise ValueError(f"{length} tokens do not fit the context of {self.max_length}")
        if self.keys.shape[2] >= length and self.keys.shape[1] == groups:
            return
        room, held = min(max(2 * length, 64), self.max_length), max(self.lengths)
        for name in ("keys", "values"):
            old, new = getattr(self, name), torch.zeros(len(self.lengths), groups, room, head_dim)
            if held:
                new[:, :, :held] = old[:, :, :held]
            setattr(self, name, new)

    def append(self, layer_idx, keys, values):
        """Put keys and values (1, groups, new_tokens, head_dim) behind the old ones; returns all of them."""
        b, groups, num_tokens, head_dim = keys.shape
        if b != 1:
            raise ValueError(f"this cache holds one text, not {b} rows")
        used = self.lengths[layer_idx]
        self.make_room(used + num_tokens, groups, head_dim)
        self.keys[layer_idx, :, used : used + num_tokens], self.values[layer_idx, :, used : used + num_tokens] = keys[0], values[0]
        self.lengths[layer_idx] = used + num_tokens
        return self.get(layer_idx)

    def crop(self, length: int) -> None:
        if not 0 <= length <= len(self):
            raise ValueError(f"cannot crop a cache of {len(self)} tokens to {length}")
        self.lengths = [length] * len(self.lengths)


def matrices_of(model, blocks: str, groups: tuple, matrix_of) -> tuple:
    """One stacked matrix for each group of layers of all blocks, then the head."""
    count = len(getattr(model, blocks))
    stacked = [stack_matrices([[matrix_of(f"{blocks}.{n}.{part}") for part in parts] for n in range(count)]) for parts in groups]
    return *stacked, matrix_of("out_head")


def stacked_vectors(blocks, name: str) -> np.ndarray:
    """A vector of each block, by its path, (n_layers, size)."""
    return np.stack([as_array(block.get_parameter(name)) for block in blocks])


def prepare_llama(model, matrix_of):
    """(step, weights, what else the step takes before the cache, groups, head_dim) of Llama 3."""
    parts = ("att.W_query", "att.W_key", "att.W_value"), ("att.out_proj",), ("ff.fc1", "ff.fc2"), ("ff.fc3",)
    blocks, half = model.trf_blocks, model.cos.shape[1] // 2
    norms = stacked_vectors(blocks, "norm1.weight"), stacked_vectors(blocks, "norm2.weight"), as_array(model.final_norm.weight)
    tables = as_array(model.cos[:, :half]), as_array(model.sin[:, :half])
    att = blocks[0].att
    return llama_step, matrices_of(model, "trf_blocks", parts, matrix_of), (norms, tables), att.num_kv_groups, att.head_dim


def prepare_gemma(model, matrix_of):
    """The same for Gemma 3; the norms get their 1 here."""
    parts = ("att.W_query", "att.W_key", "att.W_value"), ("att.out_proj",), ("ff.fc1", "ff.fc2"), ("ff.fc3",)
    blocks, att = model.blocks, model.blocks[0].att
    if att.q_norm is None:
        raise ValueError("the compiled step of Gemma 3 needs a model with qk_norm")
    names = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
        "att.q_norm",
        "att.k_norm",
    )
    norms = *(1 + stacked_vectors(blocks, f"{name}.scale") for name in names), 1 + as_array(model.final_norm.scale)
    half = att.head_dim // 2
    tables = tuple(as_array(table[:, :half]) for table in (model.cos, model.sin, model.cos_local, model.sin_local))
    windows = np.array([block.att.sliding_window or 0 for block in blocks])
    extra = norms, tables, windows, att.scaling
    return gemma_step, matrices_of(model, "blocks", parts, matrix_of), extra, att.num_kv_groups, att.head_dim


def prepare_gpt(model, matrix_of):
    """The same for chapter 4's GPTModel; a missing bias of queries, keys and values is zeros."""
    parts = ("att.W_query", "att.W_key", "att.W_value"), ("att.out_proj",), ("ff.layers.0",), ("ff.layers.2",)
    blocks, att = model.trf_blocks, model.trf_blocks[0].att
    norms = [stacked_vectors(blocks, name) for name in ("norm1.scale", "norm1.shift", "norm2.scale", "norm2.shift")]
    if att.W_query.bias is None:
        qkv_bias = np.zeros((len(blocks), 3 * att.d_out), np.float32)
    else:
        qkv_bias = np.concatenate([stacked_vectors(blocks, f"att.{name}.bias") for name in ("W_query", "W_key", "W_value")], axis=1)
    biases = [stacked_vectors(blocks, f"{name}.bias") for name in ("att.out_proj", "ff.layers.0", "ff.layers.2")]
    vectors = *norms, qkv_bias, *biases, as_array(model.final_norm.scale), as_array(model.final_norm.shift)
    return gpt_step, matrices_of(model, "trf_blocks", parts, matrix_of), (vectors,), att.num_heads, att.head_dim


def prepare(model, matrix_of):
    """Which architecture a model has follows from its parts; ValueError for one that has no compiled step."""
    if hasattr(model, "blocks"):
        return prepare_gemma(model, matrix_of)
    if hasattr(model, "pos_emb"):
        return prepare_gpt(model, matrix_of)
    if hasattr(model, "trf_blocks") and hasattr(model.trf_blocks[0].att, "num_kv_groups"):
        return prepare_llama(model, matrix_of)
    raise ValueError(f"no compiled step for a {type(model).__name__}")


def matrix_weight(model, name: str) -> np.ndarray:
    """A linear layer's weight (rows, d_in); the head gets rows of zeros up to whole groups, which a vocabulary need not have."""
    weight = as_array(model.get_submodule(name).weight)
    return pad_rows(weight) if name == "out_head" else weight


def rows_of_head(matrix) -> int:
    """Rows of one matrix in any form: its logits, those of added rows included."""
    weights = matrix[0]
    return len(weights) * (weights.shape[-1] if weights.ndim > 2 else 1)


def sizes_of(model) -> dict:
    """The model's configuration, or for a GPTModel, which keeps none, the three sizes that generating needs."""
    if hasattr(model, "cfg"):
        return model.cfg
    sizes = {"vocab_size": len(model.tok_emb.weight), "context_length": len(model.pos_emb.weight)}
    return {**sizes, "n_layers": len(model.trf_blocks)}


class FastModel:
    """A model with a compiled step. Called like the models of folder 07: ids (1, num_tokens), a cache of `new_cache()`.

    weights: "float32", "int8" (one scale a row), "int8_blocks" (one for 32 numbers), or a function from the name of a linear
    layer to its matrix, such as `file_blocks` makes. threads: at most so many cores; a second one pays where one
    cannot take all that the memory delivers.
    ImportError without numba, ValueError for a model without a step. Notebook, section 6.
    """

    def __init__(self, model, weights="int8", threads: int = 1):
        if numba is None:
            raise ImportError("the compiled steps need numba (python -m pip install numba); the PyTorch model works without it")
        if isinstance(weights, str) and weights not in FORMS:
            raise ValueError(f"weights is {weights!r}; known are {', '.join(FORMS)}")
        if threads < 1:
            raise ValueError(f"threads is {threads}, it must be at least 1")
        matrix_of = weights if callable(weights) else lambda name: FORMS[weights](matrix_weight(model, name))
        self.step, self.weights, self.extra, self.groups, self.head_dim = prepare(model, matrix_of)
        self.model, self.cfg = model.eval(), sizes_of(model)
        self.threads = min(threads, numba.config.NUMBA_NUM_THREADS)
        self.has_cache = not hasattr(model, "pos_emb")  # chapter 4's GPTModel has none: its prompts are read by steps
        self.reads = bytes_of(self.weights)  # bytes of weights a token
        self.tok_emb = model.tok_emb  # callers ask it for the model's device

    def new_cache(self) -> StackedKVCache:
        return StackedKVCache(self.cfg["n_layers"], self.cfg["context_length"])

    def embed(self, token_id: int, position: int) -> np.ndarray:
        """What the first block reads, (emb_dim)."""
        x = self.model.tok_emb.weight[token_id].detach()
        if hasattr(self.model, "blocks"):  # Gemma's scaling, rounded to the number type as in training
            x = x * torch.tensor(self.cfg["emb_dim"] ** 0.5, dtype=x.dtype)
        if not self.has_cache:
            x = x + self.model.pos_emb.weight[position].detach()
        return x.float().numpy().copy()

    def read_token(self, token_id: int, cache: StackedKVCache) -> np.ndarray:
        """One compiled step: the token joins the cache; returns the logits (vocab_size)."""
        position = len(cache)
        cache.make_room(position + 1, self.groups, self.head_dim)
        logits = np.empty(rows_of_head(self.weights[-1]), np.float32)
        memory = cache.keys.numpy(), cache.values.numpy()
        with ONE_AT_A_TIME:
            self.step(self.embed(token_id, position), position, self.weights, *self.extra, memory, self.threads, logits)
        cache.lengths = [position + 1] * len(cache.lengths)
        return logits[: self.cfg["vocab_size"]]

    @torch.inference_mode()
    def __call__(self, in_idx, cache, attention_mask=None, only_last=True):
        """ids (1, num_tokens), which continue the cache -> logits of the last one, (1, 1, vocab_size).

        ValueError for several rows, a mask, another cache, ids outside the vocabulary, and a text beyond the context.
        """
        if in_idx.shape[0] != 1 or attention_mask is not None or not only_last:
            raise ValueError("compiled steps write one text without padding; for several, the PyTorch model is the faster one")
        if in_idx.shape[1] == 0:
            raise ValueError("there is no token to read")
        if not isinstance(cache, StackedKVCache):
            raise ValueError("pass a cache that new_cache() made")
        if len(cache) + in_idx.shape[1] > self.cfg["context_length"]:
            raise ValueError(f"{len(cache)} + {in_idx.shape[1]} tokens do not fit the context of {self.cfg['context_length']}")
        if not 0 <= int(in_idx.min()) <= int(in_idx.max()) < self.cfg["vocab_size"]:
            raise ValueError(f"ids from {int(in_idx.min())} to {int(in_idx.max())}: outside the vocabulary of {self.cfg['vocab_size']:,}")
        if self.has_cache and in_idx.shape[1] > READ_BY_STEPS:
            return self.model(in_idx, cache, only_last=True).float()
        for token_id in in_idx[0].tolist():
            logits = self.read_token(token_id, cache)
        return torch.from_numpy(logits)[None, None]


def file_blocks(metadata, tensors, rounded: bool = False):
    """A function for FastModel's `weights` that takes a Llama model's matrices from its GGUF file as they are (Q4_1, Q8_0).

    rounded: the products over 4 bits also round the vector, to 8 bits a number: faster, and no longer quite the same logits.
    """
    parts = {"W_query": "attn_q", "W_key": "attn_k", "W_value": "attn_v", "att.out_proj": "attn_output",
             "ff.fc1": "ffn_gate", "ff.fc2": "ffn_up", "ff.fc3": "ffn_down"}  # fmt: skip
    heads = {"attn_q": metadata["llama.attention.head_count"], "attn_k": metadata["llama.attention.head_count_kv"]}

    def matrix_of(name):
        if name == "out_head":
            return store_file_blocks(*tensors.raw("output.weight" if "output.weight" in tensors else "token_embd.weight"))
        _, layer, part = name.split(".", 2)
        source = next(source for ending, source in parts.items() if part.endswith(ending))
        kind, shape, data = tensors.raw(f"blk.{layer}.{source}.weight")
        order = None
        if source in heads:  # the file keeps the partners of a rotation in neighboring rows, the model half a head apart
            order = np.arange(shape[0]).reshape(heads[source], -1, 2).swapaxes(1, 2).reshape(-1)
        return store_file_blocks(kind, shape, data, order, rounded)

    return matrix_of
