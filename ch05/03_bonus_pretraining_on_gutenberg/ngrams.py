"""Which runs of words two texts share: the measure behind dropped near-duplicates and clean held-out text.

An n-gram is a run of n words, here in lower case and without punctuation. Two texts that share many long n-grams were
copied from each other or from a third one. N-grams are kept as 32-bit checksums: a set of numbers is small and quick to ask.
"""

import re
import zlib
from collections.abc import Iterable, Iterator

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case; an apostrophe inside a word belongs to it."""
    return WORD.findall(text.lower())


def ngram_hashes(text: str, n: int) -> Iterator[int]:
    """Yield a 32-bit number for each run of n words; none if the text has fewer than n words."""
    words = words_of(text)
    for i in range(len(words) - n + 1):
        yield zlib.crc32(" ".join(words[i : i + n]).encode("utf-8"))


def ngram_set(texts: Iterable[str], n: int) -> set[int]:
    """Return the hashes of all n-grams of several texts."""
    return {number for text in texts for number in ngram_hashes(text, n)}


class NearDuplicates:
    """Remembers texts by a sample of their n-grams and tells which new ones repeat them.

    The sample is every n-gram whose hash divides by `keep_one_in`: the same words are chosen in every text, so the share of
    known ones is a fair estimate for the whole text, at a quarter of the memory. A text is a near-duplicate when more than
    `max_overlap` of its sample is known.
    """

    def __init__(self, max_overlap: float = 0.5, n: int = 8, keep_one_in: int = 4):
        self.max_overlap, self.n, self.keep_one_in = max_overlap, n, keep_one_in
        self.known: set[int] = set()

    def sample(self, text: str) -> set[int]:
        """Return the chosen n-grams of a text; all of them when the choice would leave fewer than 4."""
        everything = set(ngram_hashes(text, self.n))
        chosen = {number for number in everything if number % self.keep_one_in == 0}
        return chosen if len(chosen) >= 4 else everything

    def overlap(self, text: str) -> float:
        """Return the share of the text's sample that is known, 0.0 for a text without n-grams."""
        sample = self.sample(text)
        return len(sample & self.known) / len(sample) if sample else 0.0

    def add(self, text: str) -> None:
        """Remember a text."""
        self.known |= self.sample(text)

    def is_new(self, text: str) -> bool:
        """Tell whether a text is no near-duplicate, and remember it if so."""
        if self.overlap(text) > self.max_overlap:
            return False
        self.add(text)
        return True
