# Generated from ch05/07_gpt_to_llama/llama_generate.py by `make copies`; do not edit.
"""Token by token with a KV cache: the cache and the greedy generators; llama.py offers them under its own name.

They work with every model that is called as `model(ids, cache, attention_mask, only_last=True)`.
"""

import torch


class KVCache:
    """Keys and values of the tokens seen so far, layer by layer: pairs of (b, num_kv_groups, num_tokens, head_dim)."""

    def __init__(self, n_layers):
        self.pairs, self.buffers = [None] * n_layers, [None] * n_layers

    def get(self, layer_idx):
        return self.pairs[layer_idx]

    def update(self, layer_idx, value):
        self.pairs[layer_idx] = value

    def get_all(self):
        return self.pairs

    def reset(self):
        self.__init__(len(self.pairs))

    def __len__(self):
        """Number of tokens of the first layer."""
        return 0 if self.pairs[0] is None else self.pairs[0][0].shape[2]

    def append(self, layer_idx, keys, values):
        """Write new keys and values behind the old ones, in place (no gradients); returns all of them."""
        b, groups, num_tokens, head_dim = keys.shape
        used = 0 if self.pairs[layer_idx] is None else self.pairs[layer_idx][0].shape[2]
        buffer, needed = self.buffers[layer_idx], used + num_tokens
        if buffer is None or buffer.shape[3] < needed:  # twice the room, so that copying stays rare
            buffer = keys.new_empty(2, b, groups, max(2 * needed, 64), head_dim)
            if used:
                buffer[0, :, :, :used], buffer[1, :, :, :used] = self.pairs[layer_idx]
            self.buffers[layer_idx] = buffer
        buffer[0, :, :, used:needed], buffer[1, :, :, used:needed] = keys, values
        self.pairs[layer_idx] = (buffer[0, :, :, :needed], buffer[1, :, :, :needed])
        return self.pairs[layer_idx]


def greedy(logits):
    """(b, vocab_size) -> the likeliest id of each row, (b, 1)."""
    return logits.argmax(dim=-1, keepdim=True)


@torch.inference_mode()
def generate_text_basic_stream(model, token_ids, max_new_tokens, eos_token_id=None, attention_mask=None, choose=greedy):
    """Yield the next id of each row, (b, 1), token by token, with a KV cache.

    Ends when all rows have reached eos_token_id (which is not yielded for the last of them; rows that ended earlier are
    filled with it). choose: logits (b, vocab_size) -> ids (b, 1). ValueError if the text cannot fit the context.
    """
    if token_ids.shape[1] + max_new_tokens > model.cfg["context_length"]:
        raise ValueError(f"{token_ids.shape[1]} + {max_new_tokens} tokens do not fit the context of {model.cfg['context_length']}")
    model.reset_kv_cache()
    cache, finished = KVCache(model.cfg["n_layers"]), torch.zeros_like(token_ids[:, :1], dtype=torch.bool)
    for _ in range(max_new_tokens):
        next_ids = choose(model(token_ids, cache, attention_mask, only_last=True)[:, -1])  # (b, 1)
        if eos_token_id is not None:
            next_ids = next_ids.masked_fill(finished, eos_token_id)
            finished = finished | (next_ids == eos_token_id)
            if finished.all():
                return
        yield next_ids
        token_ids = next_ids
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)


@torch.inference_mode()
def generate_text_simple(model, idx, max_new_tokens, context_size=None, use_cache=True):
    """Greedy continuation: ids (b, num_tokens) -> (b, num_tokens + max_new_tokens); without the cache, in a sliding window."""
    if use_cache:
        return torch.cat([idx, *generate_text_basic_stream(model, idx, max_new_tokens)], dim=1)
    for _ in range(max_new_tokens):
        window = idx[:, -(context_size or model.cfg["context_length"]) :]
        idx = torch.cat([idx, greedy(model(window, only_last=True)[:, -1])], dim=1)
    return idx
