"""Parser of recipes: YAML with class names and class paths of earlier versions, and one-line errors."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from mmprefix.cli.class_names import with_class_paths
from mmprefix.cli.training.recipe_errors import explain
from mmprefix.errors import InputError
from mmprefix.parts import with_current_names

_load_yaml = get_loader("yaml")
set_loader("yaml", lambda text: with_class_paths(with_current_names(_load_yaml(text))), exceptions=(yaml.YAMLError,))
_Dumper = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper  # libyaml writes eight times as fast
set_dumper("yaml", lambda data: yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class RecipeParser(LightningArgumentParser):
    """Parser of recipes; its errors are one plain line that names the option and the nearest valid one."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise InputError(explain(message, self)) from ex
