"""Five small tasks with known answers, asked as a question and by examples, to measure what a model does without training.

    capital: Japan     question: "What is the capital of Japan?"     by two examples: "Italy: Rome\\nKenya: Nairobi\\nJapan:"

base_models.py runs them; the notebook reads its log. The lists were written for this course.
"""

import random
import re

QUESTIONS = {
    "capital": "What is the capital of {}?", "opposite": "What is the opposite of the word {}?",
    "past tense": "What is the past tense of the verb {}?", "French": "What is the French word for {}?", "sum": "What is {}?",
}
PAIRS = {
    "capital": "Japan Tokyo, Italy Rome, Kenya Nairobi, France Paris, Egypt Cairo, Norway Oslo, Cuba Havana, Peru Lima, Austria Vienna, "
               "Iraq Baghdad, Portugal Lisbon, Greece Athens, Canada Ottawa, Iran Tehran, Ireland Dublin, Spain Madrid, Finland Helsinki, "
               "Poland Warsaw, Hungary Budapest, Chile Santiago, Thailand Bangkok, Turkey Ankara, Nepal Kathmandu, Senegal Dakar",
    "opposite": "hot cold, big small, up down, wet dry, early late, open closed, rich poor, light dark, happy sad, old young, fast slow, "
                "loud quiet, full empty, near far, strong weak, good bad, hard soft, high low, clean dirty, left right, first last, "
                "true false, day night, inside outside",
    "past tense": "go went, see saw, eat ate, write wrote, sing sang, run ran, buy bought, think thought, fall fell, know knew, take took, "
                  "give gave, break broke, speak spoke, drive drove, swim swam, teach taught, feel felt, grow grew, hide hid, steal stole, "
                  "bring brought, forget forgot, wear wore",
    "French": "water eau, bread pain, house maison, cat chat, dog chien, red rouge, school école, sun soleil, milk lait, tree arbre, "
              "book livre, night nuit, white blanc, sea mer, door porte, green vert, fish poisson, city ville, king roi, hand main, "
              "apple pomme, black noir, cheese fromage, sister soeur",
}
NUM_ITEMS = 24
SHOTS = (0, 1, 2, 4, 8)


def task_pairs(task: str, seed: int = 123) -> list[tuple[str, str]]:
    """The 24 pairs (question, answer) of a task; the sums of two numbers below 50 are drawn with the seed."""
    if task == "sum":
        rng = random.Random(seed)
        numbers = [(rng.randint(10, 49), rng.randint(10, 49)) for _ in range(NUM_ITEMS)]
        return [(f"{a} + {b}", str(a + b)) for a, b in numbers]
    return [tuple(pair.split()) for pair in PAIRS[task].split(", ")]


def few_shot_prompts(task: str, num_shots: int, seed: int = 123) -> list[str]:
    """One prompt a pair: `num_shots` other pairs as solved examples, a line each, then the question and a colon."""
    pairs, rng, prompts = task_pairs(task, seed), random.Random(f"{seed} {task}"), []
    for question, _ in pairs:
        others = rng.sample([pair for pair in pairs if pair[0] != question], max(SHOTS))[:num_shots]
        prompts.append("".join(f"{other}: {answer}\n" for other, answer in others) + f"{question}:")
    return prompts


def question_prompts(task: str, seed: int = 123) -> list[str]:
    """One question in plain English a pair."""
    return [QUESTIONS[task].format(question) for question, _ in task_pairs(task, seed)]


def line_is_right(continuation: str, answer: str) -> bool:
    """Whether the first line is the answer and nothing else; capital letters and a full stop do not matter."""
    first = continuation.strip(" ").split("\n")[0]
    return first.strip(" .").casefold() == answer.casefold()


def mentions(continuation: str, answer: str) -> bool:
    """Whether the answer stands anywhere in the text as a whole word: generous, since nothing asked for a bare word."""
    return re.search(rf"\b{re.escape(answer)}\b", continuation, flags=re.IGNORECASE) is not None
