"""The whole course in one run: a GPT learns a story, a pretrained one writes, finds spam, and learns to answer.

Each stage says what it does and why, trains with the loops and settings of its chapter, and measures what came out; the last
lets two larger models answer the same questions. Stopped anywhere, the same command goes on.

Run it:  python the_whole_story.py                                        (five to ten minutes on two cores; make run in the root)
         python the_whole_story.py --story_model 124M --output_dir big    (chapter 4's model of 124M learns the story: longer)
"""

import re
import sys
from functools import partial
from pathlib import Path

import torch
from answering import follow_instructions, let_larger_models_answer, read_questions
from classifier import spam_package_file
from llama import find_smollm2
from previous_chapters import MODELS_DIR, RUNS, OneLineParser, find_mini, gpt2_tokenizer, pick_device
from run_folder import RunFolder
from stages import ENOUGH, Plan, find_spam, learn_story, let_mini_write, make_plan

FOLDER = Path(__file__).resolve().parent
STAGES = {
    "story": (
        "A GPT learns a story (chapter 5)",
        "Its weights are random numbers. It reads one short story, and at each token corrects what it would have said next,\n"
        f"pass after pass, until the mean loss of a token is below {ENOUGH}.",
        learn_story,
    ),
    "mini": (
        "A pretrained GPT writes (chapter 5)",
        "One story is too little to learn English from. gpt2-mini has read 9.8 million tokens of tales; this one is new.",
        let_mini_write,
    ),
    "spam": (
        "It learns to find spam (chapter 6)",
        "A model that knows words needs few examples: gpt2-mini gets a head with two outputs, and some labeled messages.",
        find_spam,
    ),
    "instructions": (
        "It learns to answer (chapter 7)",
        "Asked something, a model that continues texts talks on. Instructions with their answers teach it to reply.",
        follow_instructions,
    ),
    "larger": (
        "Larger models answer the same questions (chapters 5 and 7)",
        "What gpt2-mini lacks is size and reading. The same code holds real models that have both.",
        let_larger_models_answer,
    ),
}


def table_lines(run: RunFolder) -> list[str]:
    """The table of the finished stages: a line for each model, its columns aligned."""
    rows = [["model", "parameters", "tokens read", "minutes", "what it can do"]]
    for stage in STAGES:
        for number, (model, parameters, tokens, can) in enumerate(run.results[stage]["rows"]):
            minutes = f"{run.seconds[stage] / 60:.1f}" if number == 0 else "-"  # a second row of a stage was not computed here
            rows.append([model, f"{parameters:,}", tokens, minutes, can])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [f"{row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}".rstrip() for row in rows]


def find_everything(plan: Plan) -> None:
    """Raise ValueError or OSError in one line if weights or data are missing: better now than after minutes of training."""
    if plan.pretrained:
        find_mini(MODELS_DIR)
    spam_package_file()
    find_smollm2()
    gpt2_tokenizer()
    read_questions()


def tell(run: RunFolder, plan: Plan, device: torch.device) -> None:
    """Go through the stages, each once for all, and print the table."""
    if all(stage in run.results for stage in STAGES):
        print(f"All is done and lies in {run.folder}; --overwrite (with make: FRESH=1) starts anew.")
    else:
        for number, (stage, (title, why, work)) in enumerate(STAGES.items(), 1):
            print(f"\n{number} of {len(STAGES)}  {title}" + (": done before" if stage in run.results else f"\n{why}"), flush=True)
            run.do(stage, partial(work, run, plan, device))
    print("", *table_lines(run), sep="\n")
    print(f"\n{sum(run.seconds.values()) / 60:.1f} minutes in all. Weights and logs are in {run.folder}.")


def command_line(argv: list[str] | None = None) -> int:
    """Parse the options and tell the story; returns 0, or exits with code 2 and one line on bad input."""
    parser = OneLineParser("The whole course in one run; stopped anywhere, the same command goes on.")
    parser.add_argument("--story_model", choices=RUNS, default="story", help="the model that learns the story")
    parser.add_argument("--output_dir", default=str(FOLDER / "whole-story"), help="folder for all results")
    parser.add_argument("--overwrite", action="store_true", help="start again, whatever is finished in output_dir")
    parser.add_argument("--test_mode", action="store_true", help="tiny random models and few data, to see that all runs")
    parser.add_argument("--seed", type=int, default=123, help="random seed")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    plan = make_plan(args.story_model, args.seed, args.test_mode)
    try:
        device = pick_device(args.device)
        find_everything(plan)
        settings = {"story_model": args.story_model, "seed": args.seed, "test_mode": args.test_mode}
        tell(RunFolder(args.output_dir, settings, args.overwrite), plan, device)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except RuntimeError as error:
        if not re.search("PytorchStreamWriter|inline_container", str(error)):  # torch.save, when the disk is full
            raise
        parser.error(f"cannot write to {args.output_dir}: is the disk full? The same command goes on from what is there")
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on after the last finished pass\n")
    return 0


if __name__ == "__main__":
    sys.exit(command_line())
