"""The whole thing at once: the smallest real GPT, on characters, in one file.

    python char_gpt.py                       # four models, each grown from the one before, learn the course's story
    python char_gpt.py --text my-text.txt    # or a text of your own

A model reads some characters and gives a score to every character that may come next. Four such models follow: a table of
pairs; one head of attention; a block; four blocks, which is a GPT. All are trained by the same loop, and after each you see
its loss and what it writes. Chapters 2 to 5 build the same parts at length, for tokens instead of characters.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

STORY = Path(__file__).with_name("the-tide-clock.txt")
CONTEXT, EMB_DIM, HEADS, LAYERS, BATCH = 64, 128, 4, 4, 32


class Table(nn.Module):
    """Step 1, pairs: row i holds the scores of all characters as followers of character i. Nothing else is looked at."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.scores = nn.Embedding(vocab_size, vocab_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.scores(ids)  # (b, num_tokens, vocab_size)


class Head(nn.Module):
    """One head of causal self-attention: each position takes a weighted mean of itself and the positions before it."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.query = nn.Linear(EMB_DIM, head_dim, bias=False)
        self.key = nn.Linear(EMB_DIM, head_dim, bias=False)
        self.value = nn.Linear(EMB_DIM, head_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.query(x)  # (b, num_tokens, head_dim): what each position looks for
        keys = self.key(x)  # (b, num_tokens, head_dim): what each position offers
        values = self.value(x)  # (b, num_tokens, head_dim): what it hands over when it is chosen
        scores = queries @ keys.transpose(1, 2) / math.sqrt(keys.shape[-1])  # (b, num_tokens, num_tokens)
        future = torch.ones_like(scores[0]).triu(diagonal=1).bool()  # (num_tokens, num_tokens)
        weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)  # (b, num_tokens, num_tokens)
        return weights @ values  # (b, num_tokens, head_dim)


class OneHead(nn.Module):
    """Step 2, attention: characters and positions become vectors, one head lets them look back."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.character = nn.Embedding(vocab_size, EMB_DIM)
        self.position = nn.Embedding(CONTEXT, EMB_DIM)
        self.body = Head(EMB_DIM)
        self.out = nn.Linear(EMB_DIM, vocab_size)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.character(ids) + self.position(torch.arange(ids.shape[1]))  # (b, num_tokens, EMB_DIM)
        x = self.body(x)  # (b, num_tokens, EMB_DIM)
        return self.out(x)  # (b, num_tokens, vocab_size)


class Block(nn.Module):
    """Several heads look back at once, then each position thinks for itself; both only add to what is there."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(EMB_DIM), nn.LayerNorm(EMB_DIM)
        self.heads = nn.ModuleList(Head(EMB_DIM // HEADS) for _ in range(HEADS))
        self.mix = nn.Linear(EMB_DIM, EMB_DIM)
        self.feed_forward = nn.Sequential(nn.Linear(EMB_DIM, 4 * EMB_DIM), nn.GELU(), nn.Linear(4 * EMB_DIM, EMB_DIM))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)  # (b, num_tokens, EMB_DIM)
        seen = torch.cat([head(normed) for head in self.heads], dim=-1)  # (b, num_tokens, EMB_DIM)
        x = x + self.mix(seen)  # (b, num_tokens, EMB_DIM)
        return x + self.feed_forward(self.norm2(x))  # (b, num_tokens, EMB_DIM)


class CharGPT(OneHead):
    """Steps 3 and 4, a GPT: blocks in place of the single head."""

    def __init__(self, vocab_size: int, layers: int):
        super().__init__(vocab_size)
        # replaces the single head that OneHead made
        self.body = nn.Sequential(*[Block() for _ in range(layers)], nn.LayerNorm(EMB_DIM))


def get_batch(ids: torch.Tensor, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Random places of the text: inputs, and as targets the same one character further."""
    starts = torch.randint(len(ids) - CONTEXT, (size,))
    windows = torch.stack([ids[start : start + CONTEXT + 1] for start in starts])  # (b, window)
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of -log(probability given to the character that came next)."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def loss_on(model: nn.Module, ids: torch.Tensor) -> float:
    """Mean loss on a whole text, window after window."""
    count = (len(ids) - 1) // CONTEXT
    inputs = ids[: count * CONTEXT].view(count, CONTEXT)  # (count, CONTEXT)
    targets = ids[1 : count * CONTEXT + 1].view(count, CONTEXT)  # (count, CONTEXT)
    pieces = zip(inputs.split(64), targets.split(64))  # a long text does not fit into memory at once
    return sum(loss_of(model, *piece).item() * len(piece[0]) for piece in pieces) / count


def train(model: nn.Module, ids: torch.Tensor, steps: int, rate: float) -> None:
    """AdamW for `steps` updates; the learning rate rises for 20 of them, then falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    bar = tqdm(range(steps), unit="steps", leave=False, disable=None)
    for step in bar:
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        loss = loss_of(model, *get_batch(ids))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.2f}")


@torch.no_grad()
def write(model: nn.Module, prompt: list[int], num_characters: int) -> list[int]:
    """Continue a prompt: the model's scores become probabilities, one character is drawn, and the loop begins again."""
    ids = torch.tensor([prompt])  # (1, num_tokens)
    for _ in range(num_characters):
        scores = model(ids[:, -CONTEXT:])[:, -1]  # (1, vocab_size)
        drawn = torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)  # (1, 1)
        ids = torch.cat([ids, drawn], dim=1)  # (1, total_tokens)
    return ids[0].tolist()


STEPS = {  # name -> how to make the model, how many updates, learning rate
    "1  a table of pairs": (Table, 300, 0.1),
    "2  one head of attention": (OneHead, 400, 3e-3),
    "3  one block": (lambda vocab_size: CharGPT(vocab_size, 1), 400, 3e-3),
    f"4  a GPT of {LAYERS} blocks": (lambda vocab_size: CharGPT(vocab_size, LAYERS), 400, 2e-3),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the smallest real GPT on characters.")
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("--text", type=Path, default=STORY, help="a text file in UTF-8")
    parser.add_argument("--prompt", default="Nell ", help="what the models continue")
    parser.add_argument("--length", type=int, default=200, help="characters to write")
    parser.add_argument("--shorten", type=int, default=1, help="divide the number of updates by this, for a quick look")
    parser.add_argument("--seed", type=int, default=123, help="seed of weights, batches, and drawing")
    args = parser.parse_args(argv)
    if min(args.length, args.shorten, len(args.prompt)) < 1:
        parser.exit(2, "--length and --shorten must be at least 1, and --prompt at least one character\n")
    try:
        text = args.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.exit(2, f"cannot read {args.text}: {getattr(error, 'strerror', None) or 'it is not a UTF-8 text file'}\n")
    if len(text) < 20 * CONTEXT:
        parser.exit(2, f"{args.text} has {len(text)} characters; learning takes at least {20 * CONTEXT}\n")
    characters = sorted(set(text))
    number_of = {character: number for number, character in enumerate(characters)}
    if unknown := sorted(set(args.prompt) - set(characters)):
        parser.exit(2, f"the text has no {unknown[0]!r}, so no model can read the prompt\n")
    ids = torch.tensor([number_of[character] for character in text])  # (num_characters)
    cut = len(ids) * 9 // 10
    print(f"{len(ids):,} characters, {len(characters)} different ones: knowing nothing costs a loss of {math.log(len(characters)):.2f}")
    for name, (make, steps, rate) in STEPS.items():
        torch.manual_seed(args.seed)
        model, started = make(len(characters)), time.perf_counter()
        train(model, ids[:cut], max(1, steps // args.shorten), rate)
        seconds, size = time.perf_counter() - started, sum(parameter.numel() for parameter in model.parameters())
        learned, held_out = loss_on(model, ids[:cut]), loss_on(model, ids[cut:])
        print(f"\n{name}: {size:,} parameters, {seconds:.0f} s, loss {learned:.2f}, held out {held_out:.2f}")
        written = write(model, [number_of[character] for character in args.prompt], args.length)
        print("".join(characters[number] for number in written))


if __name__ == "__main__":
    sys.exit(main())
