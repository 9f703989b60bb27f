"""From folders of books, tales and generated text to token shards that pretraining_simple.py reads.

    python prepare_dataset.py --tales --output_dir tales-data                       offline: Grimm's and Andersen's tales
    python prepare_dataset.py --tales --generated generated.jsonl --output_dir mini-data
    python prepare_dataset.py --data_dir gutenberg/data/raw                         books you downloaded

Every file that is left out is named with the reason. The result is `combined_1.txt`, ... (the books, cleaned), `tales.txt`,
and the shards with their `index.json`.
"""

import re
import sys
import time
from pathlib import Path

from corpus_files import find_text_files, print_eta, read_document
from previous_chapters import STORY_FILE, OneLineParser, gpt2_tokenizer, int_at_least, load_tales
from shards import SEPARATOR, documents_of, write_shards

RAW_FOLDER = "gutenberg/data/raw"
START_LINE = re.compile(r"^\W*(?:START OF (?:THE|THIS) PROJECT GUTENBERG|END\W*THE SMALL PRINT).*$", re.MULTILINE | re.IGNORECASE)
END_LINE = re.compile(r"^\W*END OF (?:(?:THE|THIS) )?PROJECT GUTENBERG.*$", re.MULTILINE | re.IGNORECASE)
BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")


def is_english(text: str, threshold: float = 0.9) -> bool:
    """Tell whether more than `threshold` of the characters are ASCII: a cheap test for English; False for an empty text.

    It lets through other languages written in plain letters, and that is its limit.
    """
    return bool(text) and sum(character.isascii() for character in text) / len(text) > threshold


def strip_license(text: str) -> str:
    """Cut off what Project Gutenberg puts before and after a book; a text without the two marks stays as it is."""
    starts = [match.end() for match in START_LINE.finditer(text)]
    text = text[starts[-1] :] if starts else text
    end = END_LINE.search(text)
    return text[: end.start()] if end else text


def clean_book(text: str) -> str:
    """Return a book with the license cut off, line ends as \\n, and at most one blank line in a row."""
    text = strip_license(text.replace("\r\n", "\n").replace("\r", "\n"))
    return BLANK_LINES.sub("\n\n", text).strip()


def combine_files(
    file_paths, target_dir, max_size_mb=500, separator=SEPARATOR, fallback_encoding="latin1", threshold: float = 0.9
) -> int:
    """Join books into `combined_1.txt`, `combined_2.txt`, ... of at most max_size_mb (10^6 bytes), in order of their paths.

    Skips and names empty, binary, unreadable and non-English files. A single larger book gets a file of its own. The
    separator stands between two books of a file and counts. Returns the number of files written; ValueError for a size <= 0.
    """
    if max_size_mb <= 0:
        raise ValueError(f"max_size_mb must be above 0, got {max_size_mb}")
    target, written, books, size = Path(target_dir), 0, [], 0
    target.mkdir(parents=True, exist_ok=True)
    between, paths, start = f"\n{separator}\n", sorted(map(Path, file_paths), key=str), time.monotonic()

    def write() -> int:
        (target / f"combined_{written + 1}.txt").write_text(between.join(books), encoding="utf-8", newline="\n")
        return written + 1

    for index, path in enumerate(paths, start=1):
        book_start = time.monotonic()
        try:
            text = clean_book(read_document(path, fallback_encoding))
            if not text:
                raise ValueError("empty")
            if not is_english(text, threshold):
                raise ValueError(f"not English: at most {threshold:.0%} of its characters are ASCII")
        except ValueError as problem:
            print(f"skipped {path}: {problem}", file=sys.stderr)
            continue
        added = len(text.encode("utf-8")) + (len(between.encode("utf-8")) if books else 0)
        if books and size + added > max_size_mb * 1e6:
            written, books, added, size = write(), [], added - len(between.encode("utf-8")), 0
        books.append(text)
        size += added
        if index % 500 == 0:
            print_eta(start, book_start, index, len(paths))
    return write() if books else written


def gather_sources(args) -> list[Path]:
    """Write the books and the tales as text files into the output folder; returns all files that are to be tokenized."""
    target, sources, data = Path(args.output_dir), [], Path(args.data_dir)
    if data.is_dir() or args.data_dir != RAW_FOLDER or not (args.tales or args.generated):
        files = find_text_files(data)
        print(f"{len(files)} text files in {data}")
        number = combine_files(files, target, args.max_size_mb, threshold=args.threshold)
        if not number:
            raise ValueError(f"none of the {len(files)} text files in {data} can be used")
        print(f"{number} files written to {target}")
        sources += [target / f"combined_{i}.txt" for i in range(1, number + 1)]
    if args.tales:
        target.mkdir(parents=True, exist_ok=True)
        path = target / "tales.txt"
        path.write_text(f"\n{SEPARATOR}\n".join(load_tales()), encoding="utf-8", newline="\n")
        sources.append(path)
    return sources + [Path(name) for name in args.generated]


def prepare(args) -> None:
    """Do what the options say; ValueError or OSError for input that cannot be used."""
    target = Path(args.output_dir)
    if target.exists() and any(target.iterdir()):
        if not args.overwrite:
            raise ValueError(f"{target} exists: add --overwrite to write it again, or name another folder")
        for pattern in ("*.bin", "combined_*.txt", "tales.txt", "index.json"):
            for old in target.glob(pattern):
                old.unlink()
    excluded = [text for name in [STORY_FILE, *args.exclude] for text in documents_of(name)]
    sources = gather_sources(args)
    labels = [path.name.split(".")[0] for path in sources]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two source files have the same name: {', '.join(labels)}")
    start = time.monotonic()

    def after_file(number: int) -> None:
        print_eta(start, start, number, len(sources))

    index = write_shards(sources, target, gpt2_tokenizer(), val_share=args.val_share, excluded=excluded, after_file=after_file)
    for source in index["sources"]:
        left_out = f"left out {source['empty']} empty, {source['overlapping']} that repeat held-out or excluded text"
        print(f"{source['file']}: {source['documents']:,} documents, {source['tokens']:,} tokens; {left_out}")
    for shard in index["shards"]:
        print(f"{target / shard['file']}: {shard['tokens']:,} tokens, {shard['documents']:,} documents, {shard['split']}")


def share(text: str) -> float:
    """argparse type for a share from 0 to 0.5."""
    value = float(text)
    if not 0 <= value <= 0.5:
        raise ValueError(text)
    return value


def main(argv: list[str] | None = None) -> int:
    """Parse the options, prepare; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Clean and join text files, then write token shards for pretraining.")
    parser.add_argument("--data_dir", default=RAW_FOLDER, help="folder with books as .txt or .txt.utf8, searched in depth")
    parser.add_argument("--tales", action="store_true", help="add the tales that arrive by pip")
    parser.add_argument("--generated", nargs="+", default=[], metavar="FILE", help="add .jsonl files of generate_corpus.py")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="FILE", help="text that must not be trained on, beside the story")
    parser.add_argument("--max_size_mb", type=int_at_least(1), default=500, help="size of a combined file, in MB")
    parser.add_argument("--threshold", type=float, default=0.9, help="share of ASCII characters from which a text counts as English")
    parser.add_argument("--val_share", type=share, default=0.05, help="share of the documents kept for validation, 0 to 0.5")
    parser.add_argument("--output_dir", default="gutenberg_preprocessed", help="folder for all results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    try:
        prepare(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
