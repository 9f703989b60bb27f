"""Chapter 6's classifier with every choice as a switch: which token is read, what is trained, how texts are padded, and more.

It adds to chapter 6 the options of the result table in README.md. Nothing of a run is kept but its measurements (result.json)
and the split it used (train.csv, validation.csv, test.csv), which is written anew each time.

Run it:  python additional_experiments.py                                     (chapter 6's choices, one or two minutes)
         python additional_experiments.py --trainable_layers lora --lora_rank 16 --lora_alpha 16
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.nn as nn
from classifier import FULL_DATA_FOLDER, SPAM_URLS, collate_trimmed, spam_package_file
from classifier_training import (  # noqa: F401 (calc_accuracy_loader and others are this folder's names for chapter 6's functions)
    calc_accuracy_loader,
    calc_loss_batch,
    calc_loss_loader,
    evaluate_model,
    right_answers,
    text_logits,
    train_classifier_simple,
)
from experiment_data import (  # noqa: F401
    SpamDataset,
    create_dataset_csvs,
    create_loaders,
    download_and_unzip,
    random_split,
    text_length_limit,
    without_repeats,
)
from lora import LinearWithLoRA, LinearWithLoRAMerged, LoRALayer, replace_linear_with_lora  # noqa: F401
from previous_chapters import (
    MODELS_DIR,
    SIZES,
    OneLineParser,
    adamw,
    config_of,
    download_and_load_gpt2,
    find_mini,
    gpt2_tokenizer,
    int_at_least,
    load_weights_into_gpt,
    peak_memory_gb,
    pick_device,
    positive_float,
    read_settings,
    size_name,
)
from torch.utils.data import DataLoader
from tqdm import tqdm
from unmasked_gpt import GPTModel, RememberingGPT

NUM_CLASSES = 2
TRAINABLE_LAYERS = ["last_block", "all", "last_two_blocks", "last_layer", "lora", "lora_alternative"]
TRAINED_BLOCKS = {"last_block": 1, "last_two_blocks": 2, "last_layer": 0}  # of those choices that freeze the lower blocks
MINI_LEARNING_RATES = {"last_layer": 3e-3, "last_block": 1e-3, "last_two_blocks": 2e-4, "all": 2e-4, "lora": 1e-3}
LARGE_LEARNING_RATES = {"lora": 8e-4}  # appendix E; 5e-5 for all else


def instantiate_model(
    choose_model: str, load_weights: bool, disable_causal_mask: bool = False, models_dir: str | Path = MODELS_DIR
) -> tuple[GPTModel, dict]:
    """Return (GPT with its language-model head, its configuration); without load_weights, newly drawn. ValueError for other sizes.

    choose_model: "mini", "124M", ... or chapter 5's longer names, such as "gpt2-small (124M)".
    """
    size, params = size_name(choose_model), None
    if load_weights:
        settings, params = download_and_load_gpt2(size, models_dir)
    else:
        settings = read_settings(find_mini(models_dir) / "config.json") if size == "mini" else SIZES[size]
    cfg = {"drop_rate": 0.0, **config_of(settings)}
    model = GPTModel(cfg, disable_causal_mask)
    if params:
        load_weights_into_gpt(model, params)
    return model, cfg


def make_classifier(model: GPTModel, trainable_layers: str, lora_rank: int = 8, lora_alpha: float = 8) -> None:
    """Give a GPT a new head of two classes and choose what will train, in place; the head always does. Section 6.5."""
    for parameter in model.parameters():
        parameter.requires_grad = trainable_layers == "all"
    if trainable_layers.startswith("lora"):  # in the blocks; a new head has no weights worth keeping
        replace_linear_with_lora(model, lora_rank, lora_alpha, trainable_layers == "lora_alternative", targets=("trf_blocks",))
    num_blocks = TRAINED_BLOCKS.get(trainable_layers, 0)
    if num_blocks:
        for part in (*model.trf_blocks[-num_blocks:], model.final_norm):
            part.requires_grad_(True)
    model.out_head = nn.Linear(model.tok_emb.embedding_dim, NUM_CLASSES)


def default_learning_rate(model_size: str, trainable_layers: str) -> float:
    """Return the learning rate of a row of the table: for the mini, what was best on validation data (README.md)."""
    part = "lora" if trainable_layers.startswith("lora") else trainable_layers
    return MINI_LEARNING_RATES[part] if size_name(model_size) == "mini" else LARGE_LEARNING_RATES.get(part, 5e-5)


def reads_padding(settings: dict) -> bool:
    """Tell whether padding can change an answer; else it may be left out, and all numbers stay the same."""
    return settings["trainable_token_pos"] == "last" and not settings["average_embeddings"]


def prepare(settings: dict, folder: Path, device: torch.device) -> tuple[nn.Module, list[DataLoader], torch.optim.Optimizer]:
    """Return classifier, loaders (training, validation, test) and optimizer as the command line says; writes the split to folder."""
    torch.manual_seed(settings["seed"])
    pretrained = settings["weights"] == "pretrained"
    model, cfg = instantiate_model(settings["model_size"], pretrained, settings["disable_causal_mask"], settings["models_dir"])
    torch.manual_seed(settings["seed"])
    make_classifier(model, settings["trainable_layers"], settings["lora_rank"], settings["lora_alpha"])
    model.to(device)

    messages = FULL_DATA_FOLDER / "SMSSpamCollection.tsv" if settings["full_data"] else spam_package_file()
    if settings["full_data"]:
        download_and_unzip(SPAM_URLS, FULL_DATA_FOLDER / "sms_spam_collection.zip", FULL_DATA_FOLDER, messages)
    create_dataset_csvs(messages, folder, settings["seed"])
    longest = SpamDataset(folder / "train.csv", gpt2_tokenizer()).max_length
    max_length = text_length_limit(settings["context_length"], longest, cfg["context_length"])
    trim = settings["fast"] and not reads_padding(settings)
    loaders = create_loaders(folder, max_length, settings["batch_size"], settings["no_padding"], trim)

    learning_rate = settings["learning_rate"] or default_learning_rate(settings["model_size"], settings["trainable_layers"])
    optimizer = adamw(model, learning_rate, 0.1, device)
    if settings["fast"] and settings["trainable_layers"] in TRAINED_BLOCKS:
        model = RememberingGPT(model, len(model.trf_blocks) - TRAINED_BLOCKS[settings["trainable_layers"]], reads_padding(settings))
    return model, loaders, optimizer


def train(model: nn.Module, loaders: list[DataLoader], optimizer: torch.optim.Optimizer, device: torch.device, settings: dict) -> dict:
    """Train behind a progress bar; returns {"examples_seen", "seconds", "cpu_seconds" (the processor's)}."""
    names = ("num_epochs", "eval_freq", "eval_iter", "max_steps", "accumulation_steps")
    options = {name: settings[name] for name in (*names, "trainable_token_pos", "ignore_index", "average_embeddings")}
    begun, cpu_begun, tokens = time.perf_counter(), time.process_time(), 0

    def after_batch(num_tokens: int) -> None:
        nonlocal tokens
        tokens += num_tokens
        speed = tokens / (time.perf_counter() - begun)
        bar.set_postfix_str(f"{speed:,.0f} tokens/s, peak memory {peak_memory_gb(device):.1f} GB", refresh=False)
        bar.update()

    with tqdm(total=settings["num_epochs"] * len(loaders[0]), unit="batches", mininterval=1) as bar:
        outcome = train_classifier_simple(model, *loaders[:2], optimizer, device, **options, after_batch=after_batch)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
    for name, losses in zip(("training", "validation"), outcome):
        print(f"{name} loss {losses[0]:.3f} after the first update, {losses[-1]:.3f} when last measured")
    return {"examples_seen": outcome[-1], "seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}


def measure(model: nn.Module, loaders: list[DataLoader], device: torch.device, settings: dict) -> dict:
    """Return the validation loss and, for every part and for the test without repeats, the number of texts and of right answers."""
    reading = {key: settings[key] for key in ("trainable_token_pos", "average_embeddings")}
    collate = None if reads_padding(settings) else collate_trimmed
    train, validation, test = (DataLoader(loader.dataset, loader.batch_size, collate_fn=collate) for loader in loaders)
    loss = calc_loss_loader(validation, model, device, ignore_index=settings["ignore_index"], **reading)
    right = [right_answers(loader, model, device, **reading) for loader in (train, validation, test)]
    parts = dict(zip(("train", "validation", "test"), right))
    parts["test_without_repeats"] = [right[2][row] for row in without_repeats(test.dataset.data, train.dataset.data)]
    counts = {name: {"right": sum(answers), "texts": len(answers)} for name, answers in parts.items()}
    return {"validation_loss": round(loss, 4), **counts}


def run_experiment(settings: dict) -> dict:
    """Fine-tune and measure one classifier as the command line says; returns what is written to output_dir/result.json.

    Raises ValueError or OSError, in one line, for input it cannot use.
    """
    folder, device = Path(settings["output_dir"]), pick_device(settings["device"])
    model, loaders, optimizer = prepare(settings, folder, device)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    max_length, learning_rate = loaders[0].dataset.max_length, optimizer.param_groups[0]["lr"]
    cut = sum(loader.dataset.num_cut for loader in loaders)
    print(f"{trained:,} parameters to train, learning rate {learning_rate}; {cut} texts are cut at {max_length} tokens")
    result = {"seed": settings["seed"], "learning_rate": learning_rate, "max_length": max_length, "trained_parameters": trained}
    result |= train(model, loaders, optimizer, device, settings)
    result |= {"peak_memory_gb": round(peak_memory_gb(device), 2), **measure(model, loaders, device, settings)}
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def length_or_name(text: str) -> str | int:
    """argparse type for --context_length."""
    return text if text in ("longest_training_example", "model_context_length") else int_at_least(1)(text)


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options, call `run_experiment`; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("Fine-tune a GPT to find spam, with one choice changed, and measure.")
    parser.add_argument("--model_size", choices=["mini", *SIZES], default="mini", help="mini: of this course; others: GPT-2")
    parser.add_argument("--full_data", action="store_true", help="all 5,574 messages of the collection, downloaded once")
    parser.add_argument("--weights", choices=["pretrained", "random"], default="pretrained", help="where training starts")
    parser.add_argument("--trainable_layers", choices=TRAINABLE_LAYERS, default="last_block", help="what learns, beside the new head")
    parser.add_argument(
        "--trainable_token_pos", choices=["last", "first", "flexible"], default="flexible",
        help="token to read: flexible: the text's own last; last: the last column, even if that is padding",
    )  # fmt: skip
    parser.add_argument("--average_embeddings", action="store_true", help="read the mean over a text's tokens instead of one token")
    parser.add_argument(
        "--context_length", type=length_or_name, default="longest_training_example",
        help="texts are cut or padded to it: longest_training_example, model_context_length, or a number",
    )  # fmt: skip
    parser.add_argument("--lora_rank", type=int_at_least(1), default=8, help="rank of the adapters")
    parser.add_argument("--lora_alpha", type=int_at_least(1), default=8, help="the adapters are scaled by alpha / rank")
    parser.add_argument("--no_padding", action="store_true", help="leave texts as long as they are; needs --batch_size 1")
    parser.add_argument("--num_epochs", type=int_at_least(1), default=5, help="passes over the training messages")
    parser.add_argument("--batch_size", type=int_at_least(1), default=8, help="messages per batch")
    parser.add_argument("--accumulation_steps", type=int_at_least(1), default=1, help="batches per update")
    parser.add_argument("--disable_causal_mask", action="store_true", help="let every token see all others")
    parser.add_argument("--ignore_index", type=int, default=-100, help="messages with this label (0: ham, 1: spam) do not count")
    parser.add_argument("--learning_rate", type=positive_float, help="of AdamW; decided by model and layers if not given")
    parser.add_argument("--fast", action="store_true", help="the same in less time: useless columns dropped, frozen blocks computed once")
    parser.add_argument("--max_steps", type=int_at_least(1), help="stop after this many updates")
    parser.add_argument("--eval_freq", type=int_at_least(1), default=50, help="updates from one measurement to the next")
    parser.add_argument("--eval_iter", type=int_at_least(1), default=5, help="batches per measurement")
    parser.add_argument("--models_dir", default=str(MODELS_DIR), help="folder of downloaded weights")
    parser.add_argument("--output_dir", default=str(Path(__file__).resolve().parent / "runs"), help="folder of the split and the result")
    parser.add_argument("--seed", type=int, default=123, help="random seed of split, head and order")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    if args.no_padding and args.batch_size > 1:
        parser.error(f"--no_padding needs --batch_size 1, got {args.batch_size}: texts of unequal length do not fit into one tensor")
    try:
        result = run_experiment(vars(args))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is kept of an unfinished training\n")
    parts = ("train", "validation", "test", "test_without_repeats")
    print(", ".join(f"{part.replace('_', ' ')} accuracy {result[part]['right'] / result[part]['texts']:.2%}" for part in parts))
    print(f"{result['seconds']} seconds, peak memory {result['peak_memory_gb']} GB; saved in {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
