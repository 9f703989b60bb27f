"""Does a state of fixed size cost anything? Train full attention, a 3:1 mix and gated DeltaNet on the story, three seeds each.

Run it:  python compare_deltanet.py --draw_only        reads the committed story-comparison.json
"""

import sys

from gated_deltanet import GPTModel
from previous_chapters import run_comparison

BUILDERS = {
    "full attention": lambda cfg: GPTModel({**cfg, "deltanet_stride": 0}),
    "3 DeltaNet, 1 full": lambda cfg: GPTModel({**cfg, "deltanet_stride": 3}),
    "DeltaNet only": lambda cfg: GPTModel({**cfg, "deltanet_stride": -1}),
}


def main(argv: list[str] | None = None) -> int:
    """Command line of this file; returns 0, or exits with code 2 and one line on bad input."""
    title = "Story, 4 layers: a state in place of keys and values"
    return run_comparison("Train full attention, a mix and gated DeltaNet on the story, side by side.", BUILDERS, title, argv)


if __name__ == "__main__":
    sys.exit(main())
