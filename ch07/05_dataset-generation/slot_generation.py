"""Write many documents at once: each row of the batch is a slot, and a finished document makes room for the next at once.

Every step reads all weights once, for one row or for 512, so many rows together cost far less than one after the other, until
arithmetic and the rows' own caches cost more than the weights. Documents end at different times, so every row keeps its own
length: the cache has a slot per row, a new token is written behind the row's own last one, rotated by its own position, and
sees its own slot only. Random numbers belong to the document too. So a document's text does not depend on its neighbors
(up to rounding: sums of another length may round differently).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from previous_chapters import KVCache

ROOM_STEP = 32  # the visible part of the cache grows in steps of so many columns


@dataclass
class Job:
    """A document to write: its number, the ids of its prompt, and the random numbers that will choose its tokens."""

    number: int
    prompt_ids: list[int]
    uniforms: torch.Tensor  # max_new_tokens of them, float64 in [0, 1)
    ids: list[int] = field(default_factory=list)


def document_uniforms(seed: int, number: int, count: int) -> torch.Tensor:
    """Return the random numbers of one document, (count) float64; they depend on seed and document number alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_000_007 + number) % 2**63)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def sample_rows(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    """Choose one id per row: logits (b, vocab_size), uniforms (b) in [0, 1) -> ids (b).

    The top_k probabilities of a row are laid end to end on a line of length 1; the random number points at one of them.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    precise = logits.dtype if logits.dtype == torch.float64 else torch.float32
    values, ids = logits.to(precise).topk(min(top_k, logits.shape[-1]), dim=-1)  # (b, k), largest first
    line = torch.softmax((values - values[:, :1]) / temperature, dim=-1).cumsum(dim=-1)  # (b, k)
    at = uniforms.to(precise)[:, None] * line[:, -1:]
    chosen = (line <= at).sum(dim=-1, keepdim=True).clamp(max=line.shape[1] - 1)  # (b, 1)
    return ids.gather(1, chosen)[:, 0]


class SlotCache:
    """Keys and values of all rows, each row filled from the left up to its own length."""

    def __init__(self, cfg: dict, rows: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (2, rows, cfg["n_kv_groups"], capacity, cfg["emb_dim"] // cfg["n_heads"])
        self.buffers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(cfg["n_layers"])]
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.rows, self.visible = torch.arange(rows, device=device), capacity

    def fill(self, slots: list[int], cache: KVCache, lengths: torch.Tensor) -> None:
        """Put freshly read prompts (a cache of the same number of rows) into slots."""
        slots = torch.tensor(slots, device=self.rows.device)
        for buffer, (keys, values) in zip(self.buffers, cache.get_all(), strict=True):
            buffer[0, slots, :, : keys.shape[2]], buffer[1, slots, :, : keys.shape[2]] = keys, values
        self.lengths[slots] = lengths

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one new token per row behind the row's last one; keys and values (b, groups, 1, head_dim). Returns what is visible."""
        buffer = self.buffers[layer_idx]
        buffer[0, self.rows, :, self.lengths], buffer[1, self.rows, :, self.lengths] = keys[:, :, 0], values[:, :, 0]
        return buffer[0, :, :, : self.visible], buffer[1, :, :, : self.visible]

    def keep(self, slots: list[int]) -> None:
        """Drop all rows but these."""
        chosen = torch.tensor(slots, device=self.rows.device)
        self.buffers = [buffer[:, chosen] for buffer in self.buffers]
        self.lengths, self.rows = self.lengths[chosen], self.rows[: len(slots)]


def read_prompts(model, jobs: list[Job], device: torch.device) -> tuple[KVCache, torch.Tensor, torch.Tensor]:
    """Read the prompts of several jobs in one pass: (their cache, lengths (b), logits after the last token (b, vocab_size)).

    Shorter prompts are padded at the right: with causal attention no real token sees what stands behind it.
    """
    lengths = torch.tensor([len(job.prompt_ids) for job in jobs], device=device)
    longest = max(len(job.prompt_ids) for job in jobs)
    ids = torch.tensor([job.prompt_ids + [0] * (longest - len(job.prompt_ids)) for job in jobs], device=device)  # (b, longest)
    cache = KVCache(model.cfg["n_layers"])
    x = model.run_blocks(model.tok_emb(ids), 0, 0, cache, None)  # (b, longest, emb_dim)
    last = x[torch.arange(len(jobs), device=device), lengths - 1]  # (b, emb_dim)
    return cache, lengths, model.out_head(model.final_norm(last))


def decode_step(model, ids: torch.Tensor, cache: SlotCache) -> torch.Tensor:
    """One more token for every row: ids (b) -> logits (b, vocab_size); the cache grows by one token in each row."""
    columns = torch.arange(cache.visible, device=ids.device)
    blocked = (columns > cache.lengths[:, None])[:, None, None]  # (b, 1, 1, visible): whatever is not the row's own text
    x = model.tok_emb(ids[:, None])  # (b, 1, emb_dim)
    for layer_idx, block in enumerate(model.trf_blocks):
        x = block(x, model.cos, model.sin, blocked, cache.lengths, cache, layer_idx)
    cache.lengths += 1
    return model.out_head(model.final_norm(x[:, -1]))


class SlotGenerator:
    """Runs jobs through a fixed number of slots. Model: Llama3ModelFast in eval mode, on the device where it should run."""

    def __init__(self, model, jobs: Iterable[Job], slots: int, max_prompt: int, max_new_tokens: int, temperature, top_k, eos_id):
        self.model, self.jobs, self.max_prompt, self.max_new_tokens = model, iter(jobs), max_prompt, max_new_tokens
        self.temperature, self.top_k, self.eos_id = temperature, top_k, eos_id
        weight, capacity = model.tok_emb.weight, max_prompt + max_new_tokens
        self.device = weight.device
        if capacity > model.cfg["context_length"]:
            raise ValueError(f"{max_prompt} + {max_new_tokens} tokens do not fit the model's context of {model.cfg['context_length']}")
        self.cache = SlotCache(model.cfg, slots, capacity, self.device, weight.dtype)
        self.active: list[Job | None] = [None] * slots
        self.uniforms = torch.zeros(slots, max_new_tokens, dtype=torch.float64)
        self.last_ids = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self.tokens_written, self.out_of_jobs = 0, False

    def take(self, slots: list[int], ids: list[int]) -> Iterator[Job]:
        """Give rows their new ids; yields the jobs that are finished, whose slots become free."""
        for slot, number in zip(slots, ids, strict=True):
            job = self.active[slot]
            if number != self.eos_id:
                job.ids.append(number)
                self.tokens_written += 1
            if number == self.eos_id or len(job.ids) == self.max_new_tokens:
                self.active[slot] = None
                self.cache.lengths[slot] = 0
                yield job

    def admit(self, slots: list[int]) -> Iterator[Job]:
        """Start new jobs in free slots: read their prompts, choose their first tokens."""
        jobs = list(islice(self.jobs, len(slots)))
        self.out_of_jobs = len(jobs) < len(slots)
        if not jobs:
            return
        slots = slots[: len(jobs)]
        long = [job for job in jobs if len(job.prompt_ids) > self.max_prompt]
        if long:
            raise ValueError(f"the prompt of document {long[0].number} has {len(long[0].prompt_ids)} tokens, more than {self.max_prompt}")
        cache, lengths, logits = read_prompts(self.model, jobs, self.device)
        self.cache.fill(slots, cache, lengths)
        for slot, job in zip(slots, jobs, strict=True):
            self.active[slot], self.uniforms[slot] = job, job.uniforms
        ids = sample_rows(logits, self.uniforms[slots, 0].to(self.device), self.temperature, self.top_k)
        self.last_ids[slots] = ids
        yield from self.take(slots, ids.tolist())

    @torch.inference_mode()
    def run(self) -> Iterator[Job]:
        """Yield each job when its text is complete, its `ids` filled; without end-of-text it stopped at max_new_tokens."""
        while True:
            free = [slot for slot, job in enumerate(self.active) if job is None]
            if free and not self.out_of_jobs and (len(free) == len(self.active) or len(free) * 16 >= len(self.active)):
                yield from self.admit(free)  # in groups: reading one prompt costs nearly as much as reading many
                continue
            busy = [slot for slot, job in enumerate(self.active) if job is not None]
            if not busy:
                return
            if self.out_of_jobs and len(busy) * 2 <= len(self.active):
                self.shrink(busy)
                continue
            written = [len(job.ids) if job else 0 for job in self.active]
            needed = max(len(self.active[slot].prompt_ids) + written[slot] for slot in busy)
            self.cache.visible = min(-(-needed // ROOM_STEP) * ROOM_STEP, self.cache.buffers[0].shape[3])
            logits = decode_step(self.model, self.last_ids, self.cache)
            uniforms = self.uniforms[range(len(written)), written].to(self.device)
            self.last_ids = sample_rows(logits, uniforms, self.temperature, self.top_k)
            ids = self.last_ids.tolist()
            yield from self.take(busy, [ids[slot] for slot in busy])

    def shrink(self, busy: list[int]) -> None:
        """Go on with the busy rows only: towards the end there is nobody left to fill the free ones."""
        self.cache.keep(busy)
        self.active, self.uniforms = [self.active[slot] for slot in busy], self.uniforms[busy]
        self.last_ids = self.last_ids[torch.tensor(busy, device=self.device)]
