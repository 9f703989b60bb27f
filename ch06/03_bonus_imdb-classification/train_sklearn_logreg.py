"""The yardsticks: always the commonest answer, and counted words with logistic regression. Seconds on any machine.

Run it:  python download_prepare_dataset.py
         python train_sklearn_logreg.py
"""

import sys
import time
from pathlib import Path

import pandas as pd
import torch
from download_prepare_dataset import DATA_DIR, PARTS, part_file, read_labeled_texts
from previous_chapters import OneLineParser, int_at_least, peak_memory_gb
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from text_training import prepare_output, save_results


def load_dataframes(dataset: str = "reviews", data_dir: str | Path = DATA_DIR) -> list[pd.DataFrame]:
    """Return the frames (text, label) of training, validation and test. ValueError, naming the script to run, if one is missing."""
    return [read_labeled_texts(part_file(dataset, part, data_dir)) for part in PARTS]


def count_words(frames: list[pd.DataFrame]) -> list:
    """Return one sparse table of word counts (texts, words) for each frame; only words of the first one, the training texts, count."""
    vectorizer = CountVectorizer().fit(frames[0]["text"])
    return [vectorizer.transform(frame["text"]) for frame in frames]


def eval_model(model, X_train, y_train, X_val, y_val, X_test, y_test) -> dict:
    """Print and return the share of right answers of a fitted model, {"train", "validation", "test": share}."""
    parts = {"train": (X_train, y_train), "validation": (X_val, y_val), "test": (X_test, y_test)}
    accuracy = {part: float(model.score(X, y)) for part, (X, y) in parts.items()}
    print(f"{type(model).__name__:18} " + ", ".join(f"{part} {share:.2%}" for part, share in accuracy.items()))
    return accuracy


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Classify film reviews by counted words, and by the commonest label.")
    parser.add_argument("--dataset", choices=["reviews", "imdb"], default="reviews", help="which CSV files of data_dir")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder of the CSV files")
    parser.add_argument("--max_iter", type=int_at_least(1), default=1000, help="most rounds of the solver")
    parser.add_argument("--output_dir", type=Path, help="folder for result.json; without it nothing is kept")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in output_dir")
    args = parser.parse_args(argv)
    try:
        frames = load_dataframes(args.dataset, args.data_dir)
        prepare_output(args.output_dir, args.overwrite)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    results, labels = [], [frame["label"] for frame in frames]
    for model in (DummyClassifier(strategy="most_frequent"), LogisticRegression(max_iter=args.max_iter)):
        start, processor = time.perf_counter(), time.process_time()
        counts = count_words(frames)
        model.fit(counts[0], labels[0])
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        accuracy = eval_model(model, *(table for pair in zip(counts, labels) for table in pair))
        parameters = int(model.coef_.size + 1) if hasattr(model, "coef_") else 0
        results.append({"model": type(model).__name__, "accuracy": accuracy, "trained_parameters": parameters, "parameters": parameters})
        results[-1] |= {"peak_memory_gb": round(peak_memory_gb(torch.device("cpu")), 2)}
        results[-1] |= {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1), "threads": torch.get_num_threads()}
    if args.output_dir:
        save_results(results, args.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
