"""Let SmolLM2-135M-Instruct write a corpus: one JSON line per document, reproducible, resumable, without near-duplicates.

    python generate_corpus.py --num_documents 20 --output sample.jsonl           a few minutes on a CPU
    python generate_corpus.py --num_documents 40000 --batch_size 512             about 10 million tokens, for a GPU
    python generate_corpus.py --num_documents 40000 --batch_size 512 --resume    go on after a break

Documents are numbered; prompt and random numbers depend on seed and number. Lines come in order of the numbers, so the file
is the same for every batch size (up to rounding) and however often the run was stopped.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from corpus_prompts import GENRES, make_prompt
from llama import load_smollm2
from previous_chapters import (
    NearDuplicates,
    OneLineParser,
    bf16_is_fast,
    float_from_zero,
    int_at_least,
    pick_device,
    positive_float,
    words_of,
)
from slot_generation import Job, SlotGenerator, document_uniforms
from tqdm import tqdm

SYSTEM = "You write clear and simple English."
MAX_PROMPT = 192  # tokens
MIN_WORDS = 30  # shorter answers are dropped
SENTENCE_ENDS = (".", "!", "?", '."', '!"', '?"', ".”", "!”", "?”")


def load_writer(dtype: torch.dtype, device: torch.device):
    """Return SmolLM2 on its device, and its tokenizer."""
    model, tokenizer = load_smollm2(dtype=dtype)
    return model.to(device), tokenizer


def make_jobs(tokenizer, numbers: Iterator[int], seed: int, max_new_tokens: int, genres: list[str] | None) -> Iterator[Job]:
    """Yield the jobs of these document numbers: prompt in chat form, with the first words of the answer put in the model's mouth."""
    for number in numbers:
        prompt = make_prompt(number, seed, genres)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt.request}]
        ids = tokenizer.encode_chat(messages) + tokenizer.encode(prompt.opening)
        yield Job(number, ids, document_uniforms(seed, number, max_new_tokens))


def cut_at_sentence(text: str) -> str:
    """Return a text that ran out of tokens up to its last complete sentence; unchanged if it has none."""
    ends = [text.rfind(end + space) + len(end) for end in SENTENCE_ENDS for space in (" ", "\n") if end + space in text]
    return text if text.endswith(SENTENCE_ENDS) or not ends else text[: max(ends)]


class CorpusFile:
    """The output: takes finished documents in any order, writes them in order of their numbers, drops near-duplicates."""

    def __init__(self, path: Path, settings: dict, resume: bool, max_overlap: float):
        self.path, self.duplicates, self.waiting = path, NearDuplicates(max_overlap), {}
        self.kept = 0
        self.dropped = {"near-duplicate": 0, "too short": 0}
        self.seed, self.next_number = settings["seed"], settings["first_document"]
        path.parent.mkdir(parents=True, exist_ok=True)
        notes = path.with_name(path.name + ".settings.json")
        if resume:
            self.read_back(notes, settings)
        elif path.exists():
            raise ValueError(f"{path} exists: add --resume to go on, or name another file")
        else:
            notes.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self.file = path.open("a", encoding="utf-8", newline="\n")

    def read_back(self, notes: Path, settings: dict) -> None:
        """Learn from an existing file where to go on; cuts off a line that was only half written."""
        try:
            saved = json.loads(notes.read_text(encoding="utf-8"))
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            lines = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
        except OSError as error:
            raise ValueError(f"nothing to resume: cannot read {error.filename}") from None
        except ValueError:
            raise ValueError(f"{self.path} is damaged: a line is not JSON") from None
        differing = [f"{key} is {saved.get(key)} there, {value} here" for key, value in settings.items() if saved.get(key) != value]
        if differing:
            raise ValueError(f"{self.path} was begun with other settings: {'; '.join(differing)}")
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        for line in lines:
            self.duplicates.add(line["text"])
        self.kept = len(lines)
        self.next_number = lines[-1]["number"] + 1 if lines else self.next_number
        self.dropped["before this run"] = self.next_number - settings["first_document"] - len(lines)

    def add(self, number: int, genre: str, prompt: str, opening: str, text: str, finished: bool) -> None:
        """Take a document; write it and all that waited for it when it is the next in order."""
        entry = {"number": number, "genre": genre, "prompt": prompt, "opening": opening, "seed": self.seed, "finished": finished}
        self.waiting[number] = {**entry, "text": text}
        while self.next_number in self.waiting:
            document = self.waiting.pop(self.next_number)
            self.next_number += 1
            if len(words_of(document["text"])) < MIN_WORDS:
                self.dropped["too short"] += 1
            elif not self.duplicates.is_new(document["text"]):
                self.dropped["near-duplicate"] += 1
            else:
                self.file.write(json.dumps(document, ensure_ascii=False) + "\n")
                self.kept += 1
        self.file.flush()

    def report(self) -> str:
        """Return one line: how many documents were kept, how many dropped and why."""
        return f"{self.kept:,} documents kept, dropped: " + ", ".join(f"{number:,} {reason}" for reason, number in self.dropped.items())


def generate(model, tokenizer, corpus: CorpusFile, args) -> int:
    """Write documents until `args.num_documents` are done or the time is up; returns the number of tokens written."""
    last = args.first_document + args.num_documents
    numbers = iter(range(corpus.next_number, last))
    jobs = make_jobs(tokenizer, numbers, args.seed, args.max_new_tokens, args.genres)
    limits = {"max_prompt": MAX_PROMPT, "max_new_tokens": args.max_new_tokens}
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "eos_id": tokenizer.eos_token_id}
    slots = max(1, min(args.batch_size, last - corpus.next_number))
    generator, start = SlotGenerator(model, jobs, slots, **limits, **sampling), time.monotonic()
    bar = tqdm(total=args.num_documents, initial=corpus.next_number - args.first_document, unit="documents", mininterval=1)
    with bar:
        for job in generator.run():
            prompt = make_prompt(job.number, args.seed, args.genres)
            finished = len(job.ids) < args.max_new_tokens
            text = (prompt.opening + tokenizer.decode(job.ids)).replace("\ufffd", "").strip()
            text = text if finished else cut_at_sentence(text)
            corpus.add(job.number, prompt.genre, prompt.request, prompt.opening, text, finished)
            seconds = time.monotonic() - start
            bar.set_postfix_str(f"{generator.tokens_written / max(seconds, 1e-9):,.0f} tokens/s", refresh=False)
            bar.update()
            if seconds > 60 * (args.max_minutes or float("inf")):
                print("time is up; the same command with --resume goes on", file=sys.stderr)
                break
    return generator.tokens_written


def run(args) -> None:
    """Do what the options say; ValueError or OSError for input that cannot be used."""
    unknown = [genre for genre in args.genres or [] if genre not in GENRES]
    if unknown:
        raise ValueError(f"unknown genre {unknown[0]!r}; known: {', '.join(GENRES)}")
    if args.show_prompts:
        for number, _ in zip(count(args.first_document), range(args.show_prompts), strict=False):
            prompt = make_prompt(number, args.seed, args.genres)
            print(f"{number}  {prompt.genre}: {prompt.request}\n    {prompt.opening} ...")
        return
    device = pick_device(args.device)
    fast = args.precision == "bf16" or (args.precision == "auto" and bf16_is_fast(device))
    fixed = ("seed", "first_document", "max_new_tokens", "temperature", "top_k", "genres", "max_overlap")
    settings = {key: getattr(args, key) for key in fixed}
    corpus = CorpusFile(Path(args.output), settings, args.resume, args.max_overlap)
    print(f"device {device}, precision {'bf16' if fast else 'fp32'}, first document {corpus.next_number}", file=sys.stderr)
    if corpus.next_number < args.first_document + args.num_documents:
        model, tokenizer = load_writer(torch.bfloat16 if fast else torch.float32, device)
        start = time.monotonic()
        tokens = generate(model, tokenizer, corpus, args)
        seconds = time.monotonic() - start
        print(f"{tokens:,} tokens in {seconds:.0f} s, {tokens / seconds:,.0f} tokens/s")
    corpus.file.close()
    print(f"{corpus.report()}; {corpus.path}")


def main(argv: list[str] | None = None) -> int:
    """Parse the options, generate; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Let SmolLM2-135M-Instruct write documents, one JSON line each.")
    parser.add_argument("--num_documents", type=int_at_least(1), default=100, help="documents to write, dropped ones included")
    parser.add_argument("--first_document", type=int_at_least(0), default=0, help="number of the first one; to share work between machines")
    parser.add_argument("--batch_size", type=int_at_least(1), default=64, help="documents written at the same time")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=400, help="longest answer, in SmolLM2's tokens")
    parser.add_argument("--temperature", type=float_from_zero, default=0.7, help="0: always the likeliest token")
    parser.add_argument("--top_k", type=int_at_least(1), default=50, help="tokens to choose from")
    parser.add_argument("--genres", nargs="+", help=f"kinds of text (default: all of {', '.join(GENRES)})")
    parser.add_argument("--show_prompts", type=int_at_least(1), metavar="N", help="print N prompts and stop")
    parser.add_argument("--max_overlap", type=float_from_zero, default=0.5, help="share of known 8-word runs above which a text is dropped")
    parser.add_argument("--output", default="generated.jsonl", help="file to write, and to go on with")
    parser.add_argument("--resume", action="store_true", help="go on with the existing output file")
    parser.add_argument("--max_minutes", type=positive_float, help="stop after this time; --resume goes on")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 where it is faster")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--seed", type=int_at_least(0), default=123, help="random seed of prompts and texts")
    try:
        run(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command with --resume goes on\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
