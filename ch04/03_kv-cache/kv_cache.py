"""The KV cache as an object, and the loops that generate with a cache, token by token.

`KVCache` keeps the keys and values of all layers outside the model, so that a program can cut them back (`crop`), reorder
their rows (`reorder`), or keep several texts at a time. `gpt_with_kv_cache_object.py` is a GPT that takes one.
"""

import warnings
from collections.abc import Iterator

import torch
import torch.nn as nn


class KVCache:
    """Keys and values of the tokens read so far.

    `cache` has one entry a layer: None, or a pair (keys, values), each (b, num_kv_heads, num_tokens, head_dim). `get` and
    `update` read and replace an entry; `append` adds tokens to it, in place, in room that doubles when it is full. So a pair
    from `get` is good until the next `append` after a `crop`; clone what has to last. max_length: never make room for more
    tokens than that. Folder 03 of chapter 4, section 6.
    """

    def __init__(self, n_layers: int, max_length: int | None = None):
        self.cache = [None] * n_layers
        self.buffers = [None] * n_layers  # where `append` writes; the pairs in `cache` are its filled part
        self.max_length = max_length

    def get(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        return self.cache[layer_idx]

    def update(self, layer_idx: int, value: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        self.cache[layer_idx] = value

    def get_all(self) -> list:
        return self.cache

    def reset(self) -> None:
        """Forget everything and free the memory."""
        self.cache = [None] * len(self.cache)
        self.buffers = [None] * len(self.cache)

    def __len__(self) -> int:
        """Number of tokens (of the first layer). An empty cache is false in an `if`: ask `cache is not None`."""
        return 0 if self.cache[0] is None else self.cache[0][0].shape[2]

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put new keys and values, each (b, num_kv_heads, new_tokens, head_dim), behind the old ones; return all of them.

        ValueError if they do not continue what is there (other rows, heads, width, dtype or device), or beyond max_length.
        """
        old = self.cache[layer_idx]
        used = 0 if old is None else old[0].shape[2]
        total = used + keys.shape[2]
        if old is not None and _kind(old[0]) != _kind(keys):
            raise ValueError(f"the cache holds {_kind(old[0])}, the new keys are {_kind(keys)}: call reset() first")
        if self.max_length is not None and total > self.max_length:
            raise ValueError(f"{used} cached + {keys.shape[2]} new tokens are more than max_length {self.max_length}")
        buffer = self.buffers[layer_idx]
        if not (_lies_in(old, buffer) and total <= buffer[0].shape[2]):
            buffer = self.buffers[layer_idx] = self._larger(old, keys, values, total)
        for part, new in zip(buffer, (keys, values)):
            part[:, :, used:total] = new
        self.cache[layer_idx] = (buffer[0][:, :, :total], buffer[1][:, :, :total])
        return self.cache[layer_idx]

    def _larger(self, old, keys: torch.Tensor, values: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for twice as many tokens as are needed now, so that copying stays rare; it begins with the old ones."""
        capacity = max(2 * total, 64)
        if self.max_length is not None:
            capacity = min(capacity, self.max_length)
        buffer = tuple(new.new_empty(*new.shape[:2], capacity, new.shape[3]) for new in (keys, values))
        for part, before in zip(buffer, old or ()):
            part[:, :, : before.shape[2]] = before
        return buffer

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens, for example the part of a conversation that did not change; ValueError if fewer are there."""
        if not 0 <= length <= len(self):
            raise ValueError(f"cannot crop a cache of {len(self)} tokens to {length}")
        if length == 0:
            return self.reset()
        self.cache = [pair and (pair[0][:, :, :length], pair[1][:, :, :length]) for pair in self.cache]

    def reorder(self, rows: torch.Tensor) -> None:
        """Make row i the old row rows[i]; rows (new_b), whole numbers. Rows may repeat or be left out: a beam search does both."""
        b = next((pair[0].shape[0] for pair in self.cache if pair is not None), 0)
        if rows.dim() != 1 or rows.numel() == 0 or not 0 <= int(rows.min()) <= int(rows.max()) < b:
            raise ValueError(f"rows {rows.tolist()} are not row numbers of a cache with {b} rows")
        self.cache = [pair and (pair[0].index_select(0, rows), pair[1].index_select(0, rows)) for pair in self.cache]


def _kind(keys: torch.Tensor) -> tuple:
    """What all keys of one layer share: (b, num_kv_heads, head_dim), dtype, device."""
    return (keys.shape[0], keys.shape[1], keys.shape[3]), keys.dtype, keys.device


def _lies_in(pair, buffer) -> bool:
    """Whether the pair is the beginning of the buffer; it is not after `update`, `reorder`, or a value put into `cache` by hand."""
    if pair is None or buffer is None:
        return False
    return all(part.data_ptr() == room.data_ptr() and _kind(part) == _kind(room) for part, room in zip(pair, buffer))


def check_room(cached: int, new: int, context_length: int) -> None:
    """ValueError if the cached and the new tokens together are more than context_length. Folder 03 of chapter 4, section 2."""
    if cached + new > context_length:
        raise ValueError(f"{cached} cached + {new} new tokens are more than the context_length {context_length}: reset the cache first")


def new_tokens_that_fit(model: nn.Module, idx: torch.Tensor, max_new_tokens: int, context_size: int | None = None) -> int:
    """How many of max_new_tokens fit behind idx (b, num_tokens): a cache cannot slide, so text and answer share one context.

    Warns when it has to cut, and when the model is in train mode. ValueError for ids that are not a batch, a negative
    number, and a prompt longer than the context. Folder 03 of chapter 4, section 2.
    """
    limit = model.cfg["context_length"]
    limit = limit if context_size is None else min(context_size, limit)
    if idx.dim() != 2 or idx.numel() == 0:
        raise ValueError(f"expected token ids of shape (b, num_tokens), at least one a row, got {tuple(idx.shape)}")
    if max_new_tokens < 0 or limit < 1:
        raise ValueError(f"need max_new_tokens >= 0 and context_size >= 1, got {max_new_tokens} and {limit}")
    if idx.shape[1] > limit:
        raise ValueError(f"the prompt has {idx.shape[1]} tokens, more than the context of {limit}")
    if model.training:
        warnings.warn("the model is in train mode: call model.eval() before generating", stacklevel=4)
    if idx.shape[1] + max_new_tokens > limit:
        text = f"{idx.shape[1]} + {max_new_tokens} tokens do not fit the context of {limit}: stopping after {limit - idx.shape[1]}"
        warnings.warn(text, stacklevel=4)
    return min(max_new_tokens, limit - idx.shape[1])


@torch.no_grad()
def generate_text_simple_cached(
    model: nn.Module, idx: torch.Tensor, max_new_tokens: int, context_size: int | None = None, use_cache: bool = True
) -> torch.Tensor:
    """Greedy continuation with the cache inside the model: ids (b, num_tokens) -> (b, num_tokens + new tokens).

    n new tokens cost one pass over the prompt and n - 1 passes over a single token. With use_cache=False each pass reads
    everything again; the ids are the same. Errors and warnings: `new_tokens_that_fit`. Folder 03 of chapter 4, section 2.
    """
    new_tokens = new_tokens_that_fit(model, idx, max_new_tokens, context_size)
    if use_cache:
        model.reset_kv_cache()
    unread = idx  # (b, num_tokens)
    for _ in range(new_tokens):
        logits = model(unread, use_cache=use_cache, only_last=True)  # (b, 1, vocab_size)
        next_id = logits[:, -1].argmax(dim=-1, keepdim=True).to(idx.dtype)  # (b, 1)
        idx = torch.cat([idx, next_id], dim=1)
        unread = next_id if use_cache else idx
    return idx


@torch.no_grad()
def generate_text_simple_stream(
    model: nn.Module, token_ids: torch.Tensor, max_new_tokens: int, eos_token_id: int | None = None, context_size: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield the next id of each row, (b, 1), as soon as it is known; `model` takes a KVCache, as gpt_with_kv_cache_object.py does.

    Stops when all rows have reached eos_token_id (not yielded for the last of them); rows that end earlier are filled with
    it. Errors and warnings, at the first token: `new_tokens_that_fit`. Folder 03 of chapter 4, section 6.
    """
    new_tokens = new_tokens_that_fit(model, token_ids, max_new_tokens, context_size)
    cache = KVCache(model.cfg["n_layers"], max_length=model.cfg["context_length"])
    finished = torch.zeros_like(token_ids[:, :1], dtype=torch.bool)  # (b, 1)
    for _ in range(new_tokens):
        logits = model(token_ids, cache=cache, only_last=True)  # (b, 1, vocab_size)
        token_ids = logits[:, -1].argmax(dim=-1, keepdim=True).to(token_ids.dtype)  # (b, 1)
        if eos_token_id is not None:
            token_ids = token_ids.masked_fill(finished, eos_token_id)  # (b, 1)
            finished = finished | (token_ids == eos_token_id)
            if finished.all():
                return
        yield token_ids
