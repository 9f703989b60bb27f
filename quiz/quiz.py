"""A quiz in the terminal: 30 questions for each chapter and appendix that has code.

The questions lie beside this file, one TOML file a chapter. The same to read: chNN.md; in a browser: chNN.html.

Run it:  python quiz/quiz.py 2 --questions 10
"""

import sys

from terminal import main

if __name__ == "__main__":
    sys.exit(main())
