"""Ask a language model for a second form of each answer, and check what comes back: empty, copied, off task, not in the other voice.

Any service that speaks OpenAI's protocol will do: OpenAI, or Ollama on this machine. create-passive-voice-entries.ipynb
explains this file in sections 4 and 5.
"""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from near_duplicates import preprocess_text, tfidf_vectors
from previous_chapters import read_text
from tqdm import tqdm

SERVICES = ("stored", "ollama", "openai")
OFF_TASK = 0.5  # a rewrite keeps most of its words, so a similarity below this belongs to another sentence
BE = r"(?:is|are|was|were|be|been|being)"
ADVERB = r"(?:\w+ly|also|often|not)"
IRREGULAR = (
    "beaten bought bound brought broken built caught chosen cut done drawn driven eaten fed felt found given heard held hidden kept "
    "known laid led left lent lit made paid put read ridden said seen sent set shown sold spread stolen sung swept taken taught told "
    "thrown woken won worn woven written"
)
PASSIVE = re.compile(rf"\b{BE}(?: {ADVERB})? (?:\w+ed|{'|'.join(IRREGULAR.split())})\b", re.IGNORECASE)


# ---- asking ----


def connect(service: str, config_file: str | Path = "config.json"):
    """Return a client of openai's package, or None for "stored". Section 4.

    "ollama" is a server on this machine (OLLAMA_HOST names another one). "openai" takes the key from the environment variable
    OPENAI_API_KEY or from config_file. Raises ValueError in one line for an unknown service, a missing key, and an Ollama that
    is not running.
    """
    if service not in SERVICES:
        raise ValueError(f"unknown service {service!r} (known: {', '.join(SERVICES)})")
    if service == "stored":
        return None
    from openai import OpenAI  # here, so that everything else works without the package

    if service == "ollama":
        address = ollama_address()
        return OpenAI(base_url=f"{address}/v1", api_key="ollama", timeout=120)
    key = os.environ.get("OPENAI_API_KEY")
    if not key and Path(config_file).exists():
        try:
            key = json.loads(read_text(config_file)).get("OPENAI_API_KEY")
        except (ValueError, AttributeError):
            raise ValueError(f"{config_file} is not a JSON object; config.example.json shows its form") from None
    if not key:
        raise ValueError(f"no key: set the environment variable OPENAI_API_KEY, or copy config.example.json to {config_file}")
    return OpenAI(api_key=key, timeout=120)


def ollama_address() -> str:
    """Return the address of a running Ollama; ValueError that says what to do if nobody answers there. Section 4."""
    host = os.environ.get("OLLAMA_HOST", "localhost:11434")
    address = (host if "://" in host else f"http://{host}").rstrip("/")
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname, parts.port or 11434), timeout=5).close()
    except OSError:
        raise ValueError(f"nobody answers at {address}: start Ollama (ollama serve) and fetch a model (ollama pull llama3.2)") from None
    return address


def run_chatgpt(prompt: str, client, model: str = "gpt-4-turbo") -> str:
    """Send one prompt to a service and return its answer, always its likeliest words (temperature 0). Section 4."""
    reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}], temperature=0.0)
    return (reply.choices[0].message.content or "").strip()


def is_passive(sentence: str) -> bool:
    """Say whether a form of "be" is followed by a participle: a guess, good enough for plain sentences. Section 5."""
    return bool(PASSIVE.search(sentence))


def build_prompt(entry: dict) -> str:
    """Return the request for the answer of an entry in its other voice. Section 4."""
    voice = "active" if is_passive(entry["output"]) else "passive"
    return (
        f"Rewrite this sentence in the {voice} voice. Keep its facts, names, and numbers. "
        f"Reply with the new sentence and nothing else.\n\n{entry['output']}"
    )


def collect_answers(prompts: list[str], ask: Callable[[str], str], log_file: str | Path) -> list[str]:
    """Return the answer to each prompt; each is written to log_file at once, and no prompt of that file is asked again. Section 4.

    So a run that stops in the middle loses nothing that has been paid for: call it again.
    """
    log_file, answers = Path(log_file), {}
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists():
        for line in read_text(log_file).splitlines():
            try:
                answers.update([json.loads(line)])
            except (ValueError, TypeError):
                pass  # a line that was cut off: its prompt is asked again
    with log_file.open("a", encoding="utf-8") as log:
        log.write("\n" if log.tell() else "")  # a line that was cut off ends here
        for prompt in tqdm(prompts, desc="asking", unit="prompt", disable=None):
            if prompt not in answers:
                answers[prompt] = ask(prompt)
                log.write(json.dumps([prompt, answers[prompt]], ensure_ascii=False) + "\n")
                log.flush()
    return [answers[prompt] for prompt in prompts]


# ---- checking ----


def own_similarities(first_texts: list[str], second_texts: list[str]) -> list[float]:
    """Return the similarity of each text to the one at the same position in the other list. Section 5."""
    texts = [preprocess_text(text) for text in first_texts + second_texts]
    vectors = tfidf_vectors(texts)
    first, second = vectors[: len(first_texts)], vectors[len(first_texts) :]
    return np.asarray(first.multiply(second).sum(axis=1)).ravel().tolist()


def names_and_numbers(sentence: str) -> set[str]:
    """Return the numbers of a sentence and its capitalized words, the first one left out: every sentence begins so. Section 5."""
    return set(re.findall(r"\d+(?:[.,]\d+)*|(?<=[a-z,;:] )[A-Z][a-z]+", sentence))


def fault_of(first: str, second: str, similarity: float) -> str:
    """Name what is wrong with second as the other voice of first, or return "". Section 5."""
    if not second.strip():
        return "empty"
    if preprocess_text(first) == preprocess_text(second):
        return "copy"
    if similarity < OFF_TASK:
        return "off task"
    if "\n" in second or second.count(":") > first.count(":") or len(second.split()) > 2 * len(first.split()):
        return "extra text"
    if not all(found in second for found in names_and_numbers(first)) or not all(found in first for found in names_and_numbers(second)):
        return "other facts"
    return "same voice" if is_passive(first) == is_passive(second) else ""


def find_faults(entries: list[dict], first: str = "output", second: str = "output_2") -> list[str]:
    """Return the fault of each entry, "" where nothing was found. A missing answer is an empty one. Section 5."""
    firsts, seconds = [[str(entry.get(key) or "") for entry in entries] for key in (first, second)]
    return [fault_of(*texts) for texts in zip(firsts, seconds, own_similarities(firsts, seconds))]
