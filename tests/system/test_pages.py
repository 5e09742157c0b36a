"""Pages of the documentation: blocks run, or go through the real parser; quoted messages are in the source."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import types
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import pytest

from mmprefix import world
from mmprefix.cli.main import TRAINING, VERBS, CommandParser, find_recipes, main
from mmprefix.cli.prepare import DATASETS
from mmprefix.cli.spellings import with_known_spellings
from mmprefix.decoders import CausalDecoder
from mmprefix.encoders.text import Text
from mmprefix.encoders.vit import ViT
from mmprefix.inference.predictor import Predictor
from mmprefix.mappers.fusion import Fusion
from mmprefix.mappers.resampler import Resampler
from mmprefix.model import Branch, PrefixLM
from mmprefix.saved_model import ModelSettings
from mmprefix.users import UserStore
from mmprefix.world.generate import make_samples
from tiny import pages
from tiny import whisper as tiny_whisper
from tiny.hub import hub_model
from tiny.models import OPTIONS, frozen_parts
from tiny.texts import save_sentence_encoder
from tiny.user_traces import traces
from tiny.users import picture

ROOT = pages.ROOT
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ELSEWHERE = {  # pages whose blocks other tests run
    "README.md": "system/test_readme.py, system/test_own_photographs.py",
    "CONTRIBUTING.md": "system/test_contributing.py",
    "docs/inside_a_prefix.md": "system/test_inside_a_prefix.py",
    "docs/own_sounds.md": "system/test_readme.py",
    "docs/writing_a_mapper.md": "system/test_contributing.py",
    "docs/writing_an_encoder.md": "system/test_contributing.py",
    "docs/writing_a_decoder.md": "system/test_contributing.py",
    "docs/serving.md": "serving/test_page.py",
    "docs/users.md": "users/test_page.py",
    "docs/personal.md": "distillation/test_page.py",
}
HERE = {
    "docs/methods.md",
    "docs/index.md",
    "docs/install.md",
    "docs/first_caption.md",
    "docs/own_pictures.md",
    "docs/spoken_commands.md",
    "docs/one_users_manner.md",
    "docs/straight_line.md",
    "docs/checkpoints.md",
    "docs/constraints.md",
    "docs/shell.md",
    "docs/reports.md",
    "docs/systems/few_shot.md",
    "docs/systems/prefix_methods.md",
}
SHORT = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Working directory with the quick start's run, and a hub cache with a tiny Whisper under the recipe's name."""
    directory, cache, tiny = (tmp_path_factory.mktemp(name) for name in ("work", "hub", "tiny"))
    hub_model(cache, "openai/whisper-small", Path(tiny_whisper.save_whisper(tiny / "whisper", window=400)))
    shutil.copytree(Path(world.__file__).parent / "trained", directory / "runs" / "quickstart" / "model")
    make_samples(directory / "runs" / "quickstart" / "samples")
    shutil.copytree(directory / "runs" / "quickstart" / "samples", directory / "sounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield directory


def run_shell(page: str) -> None:
    """Run every marked block of the shell of ``page``, in order."""
    for one in pages.blocks(page):
        if one.mark == "run" and one.language == "bash":
            pages.run(one.text, fit=SHORT)


def test_the_first_pages_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages.execute("docs/index.md")
    for page in ("docs/install.md", "docs/shell.md", "docs/systems/prefix_methods.md"):
        run_shell(page)
    assert pages.execute("docs/systems/prefix_methods.md")["text"]
    pages.run(pages.block("docs/own_pictures.md", "evaluate"))
    pages.run(pages.block("docs/inside_a_prefix.md", "shell"))
    assert (workplace / "maps").is_dir()
    capsys.readouterr()
    run_shell("docs/first_caption.md")
    (shown,) = [one.text for one in pages.blocks("docs/first_caption.md") if one.language == "text"]
    assert capsys.readouterr().out.startswith(shown)
    pages.execute("docs/first_caption.md")


def test_the_straight_line_runs(workplace: Path) -> None:
    names = pages.execute("docs/straight_line.md")
    assert names["loss"].item() > 0


def test_few_shots_are_learned() -> None:
    names = pages.execute("docs/systems/few_shot.md")
    assert names["best"].val > 0.5


def test_constraints_are_given_and_kept(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_shell("docs/constraints.md")
    assert "followed by" in capsys.readouterr().out
    pages.execute("docs/constraints.md")
    assert "\nfirst a" in capsys.readouterr().out


def test_checkpoints_are_written_packed_and_read(workplace: Path) -> None:
    pages.execute("docs/checkpoints.md")
    assert (workplace / "shapes" / "README.md").is_file()
    assert (workplace / "packed" / "mmprefix.yaml").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spoken_commands_are_trained_and_understood(workplace: Path) -> None:
    run_shell("docs/spoken_commands.md")
    names = pages.execute("docs/spoken_commands.md")
    assert names["meaning"]["intent"] in ("light_on", "light_off")
    assert (workplace / "test_asr.jsonl").read_text().count("\n") == 1


def test_a_user_is_written_for_and_forgotten(workplace: Path, tmp_path: Path) -> None:
    parts = frozen_parts(tmp_path)
    history = Text(str(save_sentence_encoder(tmp_path / "sentences")))
    mapper = partial(Fusion, mapper=partial(Resampler, length=2, heads=2), heads=4, hidden=16, layers=1)
    branches = {"image": Branch(ViT(str(parts["image"])), mapper, "history"), "history": Branch(history)}
    model = PrefixLM(branches, CausalDecoder(str(parts["decoder"])))
    Predictor(model, ModelSettings(OPTIONS)).save("runs/uapt_synth/model")
    picture().save("photo.jpg")
    shell = [
        one.text for one in pages.blocks("docs/one_users_manner.md") if one.mark == "run" and one.language == "bash"
    ]
    *before, remove = shell
    for text in before:
        pages.run(text)
    pages.execute("docs/one_users_manner.md")
    pages.run(remove)
    with UserStore("users.db") as store:
        assert len(store) == 1
    assert traces(Path("users.db"), ["log: a dog on a beach [5]", "log: two boats [4]"]) == []


def test_every_block_is_run_or_parsed() -> None:
    """Each block of the shell or Python says that it runs, or why not; ELSEWHERE and HERE say in which tests."""
    every = [one for page in pages.pages() for one in pages.blocks(page)]
    assert len(every) > 60
    silent = [(one.page, one.text) for one in every if one.language in ("bash", "python") and not one.mark]
    assert silent == []
    assert {one.mark for one in every} <= {"", "run", "parsed", "quickstart", "test"}
    assert [one.page for one in every if one.mark == "parsed" and len(one.name) < 10] == []
    assert {one.page for one in every if one.mark == "run"} - HERE == set(ELSEWHERE)
    for page, tests in ELSEWHERE.items():
        assert all((ROOT / "tests" / name).is_file() for name in tests.split(", ")), page


def commands() -> dict[tuple[str, ...], str]:
    """Commands of all pages by their words, each with the page that has it first."""
    by_words: dict[tuple[str, ...], str] = {}
    for page in pages.pages():
        for one in pages.blocks(page):
            if one.language in ("bash", ""):
                for statement in pages.statements(one.text):
                    if words := tuple(word for word in pages.words_of(statement) if word != "..."):
                        by_words.setdefault(words, page)
    return by_words


def test_programs_that_pages_name_exist() -> None:
    programs = {words[1:3]: page for words, page in commands().items() if words[0] == "python"}
    assert len(programs) > 10
    for (first, second), page in programs.items():
        module = second.replace(".", "/") + ".py" if first == "-m" else first
        assert first == "-c" or (ROOT / module).is_file() or (ROOT / module[:-3] / "__main__.py").is_file(), (
            page,
            module,
        )


def test_options_of_verbs_are_known_to_their_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    checked = 0
    for words, page in commands().items():
        if words[0] != "mmprefix" or words[1] in TRAINING or words[1].startswith("-") or "--help" in words:
            continue
        verb, rest = words[1], list(words[2:])
        if verb == "prepare" and rest[0] in DATASETS:
            options = _options_of_program(rest[0])
            assert {word for word in rest if word.startswith("--")} <= options, (page, words)
        else:
            module = importlib.import_module(VERBS[verb][0])
            parser = CommandParser(f"mmprefix {verb}", allow_abbrev=False)
            module.add_arguments(parser)
            parser.parse_args(with_known_spellings(rest, parser.known_options()))
        checked += 1
    assert checked > 40


@cache
def _options_of_program(name: str) -> set[str]:
    """Options that ``mmprefix prepare NAME --help`` lists."""
    module = importlib.import_module(f"mmprefix.recipes.prepare.{DATASETS[name]}")
    text = "".join(Path(file).read_text() for file in _sources(module))
    return set(re.findall(r"\"(--[\w-]+)\"", text))


def _sources(module: types.ModuleType) -> Iterator[str]:
    """File of ``module``, and of its neighbours that it imports."""
    yield str(module.__file__)
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", "")
        if str(name).startswith("mmprefix.recipes"):
            yield str(importlib.import_module(str(name)).__file__)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_options_of_recipes_are_known_to_their_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    """Training commands whose recipe is shipped are parsed and not run: all options of a recipe's at once."""
    options: dict[tuple[str, str], dict[str, str]] = {}
    for words in commands():
        if words[0] != "mmprefix" or words[1] not in TRAINING or "--config" not in words:
            continue
        recipe = words[words.index("--config") + 1]
        if recipe != "my_recipe.yaml":
            find_recipes(["--config", recipe])  # it is shipped
            options.setdefault((words[1], recipe), {}).update(_options(words))
    assert len(options) > 10
    for (verb, recipe), values in options.items():
        more = [word for option, value in values.items() for word in (option, value) if word]
        assert main([verb, "--config", recipe, *more, "--print_config"]) == 0, (recipe, more)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options of a command but ``--config``, each with its value ("" for a switch)."""
    for place, word in enumerate(words):
        if word.startswith("--") and word != "--config":
            value = next(iter(words[place + 1 :]), "")
            yield word, "" if value.startswith("--") else value


@cache
def templates() -> list[str]:
    """Texts and f-strings of the package but docstrings, with a NUL for each value in them."""
    texts: list[str] = []
    for file in (file for folder in ("mmprefix", "encoders", "mappers") for file in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                texts.append(node.value)
    return [text for text in texts if len(text) > 8]


def quoted_messages() -> list[str]:
    """Messages in the first cells of the page's tables."""
    return re.findall(r"^\| `([^`]+)` \|", TROUBLES, re.MULTILINE)


def test_the_page_tells_of_many_messages() -> None:
    assert len(quoted_messages()) >= 25


@pytest.mark.parametrize("message", quoted_messages())
def test_a_message_of_the_page_is_in_the_source(message: str) -> None:
    assert len(message.replace("…", "")) >= 10
    pattern = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
    assert any(pattern.search(text) for text in templates())
