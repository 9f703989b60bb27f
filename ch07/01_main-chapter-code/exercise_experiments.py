"""The exercises of chapter 7 as whole trainings: each changes one thing against a baseline, and answers the same questions.

    python exercise_experiments.py --exercise_solution baseline            # loss on the whole text, prompt included
    python exercise_experiments.py --exercise_solution mask_instructions   # 7.2: loss on the answer alone, as the chapter trains
    python exercise_experiments.py --exercise_solution alpaca_52k          # 7.3: 52,002 entries (downloaded once) instead of 935
    python exercise_experiments.py --exercise_solution phi3_prompt         # 7.1: a shorter prompt
    python exercise_experiments.py --exercise_solution lora                # 7.4: adapters instead of all weights

With --num_epochs 3, as in the stored log, a run takes one to three minutes with gpt2-mini on two cores (alpaca_52k: hours);
--size full takes GPT-2 355M. The names of
the files it writes end in the name of the run. Programs mark the answers to the verifiable questions: on words that the
tuning has seen, on words that it has not, and on instructions in other words. exercise-experiments-log.jsonl keeps the marks.
"""

import contextlib
import io
import json
import sys
from functools import partial
from pathlib import Path

import torch
from gpt_instruction_finetuning import INSTRUCTION_SIZES, TEST_CONFIG, TEST_MODE, answer_entries, train_on_answers
from instruction_batches import (
    InstructionDataset,
    InstructionDatasetWithMasking,
    custom_collate_fn,
    custom_collate_with_masking_fn,
    download_and_load_file,
    encode_answer,
    encode_prompt,
    encode_text,
    split_data,
)
from instruction_data_checks import DATA_FILE, GROUPS, load_data, load_verifiable_test, question_of, verify, well_formed
from lora import merge_lora, replace_linear_with_lora
from previous_chapters import (
    MODELS_DIR,
    GPTModel,
    OneLineParser,
    adamw,
    gpt2_tokenizer,
    int_at_least,
    load_pretrained_gpt,
    pick_device,
    plot_losses,
    positive_float,
    read_text,
    save_atomically,
)
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

FOLDER = Path(__file__).resolve().parent
LOG_FILE = FOLDER / "exercise-experiments-log.jsonl"
SOLUTIONS = {  # the flags of `main`, and the ending of the files
    "baseline": ({}, "-baseline"),
    "mask_instructions": ({"mask_instructions": True}, "-mask-instructions"),
    "alpaca_52k": ({"alpaca52k": True}, "-alpaca52k"),
    "phi3_prompt": ({"phi3_prompt": True}, "-phi3-prompt"),
    "lora": ({"lora": True}, "-lora"),
}
ALPACA_FILE = FOLDER / "alpaca-data-52k.json"  # a name of its own: instruction-data.json is the course's
ALPACA_URL = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json"
ALPACA_ENTRIES = 52_002
PHI_HEADER = "\n<|assistant|>:\n"
RANK = ALPHA = 16
EVAL_FREQ = 58  # two measurements in an epoch of 116 updates


# ---- exercise 7.1: another prompt ----


def format_input_phi(entry: dict) -> str:
    """Return the prompt of an entry in the style of Phi-3, without the answer marker. Exercise 7.1."""
    return f"<|user|>\n{entry['instruction']}" + (f"\n{entry['input']}" if entry["input"] else "")


def encode_prompt_phi(entry: dict, tokenizer) -> list[int]:
    """Return the ids after which the answer begins. The markers are plain text to GPT-2's tokenizer. Exercise 7.1."""
    return encode_text(format_input_phi(entry) + PHI_HEADER, tokenizer)


class InstructionDatasetPhi(Dataset):
    """Each item is the list of ids of a prompt in the style of Phi-3, the answer marker, and the answer. Exercise 7.1."""

    def __init__(self, data: list[dict], tokenizer):
        self.data = data
        self.encoded_texts = [encode_prompt_phi(entry, tokenizer) + encode_answer(entry["output"], tokenizer) for entry in data]

    def __getitem__(self, index: int) -> list[int]:
        return self.encoded_texts[index]

    def __len__(self) -> int:
        return len(self.data)


# ---- exercise 7.3: more data ----


def load_alpaca(file_path: str | Path = ALPACA_FILE, url: str = ALPACA_URL) -> list[dict]:
    """Return the entries of Stanford Alpaca, downloaded once; ValueError if there are not 52,002. Exercise 7.3."""
    data = download_and_load_file(file_path, url)
    if len(data) != ALPACA_ENTRIES:
        raise ValueError(f"{file_path} has {len(data):,} entries, Stanford Alpaca has {ALPACA_ENTRIES:,}: remove it to download it again")
    return data


# ---- exercise 7.4: adapters ----


def add_lora(model: GPTModel, rank: int = RANK, alpha: float = ALPHA) -> tuple[int, int]:
    """Freeze a model and give all its linear layers adapters; returns (numbers it had, numbers that will learn). Exercise 7.4."""
    total = sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(False)
    replace_linear_with_lora(model, rank, alpha)
    return total, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# ---- answers and marks ----


def mark(questions: list[dict], answers: list[str], ended: list[bool]) -> dict[str, dict]:
    """Return for each group of verifiable questions: how many there are, and how many answers are right, well formed, and ended."""
    marks = {group: {"of": 0, "right": 0, "well_formed": 0, "ended": 0} for group in GROUPS}
    for question, answer, stopped in zip(questions, answers, ended):
        counts = marks[question["group"]]
        counts["of"] += 1
        counts["right"] += verify(question["check"], answer, question_of(question))
        counts["well_formed"] += well_formed(question["check"], answer)
        counts["ended"] += stopped
    return marks


def read_log(path: str | Path = LOG_FILE) -> dict[str, dict]:
    """Return {name of the run: what was logged of its last training}."""
    return {line["run"]: line for line in map(json.loads, read_text(path).splitlines())}


# ---- one run ----


def create_loaders(
    datasets: list[Dataset], mask_instructions: bool, batch_size: int, max_length: int, device
) -> tuple[DataLoader, DataLoader]:
    """Loaders of (inputs, targets) for training, shuffled, and for validation."""
    function = custom_collate_with_masking_fn if mask_instructions else custom_collate_fn
    collate = partial(function, allowed_max_length=max_length, device=device)
    train, val = datasets
    loader = DataLoader(train, batch_size, shuffle=True, drop_last=len(train) >= batch_size, collate_fn=collate)
    return loader, DataLoader(val, batch_size, collate_fn=collate)


def load_model(settings: dict, device) -> tuple[GPTModel, dict, str]:
    """Return (model, its configuration, its name for files) as the settings say."""
    torch.manual_seed(settings["seed"])
    if settings["test_mode"]:
        model, cfg, name = GPTModel(TEST_CONFIG), TEST_CONFIG, "small-test-model"
    else:
        choice = INSTRUCTION_SIZES[settings["size"]]["choose_model"]
        model, cfg = load_pretrained_gpt({}, choice, settings["models_dir"])
        name = choice.replace(" (mini)", "").replace(" (", "").removesuffix(")")
    return model.to(device), cfg, name


def main(
    mask_instructions: bool = False, alpaca52k: bool = False, phi3_prompt: bool = False, lora: bool = False, settings: dict | None = None
) -> dict:
    """Train once as the flags say, write plot, answers and weights, and return what the log keeps of the run.

    Raises ValueError for masking together with the Phi-3 prompt, whose dataset has no prompt lengths, and ValueError or
    OSError, in one line, for input it cannot use.
    """
    if mask_instructions and phi3_prompt:
        raise ValueError("mask_instructions and phi3_prompt cannot be combined: InstructionDatasetPhi does not keep prompt lengths")
    settings = {**vars(build_parser().parse_args(["--exercise_solution", "baseline"])), **(settings or {})}
    settings.update(TEST_MODE if settings["test_mode"] else {})
    flags = {"mask_instructions": mask_instructions, "alpaca52k": alpaca52k, "phi3_prompt": phi3_prompt, "lora": lora}
    suffix = "".join(SOLUTIONS[key][1] for key in SOLUTIONS if flags.get(key.replace("_52k", "52k"))) or "-baseline"
    device, folder = pick_device(settings["device"]), Path(settings["output_dir"])
    answer_file = folder / f"instruction-data-with-response{suffix}.json"
    if answer_file.exists() and not settings["overwrite"]:
        raise ValueError(f"{answer_file} exists: add --overwrite to replace the results of that run")
    course_data, questions = load_data(DATA_FILE), load_verifiable_test()
    data = load_alpaca() if alpaca52k and not settings["test_mode"] else course_data
    (train_data, _, val_data), test_data = split_data(data), split_data(course_data)[1]
    if settings["test_mode"]:
        train_data, val_data, test_data, questions = train_data[:10], val_data[:10], test_data[:10], questions[::40]
    tokenizer = gpt2_tokenizer()
    model, cfg, name = load_model(settings, device)
    trainable = (
        add_lora(model, 4 if settings["test_mode"] else RANK)[1] if lora else sum(parameter.numel() for parameter in model.parameters())
    )
    dataset = InstructionDatasetWithMasking if mask_instructions else InstructionDatasetPhi if phi3_prompt else InstructionDataset
    cap = min(512, cfg["context_length"]) if alpaca52k else cfg["context_length"]
    torch.manual_seed(settings["seed"])
    datasets = [dataset(part, tokenizer) for part in (train_data, val_data)]
    loaders = create_loaders(datasets, mask_instructions, 4 if alpaca52k else 8, cap, device)
    folder.mkdir(parents=True, exist_ok=True)
    losses = train(model, loaders, settings, device, folder / f"loss-plot{suffix}.pdf", suffix[1:])
    if lora:
        merge_lora(model)
    save_atomically({"model_state_dict": model.state_dict(), "gpt_config": cfg}, folder / f"{name}-sft{suffix}.pth")
    encode = encode_prompt_phi if phi3_prompt else encode_prompt
    asked = [*test_data, *questions]
    print(f"answering {len(asked)} questions", file=sys.stderr)
    answers, ended = answer_entries(model.eval(), asked, tokenizer, device, settings["max_new_tokens"], encode=encode)
    answered = [{**entry, "model_response": answer} for entry, answer in zip(test_data, answers)]
    answer_file.write_text(json.dumps(answered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    count, lengths = len(test_data), [len(encode(entry, tokenizer)) for entry in asked]
    return {
        "run": suffix[1:], "model": name, "seed": settings["seed"], **losses, "trainable": trainable, "entries": len(train_data),
        "prompt_tokens": round(sum(lengths) / len(lengths), 1), "marks": mark(questions, answers[count:], ended[count:]),
        "samples": [[question_of(entry), answer] for entry, answer in list(zip(test_data, answers))[:8]],
    }  # fmt: skip


def train(model: GPTModel, loaders: tuple, settings: dict, device, plot_path: Path, name: str) -> dict:
    """Train with the chapter's loop, save the plot of the losses, and return what the log keeps of it."""
    size = INSTRUCTION_SIZES[settings["size"]]
    lr, num_epochs = settings["learning_rate"] or size["lr"], settings["num_epochs"] or size["num_epochs"]
    updates, optimizer = num_epochs * len(loaders[0]), adamw(model, lr, 0.1, device)
    eval_freq = min(EVAL_FREQ, updates)
    bar = tqdm(total=updates, desc=name, unit="updates", mininterval=1)
    with bar, contextlib.redirect_stdout(io.StringIO()):
        train_losses, val_losses, seen = train_on_answers(model, *loaders, optimizer, num_epochs, eval_freq, 7, bar.update)
    epochs = [(number + 1) * eval_freq / len(loaders[0]) for number in range(len(train_losses))]
    plot_losses(epochs, seen, train_losses, val_losses, plot_path)
    return {
        "learning_rate": lr, "num_epochs": num_epochs, "updates": updates, "tokens_trained": seen[-1],
        "train_losses": [round(loss, 3) for loss in train_losses], "val_losses": [round(loss, 3) for loss in val_losses],
    }  # fmt: skip


def build_parser() -> OneLineParser:
    parser = OneLineParser("Train as one of chapter 7's exercises asks, and mark the answers.")
    parser.add_argument(
        "--exercise_solution",
        choices=SOLUTIONS,
        required=True,
        help="baseline: loss on the whole text; mask_instructions: loss on the answer alone, which is how the chapter trains; the "
        "others change the data, the prompt or what learns, and keep the baseline's loss",
    )
    parser.add_argument("--size", choices=INSTRUCTION_SIZES, default="laptop", help="laptop: gpt2-mini; full: GPT-2 355M")
    parser.add_argument("--test_mode", action="store_true", help="a tiny random model and few entries of the course's own data")
    parser.add_argument("--num_epochs", type=int_at_least(1), help="passes over the training entries; None: as the chapter")
    parser.add_argument("--learning_rate", type=positive_float, help="of AdamW; None: as the chapter")
    parser.add_argument("--max_new_tokens", type=int_at_least(1), default=60, help="longest answer")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of downloaded weights")
    parser.add_argument("--output_dir", default=str(FOLDER / "exercise-experiments"), help="folder for plot, answers and weights")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run of the same name")
    parser.add_argument("--log", help="JSON lines file to which the marks are added, such as exercise-experiments-log.jsonl; None: no log")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `main`; returns 0, or exits with code 2 and one line on bad input."""
    parser = build_parser()
    settings = vars(parser.parse_args(argv))
    try:
        log = open(settings["log"], "a", encoding="utf-8") if settings["log"] else contextlib.nullcontext()  # before the long run
        with log:
            result = main(**SOLUTIONS[settings["exercise_solution"]][0], settings=settings)
            if settings["log"]:
                log.write(json.dumps(result, ensure_ascii=False) + "\n")
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    for group, counts in result["marks"].items():
        print(
            f"{group:<10}"
            + ", ".join(f"{kind.replace('_', ' ')} {counts[kind]}/{counts['of']}" for kind in ("right", "well_formed", "ended"))
        )
    print(f"saved in {settings['output_dir']}, file names with {SOLUTIONS[settings['exercise_solution']][1]}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
