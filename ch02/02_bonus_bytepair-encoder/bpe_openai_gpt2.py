"""GPT-2's tokenizer in plain Python: the published algorithm, fed with the released vocabulary.

Adds to chapter 2: what happens between a text and its ids. `Encoder` turns text into bytes, bytes into printable characters,
cuts pre-tokens, and merges the pair of lowest rank until no known pair is left. Its ids are those of `tiktoken`.

Run it:  python bpe_openai_gpt2.py --text "The clock is never wrong."
"""

import hashlib
import json
import sys
import urllib.request
from pathlib import Path

import regex
from previous_chapters import GPT2_FILE_SHA256, OneLineParser, bytes_to_unicode, gpt2_data_folder, place_file, read_text

# Contractions; letters, digits or other signs, each run with at most one space before it; whitespace, where a run before a
# word leaves its last space to the word.
PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MIRRORS = [  # for --download alone: the course's package brings the same files
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main",
    "https://openaipublic.blob.core.windows.net/gpt-2/models/124M",
]
SHOWN = 40  # ids printed on the command line


def get_pairs(word: tuple[str, ...]) -> set[tuple[str, str]]:
    """Return all pairs of neighbors in a word, given as a tuple of symbols. Section 2.4 of the notebook."""
    return set(zip(word, word[1:]))


def join_pair(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    """Merge every occurrence of a pair into one symbol, from the left. Section 2.4 of the notebook."""
    joined = []
    for symbol in word:
        if symbol == right and joined and joined[-1] == left:
            joined[-1] = left + right
        else:
            joined.append(symbol)
    return tuple(joined)


class Encoder:
    """GPT-2's byte-pair encoder. `encoder`: {token: id}; `bpe_merges`: pairs of tokens, the first learned first.

    Tokens are written in the characters of `bytes_to_unicode`. `errors` says what `decode` does with bytes that are no
    valid UTF-8, as in `bytes.decode`. Section 2.5 of the notebook.
    """

    def __init__(self, encoder: dict[str, int], bpe_merges: list[tuple[str, str]], errors: str = "replace"):
        self.encoder = encoder
        self.decoder = {token_id: token for token, token_id in encoder.items()}
        self.errors = errors
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {char: byte for byte, char in self.byte_encoder.items()}
        self.bpe_ranks = {tuple(pair): rank for rank, pair in enumerate(bpe_merges)}
        self.cache = {}
        self.pat = regex.compile(PATTERN)

    def bpe(self, token: str) -> str:
        """Return the tokens of one pre-token, joined by spaces (a space itself is written as another character)."""
        if token not in self.cache:
            word = tuple(token)
            while known := [pair for pair in get_pairs(word) if pair in self.bpe_ranks]:
                word = join_pair(word, *min(known, key=self.bpe_ranks.get))
            self.cache[token] = " ".join(word)
        return self.cache[token]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens in it are ordinary text. ValueError for lone surrogates."""
        ids = []
        for piece in self.pat.findall(text):
            token = "".join(self.byte_encoder[byte] for byte in piece.encode("utf-8"))
            ids.extend(self.encoder[part] for part in self.bpe(token).split(" "))
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Return the text of a list of ids; ValueError for an id that does not exist."""
        for token_id in tokens:
            if token_id not in self.decoder:
                raise ValueError(f"no token has the id {token_id} (allowed: 0 to {len(self.decoder) - 1})")
        chars = "".join(self.decoder[token_id] for token_id in tokens)
        return bytes(self.byte_decoder[char] for char in chars).decode("utf-8", errors=self.errors)


def check_file(path: Path) -> bytes:
    """Return the bytes of a vocabulary file; ValueError with path and hash if it is missing or not the released one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror} (--download fetches it)") from None
    found, expected = hashlib.sha256(data).hexdigest(), GPT2_FILE_SHA256[path.name]
    if found != expected:
        raise ValueError(f"{path} is not GPT-2's: its sha256 is {found}, not {expected}")
    return data


def get_encoder(model_name: str = "gpt2", models_dir: str | Path | None = None) -> Encoder:
    """Return an Encoder with GPT-2's vocabulary, from the course's data package or from `models_dir/model_name/`.

    ModuleNotFoundError without the package, ValueError for a file that is missing or damaged. Section 2.1 of the notebook.
    """
    folder = gpt2_data_folder() if models_dir is None else Path(models_dir) / model_name
    vocab, merges = (check_file(folder / name).decode("utf-8") for name in ("encoder.json", "vocab.bpe"))
    pairs = [tuple(line.split(" ")) for line in merges.split("\n")[1:] if line]  # the first line names a version
    return Encoder(json.loads(vocab), pairs)


def download_vocab(models_dir: str | Path) -> Path:
    """Fetch GPT-2's two files into `models_dir/gpt2`, which is returned; a good file that is there is kept.

    OSError naming address, target and the manual step if no mirror serves a good copy. Proxy variables are honored.
    """
    folder = Path(models_dir) / "gpt2"
    folder.mkdir(parents=True, exist_ok=True)
    for name, sha256 in GPT2_FILE_SHA256.items():
        target, part, problems = folder / name, folder / f"{name}.part", []
        if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
            continue
        for url in (f"{mirror}/{name}" for mirror in MIRRORS):
            try:
                with urllib.request.urlopen(url, timeout=60) as answer:
                    part.write_bytes(answer.read())
                place_file(part, target, sha256)
                break
            except (OSError, ValueError) as error:
                problems.append(f"{url}: {'damaged' if isinstance(error, ValueError) else error}")
            finally:
                part.unlink(missing_ok=True)
        else:
            raise OSError(f"cannot fetch {name} ({'; '.join(problems)}): put the file itself at {target}")
    return folder


def id_list(text: str) -> list[int]:
    """Convert "464, 8801" or "464 8801" to ids, for argparse."""
    return [int(part) for part in text.replace(",", " ").split()]


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Encode a text with GPT-2's tokenizer in plain Python, or decode ids.")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--text", default="The clock is never wrong.", help="text to encode")
    given.add_argument("--file", help="UTF-8 text file to encode")
    given.add_argument("--decode", type=id_list, metavar="IDS", help='ids to decode, such as "464 8801"')
    parser.add_argument("--models_dir", help="folder that holds gpt2/encoder.json and gpt2/vocab.bpe; without it, the data package")
    parser.add_argument("--download", action="store_true", help="fetch the two files into --models_dir first")
    args = parser.parse_args(argv)
    if args.download and args.models_dir is None:
        parser.error("--download needs --models_dir, the folder to put the files into")
    try:
        if args.download:
            download_vocab(args.models_dir)
        encoder = get_encoder(models_dir=args.models_dir)
        if args.decode is not None:
            print(encoder.decode(args.decode))
            return 0
        text = read_text(args.file) if args.file else args.text
        ids = encoder.encode(text)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error))
    more = f" ... ({len(ids) - SHOWN:,} more)" if len(ids) > SHOWN else ""
    print(f"characters: {len(text):,}   tokens: {len(ids):,}")
    print("ids:", " ".join(map(str, ids[:SHOWN])) + more)
    print("tokens:", " ".join(encoder.decoder[token_id] for token_id in ids[:SHOWN]) + more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
