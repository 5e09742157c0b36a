"""``mmprefix completion bash | zsh | fish``: a script that completes verbs, options, their values and recipes.

The script holds all words itself: a shell that completes starts no Python.
"""

from __future__ import annotations

import argparse
import sys

from mmprefix.cli.system import bash_completion, fish_completion, zsh_completion
from mmprefix.cli.system.completion_words import all_words
from mmprefix.cli.system.shipped import recipe_names

SHELLS = {"bash": bash_completion.script, "zsh": zsh_completion.script, "fish": fish_completion.script}
_ADVICE = """\
where it goes:
  bash  mmprefix completion bash > ~/.local/share/bash-completion/completions/mmprefix
        or, in ~/.bashrc: source <(mmprefix completion bash)
  zsh   mmprefix completion zsh > DIR/_mmprefix, where DIR is in fpath before compinit runs
        or, in ~/.zshrc behind compinit: source <(mmprefix completion zsh)
  fish  mmprefix completion fish > ~/.config/fish/completions/mmprefix.fish
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The argument of the verb."""
    parser.add_argument("shell", choices=tuple(SHELLS), help="shell that the script is for")
    parser.epilog = f"{_ADVICE}\n{parser.epilog or ''}"


def run(args: argparse.Namespace) -> int:
    """Print the script; returns the exit code 0."""
    sys.stdout.write(SHELLS[args.shell](all_words(), recipe_names()))
    return 0
