"""What does a window cost? Train a full model and two with windows on the story, three seeds each.

Run it:  python compare_swa.py        some minutes; it writes story-comparison.json and story-comparison.png
"""

import sys

from gpt_with_kv_mha import GPTModel as FullModel
from gpt_with_kv_swa import GPTModel
from previous_chapters import run_comparison


def windowed(window: int, stride: int):
    """Builds models whose sliding layers see `window` characters; stride as in the configuration's sliding_window_stride."""
    return lambda cfg: GPTModel({**cfg, "sliding_window_size": window, "sliding_window_stride": stride})


BUILDERS = {
    "all layers full": FullModel,
    "3 sliding (W = 16), 1 full": windowed(16, 3),
    "all sliding, W = 16": windowed(16, -1),
}


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    title = "Story: what windows cost"
    return run_comparison("Train a GPT with and without sliding windows on the story, side by side.", BUILDERS, title, argv)


if __name__ == "__main__":
    sys.exit(main())
