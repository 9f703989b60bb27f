"""Fine-tune a model of the BERT family to find spam, on the very messages that chapter 6 trains, validates and tests its GPT on.

Run it:  python train_bert_hf_spam.py
"""

import os
import sys
from pathlib import Path

from classifier import LABELS, create_balanced_dataset, load_spam_messages, random_split
from download_prepare_dataset import PARTS
from previous_chapters import OneLineParser
from train_bert_hf import add_bert_options, train_on_files


def write_spam_files(data_dir: str | Path, full_data: bool = False) -> list[Path]:
    """Write chapter 6's three parts of the messages as data_dir/sms-<part>.csv with the columns text and label; returns the paths."""
    parts = random_split(create_balanced_dataset(load_spam_messages(full_data)), 0.7, 0.1)
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    files = [Path(data_dir) / f"sms-{part}.csv" for part in PARTS]
    for path, frame in zip(files, parts):
        temporary = path.with_name(path.name + ".tmp")
        frame.assign(text=frame["Text"], label=frame["Label"].map(LABELS))[["text", "label"]].to_csv(temporary, index=False)
        os.replace(temporary, path)
    return files


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Fine-tune a model of the BERT family to tell spam from other messages.")
    parser.add_argument("--full_data", action="store_true", help="all 5,574 messages of the collection, downloaded once")
    add_bert_options(parser, num_epochs=3)
    settings = vars(parser.parse_args(argv))
    try:
        train_on_files(write_spam_files(settings["data_dir"], settings["full_data"]), settings)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
