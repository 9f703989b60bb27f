"""Four judges of an answer: a model that is asked for a score, one that reads, one that compares meanings, and no model at all.

Each judge is a function (entries, key) -> one integer from 0 to 100 an entry, or None where it gave none; key names the field with
the answer. An empty answer gets 0 from all of them. llm-instruction-eval-ollama.ipynb shows the first, section 6 the others.
"""

import re
from collections.abc import Callable
from difflib import SequenceMatcher

import torch
from instructions import OPTIONS, judge_prompt, parse_score, question_of
from minilm import minilm_folder
from previous_chapters import KVCache
from tqdm import tqdm

# Three right and three wrong answers, to be read before the one in question. None of these tasks is in the chapter's data.
SHOTS = (
    ("What is the capital of Norway?", "The capital of Norway is Oslo.", "Oslo", "Yes"),
    ("Rewrite the sentence in the past tense. He bakes bread.", "He baked bread.", "He bakes the bread.", "No"),
    ("Which is larger, 31 or 13?", "31", "13", "No"),
    ("Write a sentence about rain.", "The rain drummed on the tin roof all night.", "Rain fell softly on the dry garden.", "Yes"),
    ('What is the plural of "goose"?', "geese", "gooses", "No"),
    ('What is the opposite of "ugly"?', "beautiful", "It is pretty.", "Yes"),
)
MOST_TOKENS = 20  # of a reply to a request for one number
RULE = "Decide whether an answer to a task is right. The reference is a right answer."


def example(task: str, reference: str, answer: str, verdict: str = "") -> str:
    """Return one example of the prompt; without a verdict, the one that the judge completes. Section 6.

    Each text is put on one line, so that no answer can begin a line of its own such as "Right: Yes".
    """
    lines = [f"{name}: {' '.join(text.split())}" for name, text in (("Task", task), ("Reference", reference), ("Answer", answer))]
    return "\n".join([*lines, f"Right: {verdict}".rstrip()])


def shots_text() -> str:
    """Return what every prompt begins with: the rule and the solved examples. Section 6."""
    return "\n\n".join([RULE, *(example(*shot) for shot in SHOTS)]) + "\n\n"


class ReadingJudge:
    """Score = 100 times the probability of " Yes" against " No" behind the solved examples and the answer in question. Section 6.

    The model writes nothing. It reads the examples once and keeps their keys and values; each answer costs its own tokens only.
    encode: text -> ids; start_ids: what a text begins with in this model, if anything.
    """

    def __init__(self, model, encode: Callable[[str], list[int]], start_ids: tuple[int, ...] = ()):
        self.model, self.encode = model, encode
        self.verdict_ids = [number for word in (" Yes", " No") for number in encode(word)]
        if len(self.verdict_ids) != 2:
            raise ValueError("Yes and No must be one token each")
        self.cache = KVCache(model.cfg["n_layers"])
        self.read([*start_ids, *encode(shots_text())])
        self.num_shared = len(self.cache)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> torch.Tensor:
        """Return the logits (vocab_size,) behind these ids; the cache keeps them."""
        return self.model(torch.tensor([ids]), cache=self.cache, only_last=True)[0, -1]  # (vocab_size,)

    def score(self, entry: dict, answer: str) -> int:
        """Return the score of one answer to an entry, from 0 to 100."""
        if not answer.strip():
            return 0
        self.cache.crop(self.num_shared)
        logits = self.read(self.encode(example(question_of(entry), entry["output"], answer)))  # (vocab_size,)
        return round(100 * float(torch.softmax(logits[self.verdict_ids].float(), dim=0)[0]))

    def __call__(self, entries: list[dict], key: str) -> list[int]:
        """Return one score an entry."""
        return [self.score(entry, entry[key]) for entry in tqdm(entries, desc=key, unit="answers", mininterval=1, disable=None)]


def words_in_common(entries: list[dict], key: str) -> list[int]:
    """Return 100 times the likeness of answer and reference, by the words that they share in the same order. Section 6."""
    words = [[re.findall(r"\w+", entry[name].lower()) for name in ("output", key)] for entry in entries]
    return [round(100 * SequenceMatcher(None, *pair, autojunk=False).ratio()) if pair[1] else 0 for pair in words]


class MeaningJudge:
    """Score = 100 times the cosine similarity of answer and reference as all-MiniLM-L6-v2, a small BERT, represents them. Section 6.

    It was trained so that sentences of like meaning get like vectors. It does not see the task. FileNotFoundError with the command
    that installs it.
    """

    def __init__(self):
        from transformers import AutoModel, AutoTokenizer, logging  # here, so that the other judges do without the package

        logging.disable_progress_bar()  # of loading, which takes a second
        folder = minilm_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.inference_mode()
    def embed(self, text: str) -> torch.Tensor:
        """Return the mean of the vectors of a text's tokens, of length 1: (emb_dim,)."""
        tokens = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        hidden = self.model(**tokens).last_hidden_state  # (1, num_tokens, emb_dim)
        return torch.nn.functional.normalize(hidden[0].mean(dim=0), dim=0)  # (emb_dim,)

    def __call__(self, entries: list[dict], key: str) -> list[int]:
        """Return one score an entry; vectors that point away from each other get 0, as an empty answer does."""
        pairs = [(entry["output"], entry[key]) for entry in tqdm(entries, desc=key, unit="answers", mininterval=1, disable=None)]
        return [max(0, round(100 * float(self.embed(a) @ self.embed(b)))) if b.strip() else 0 for a, b in pairs]


# ---- loading ----


def asked_score(client, entry: dict, answer: str, model: str) -> int | None:
    """Return the score that a served model writes when asked as the chapter's ollama_evaluate.py asks, or None. Section 4.

    client: ollama's. A reply that has not ended after MOST_TOKENS tokens is no score: small models often talk until they are stopped.
    """
    if not answer.strip():
        return 0
    messages = [{"role": "user", "content": judge_prompt(entry, answer)}]
    reply = client.chat(model=model, messages=messages, options={**OPTIONS, "num_predict": MOST_TOKENS})
    return parse_score(reply.message.content) if reply.done_reason == "stop" else None


def smollm2_asked(entries: list[dict], key: str) -> list[int | None]:
    """Return what SmolLM2 writes when asked for scores, through the local server. Section 4."""
    from local_server import create_server  # here, so that the other judges need neither the server nor the client
    from ollama import Client

    with create_server(port=0) as server:
        client = Client(server.start())
        bar = tqdm(entries, desc=key, unit="answers", mininterval=1, disable=None)
        return [asked_score(client, entry, entry[key], "smollm2:135m") for entry in bar]


def gemma3_reads() -> ReadingJudge:
    """Gemma 3 270M, the base model, as a judge that only reads. FileNotFoundError with the command that installs it. Section 6."""
    from gemma3 import load_gemma3

    model, tokenizer = load_gemma3()
    return ReadingJudge(model, lambda text: tokenizer.encode(text, bos=False), (tokenizer.bos_token_id,))
