"""``mmprefix fit | validate | test | predict | encode``: one run of the Lightning CLI."""

from __future__ import annotations

import errno
import logging
import re
import sys
import warnings
from pathlib import Path

from jsonargparse import set_parsing_settings

from mmprefix.cli.training.console import library_messages_to_file, split_verbose
from mmprefix.cli.training.encode import EncodeCLI
from mmprefix.cli.training.lightning_cli import PrefixCLI
from mmprefix.cli.training.recipe_errors import recipes_of
from mmprefix.cli.training.recipe_parser import RecipeParser
from mmprefix.cli.training.run_folder import share_with_processes
from mmprefix.cli.training.run_logs import quiet_writer_threads
from mmprefix.cli.training.run_options import TRAINER_DEFAULTS
from mmprefix.cli.training.saved_recipe import recipe_words, split_model
from mmprefix.errors import InputError
from mmprefix.trust.modules import allow_modules, allowed_modules

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SWITCHES = ("--dry_run", "--no_report", "--overwrite", "--pack", "--test_after_fit")


def train(words: list[str], runs: type[PrefixCLI] | None = None) -> int:
    """Run ``words``, a verb (fit, validate, test, predict or encode) and its options; returns the exit code.

    ``runs`` is the class of the run, by default that of the verb.
    """
    quiet()
    verbose, words = split_verbose(words)
    modules, words = split_allowed(media_root_as_option(switches_as_options(words)))
    with library_messages_to_file(verbose), allow_modules(modules), quiet_writer_threads():
        if modules:  # a module beside the recipe is found too
            sys.path += [str(Path(file).resolve().parent) for file in recipes_of(words[1:])]
        restrict_imports()
        model, words = split_model(words) if words[0] in ("predict", "validate", "test") else (None, words)
        if model is None:
            return _train(words, modules, runs or (EncodeCLI if words[0] == "encode" else PrefixCLI))

        class OfSavedModel(PrefixCLI):
            saved_model = model

        with recipe_words(model, words) as replaced:
            return _train(replaced, modules, OfSavedModel)


def _train(words: list[str], modules: list[str], runs: type[PrefixCLI]) -> int:
    verb = "fit" if words[0] == "encode" else words[0]
    others = [verb, *words[1:], *(f"--allow={module}" for module in modules)]  # words of a training's other processes
    kept, sys.argv = sys.argv, [sys.argv[0], *others]
    try:
        runs(
            verb,
            parser_class=RecipeParser,
            args=words[1:],
            save_config_callback=None,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            auto_configure_optimizers=False,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": f"mmprefix {words[0]}",
                "usage": f"mmprefix {words[0]} RECIPE.yaml [--OPTION VALUE ...]",
                "default_config_files": [],
            },
        )
    except SystemExit as stop:
        return int(stop.code or 0)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = error.filename or "a file of the run"
        raise InputError(f"{place}: could not be written ({error.strerror})") from error
    finally:
        sys.argv = kept
        share_with_processes(None)
    return 0


def split_allowed(words: list[str]) -> tuple[list[str], list[str]]:
    """Modules that ``--allow MODULE`` names, and the other ``words``. Raises InputError for a missing name."""
    modules: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        flag, equals, name = word.partition("=")
        if flag != "--allow":
            others.append(word)
            continue
        name = name if equals else next(rest, "")
        if not name or name.startswith("-"):
            raise InputError("--allow: give the name of a module")
        modules.append(name)
    return modules, others


_trusted_before: set[str] = set()  # jsonargparse keeps its rules for the whole process


def restrict_imports() -> None:
    """Make jsonargparse refuse class paths, and functions, outside the allowed modules before it imports them."""
    allowed = {name for name in allowed_modules() if all(part.isidentifier() for part in name.split("."))}
    programs = "mmprefix.__main__"  # its import runs the command line
    set_parsing_settings(import_path_denylist=["*", programs, *sorted(_trusted_before - allowed)])
    set_parsing_settings(import_path_allowlist=sorted(allowed))
    _trusted_before.update(allowed)


def media_root_as_option(words: list[str]) -> list[str]:
    """``words`` with ``--media-root``, as all verbs have it, as the option of a recipe's data."""
    return [re.sub(r"^--media[-_]root(?=$|=)", "--data.media_root", word) for word in words]


def switches_as_options(words: list[str]) -> list[str]:
    """``words`` with --dry-run, --overwrite ... in the parser's spelling, set to true where no value follows."""
    spelled = {name.replace("_", "-"): name for name in SWITCHES}
    replaced = list[str]()
    for word in words:
        flag, equals, value = word.partition("=")
        replaced.append(spelled.get(flag, flag) + equals + value)
    for at, (word, follower) in enumerate(zip(replaced, [*replaced[1:], "--"], strict=True)):
        if word in SWITCHES and follower.startswith("-"):
            replaced[at] = f"{word}=true"
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
