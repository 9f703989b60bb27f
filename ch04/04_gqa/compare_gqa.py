"""Does sharing keys and values cost anything? Train MHA, GQA and MQA on the story, three seeds each (some minutes).

Run it:  python compare_gqa.py --draw_only        reads the committed story-comparison.json
"""

import sys

from gpt_with_kv_gqa import GPTModel
from story_comparison import run_comparison

BUILDERS = {
    "MHA, 4 key-value heads": lambda cfg: GPTModel({**cfg, "n_kv_groups": 4}),
    "GQA, 2 key-value heads": lambda cfg: GPTModel({**cfg, "n_kv_groups": 2}),
    "MQA, 1 key-value head": lambda cfg: GPTModel({**cfg, "n_kv_groups": 1}),
}


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    title = "Story, 4 heads: fewer key-value heads, same training"
    return run_comparison("Train MHA, GQA and MQA on the story, side by side.", BUILDERS, title, argv)


if __name__ == "__main__":
    sys.exit(main())
