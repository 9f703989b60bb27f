"""Find near-duplicates in a JSON list of entries: texts that differ by a comma, a capital letter, or a word.

Each text becomes a vector of weighted character n-grams (TF-IDF); the cosine of two vectors is the similarity of their texts.
find-near-duplicates.py is the command line, create-passive-voice-entries.ipynb explains the method in sections 1 to 3.
"""

import json
import unicodedata
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

THRESHOLD = 0.75  # default of every function here and of the command line
QUESTION_FIELDS = ("instruction", "input")
ROUNDING = 1e-9  # a text's similarity to itself may come out a little below 1
BLOCK_SIZE = 256  # rows compared at a time: 256 times 50,000 similarities are 0.1 GB


# ---- from texts to similarities ----


def preprocess_text(text: str) -> str:
    """Return the text in lower case, without punctuation, with single spaces. Section 1.

    Only Unicode's punctuation goes: +, < and accents stay, because they change what a question asks.
    """
    letters = (letter for letter in unicodedata.normalize("NFC", text).lower() if not unicodedata.category(letter).startswith("P"))
    return " ".join("".join(letters).split())


def field_text(entry: dict, key: str) -> str:
    """Return what is compared of one field: "" if it is missing or null, JSON if it is no text, all of it preprocessed."""
    value = entry.get(key)
    if value is None:
        return ""
    return preprocess_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def tfidf_vectors(texts: list[str]) -> csr_matrix:
    """Return one row of length 1 for each preprocessed text, and a row of zeros for an empty one. Section 1.

    The columns are the runs of 1 to 3 characters that occur in the texts; most values are zero, so only the others are stored.
    """
    filled = [text for text in texts if text]  # the weights depend on the number of texts, and an empty field is none
    if not filled:
        return csr_matrix((len(texts), 1))
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)).fit(filled)
    return vectorizer.transform(texts)  # (num_texts, num_ngrams)


def similarity_blocks(rows: list[dict], columns: list[dict] | None, keys: tuple[str, ...]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first row, first column, similarities) for a few rows at a time; without columns, rows against rows.

    The similarity of two entries is that of their least similar field. A field that is empty in both says nothing about them;
    one that is empty in only one of them makes them different: -1. So do two entries without any text.
    """
    others = rows if columns is None else columns
    fields = []
    for key in keys:
        texts, other_texts = [field_text(entry, key) for entry in rows], [field_text(entry, key) for entry in others]
        vectors = tfidf_vectors(texts if columns is None else texts + other_texts)
        filled, other_filled = np.array([bool(text) for text in texts]), np.array([bool(text) for text in other_texts])
        fields.append((vectors[: len(rows)], vectors[-len(others) :], filled, other_filled))
    for first in tqdm(range(0, len(rows), BLOCK_SIZE), desc="comparing", unit="block", delay=2, leave=False):
        left = first if columns is None else 0  # each pair once: columns before this block's first row have been compared
        stop = first + BLOCK_SIZE
        similarity, any_text = np.array(1.0), np.array(False)
        for vectors, other_vectors, filled, other_filled in fields:
            cosine = (vectors[first:stop] @ other_vectors[left:].T).toarray()
            mine, theirs = filled[first:stop, None], other_filled[None, left:]
            cosine[mine != theirs] = -1
            similarity = np.minimum(similarity, np.where(mine | theirs, cosine, 1.0))
            any_text = any_text | mine | theirs
        yield first, left, np.where(any_text, similarity, -1.0)


# ---- pairs, and what to do with them ----


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless the threshold lies between 0 and 1."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"the threshold is {threshold} (allowed: 0 to 1)")


def similar_pairs(
    rows: list[dict], columns: list[dict] | None = None, threshold: float = THRESHOLD, keys: tuple[str, ...] = QUESTION_FIELDS
) -> list[tuple[int, int, float]]:
    """Return (i, j, similarity) of all pairs that reach the threshold in every field of keys, ordered by position. Section 2.

    i is a position in rows. j is one in columns or, without columns, a later one in rows. Raises ValueError for a threshold
    that does not lie between 0 and 1.
    """
    check_threshold(threshold)
    if not rows or (columns is not None and not columns):
        return []
    pairs = []
    for first, left, similarity in similarity_blocks(rows, columns, keys):
        found = similarity >= threshold - ROUNDING
        if columns is None:
            found = np.triu(found, k=1)  # the block begins on the diagonal, so j > i lies above it
        for i, j in zip(*np.nonzero(found & (similarity >= 0))):
            pairs.append((int(first + i), int(left + j), min(1.0, float(similarity[i, j]))))
    return pairs


def repeats(pairs: list[tuple[int, int, float]]) -> set[int]:
    """Return the positions to remove so that no pair is left: each entry that is similar to an earlier one that stays. Section 3.

    In a chain (1 is similar to 2, and 2 to 3, but 1 is not to 3) only the middle goes: what 3 repeated is no longer there.
    """
    removed = set()
    for i, j, _ in sorted(pairs, key=lambda pair: pair[1]):  # by the later entry, so that the fate of i is known
        if i not in removed:
            removed.add(j)
    return removed


def find_near_duplicates(
    json_data: list[dict], threshold: float = THRESHOLD, key: str = "instruction"
) -> tuple[list[dict], list[tuple[dict, dict, float]]]:
    """Compare one field; return (the entries without repeats in it, [(item_i, item_j, similarity)]). Section 3.

    The items are the very entries of json_data, the earlier one first. Entries whose field is empty or missing all stay.
    """
    pairs = similar_pairs(json_data, threshold=threshold, keys=(key,))
    removed = repeats(pairs)
    kept = [entry for position, entry in enumerate(json_data) if position not in removed]
    return kept, [(json_data[i], json_data[j], similarity) for i, j, similarity in pairs]


def all_fields(json_data: list[dict]) -> list[str]:
    """Return every field that occurs in some entry, in the order of first appearance."""
    return list(dict.fromkeys(key for entry in json_data for key in entry))


def print_pairs(pairs: list[tuple[int, int, float]], rows: list[dict], columns: list[dict], keys: tuple[str, ...]) -> None:
    """Print each pair with its positions, and the two texts one below the other."""
    for i, j, similarity in pairs:
        print(f"{i} and {j}, similarity {similarity:.3f}")
        for entry in (rows[i], columns[j]):
            print("  " + " | ".join(str(entry[key]) for key in keys if field_text(entry, key)))


def find_print_and_remove_near_duplicates(
    json_data: list[dict], remove_duplicates: bool = False, threshold: float = THRESHOLD
) -> list[dict]:
    """Print the near-duplicates of every field; return the entries, without the repeated questions if that is asked. Section 3.

    A repeated question is near-duplicate in instruction and input, or leaves one of them empty in both entries. Equal outputs
    ("Yes.") and equal instructions with other inputs are reported, and both entries stay. Raises ValueError for a threshold
    outside 0 to 1, and if entries without instruction and input are to be removed.
    """
    check_threshold(threshold)
    fields = all_fields(json_data)
    if remove_duplicates and json_data and not set(QUESTION_FIELDS) & set(fields):
        raise ValueError(f"no entry has a field instruction or input, so no question can be repeated; there are: {', '.join(fields)}")
    for key in fields:
        pairs = similar_pairs(json_data, threshold=threshold, keys=(key,))
        print(f"\n{key}: {len(pairs)} pairs with a similarity of {threshold} or more")
        print_pairs(pairs, json_data, json_data, (key,))
    if not remove_duplicates:
        return list(json_data)
    removed = repeats(similar_pairs(json_data, threshold=threshold))
    print(f"\nremoved as repeated questions: {len(removed)} of {len(json_data)} entries", *sorted(removed))
    return [entry for position, entry in enumerate(json_data) if position not in removed]
