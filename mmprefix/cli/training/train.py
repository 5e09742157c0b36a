"""``mmprefix fit | validate | test | predict | encode``: one run of the Lightning CLI."""

from __future__ import annotations

import logging
import re
import sys
import warnings

from mmprefix.cli.training.encode import EncodeCLI
from mmprefix.cli.training.lightning_cli import PrefixCLI, RecipeParser, qualified_name
from mmprefix.data.pairs import PairData
from mmprefix.training.checkpoint_io import AtomicCheckpointIO
from mmprefix.training.task import PrefixTask


def train(words: list[str]) -> int:
    """Run ``words``, a verb (fit, validate, test, predict or encode) and its options; returns the exit code."""
    quiet()
    words = dry_run_as_flag(words)
    runs: type[PrefixCLI] = PrefixCLI
    if words[0] == "encode":
        runs, words = EncodeCLI, ["fit", *words[1:]]
    kept, sys.argv = sys.argv, [sys.argv[0], *words]  # Lightning starts its other processes with these words
    try:
        runs(
            PrefixTask,
            PairData,
            subclass_mode_data=True,
            parser_class=RecipeParser,
            args=words,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "plugins": [{"class_path": qualified_name(AtomicCheckpointIO)}],
                "use_distributed_sampler": False,
            },
            auto_configure_optimizers=False,
            parser_kwargs={"allow_abbrev": False}
            | {verb: {"default_config_files": []} for verb in PrefixCLI.subcommands()},
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = kept
    return 0


def dry_run_as_flag(words: list[str]) -> list[str]:
    """``words`` with ``--dry-run`` in the parser's spelling, set to true where no value follows."""
    replaced = [re.sub(r"^--dry-run(?=$|=)", "--dry_run", word) for word in words]
    for at, (word, follower) in enumerate(zip(replaced, [*replaced[1:], "--"], strict=True)):
        if word == "--dry_run" and follower.startswith("-"):
            replaced[at] = "--dry_run=true"
    return replaced


def quiet() -> None:
    """Silence messages of Lightning, PyTorch and Transformers about intended behaviour."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    for message in (
        ".*in eval mode at the start of training",
        ".*LeafSpec",
        ".*does not have many workers",
        ".*No seed found",
        ".*sync_dist=True",  # metrics are already reduced over all processes
        ".*LightningCLI's args parameter is intended",
    ):
        warnings.filterwarnings("ignore", message=message)
