"""Save and load: a moved directory, moved frozen parts, overwriting, device and dtype, the model hub."""

from __future__ import annotations

import inspect
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

import mmprefix
from mmprefix import InputError, Predictor
from mmprefix.decoders.causal import CausalDecoder
from mmprefix.generation.options import GenerateOptions
from mmprefix.mappers.learned import Learned
from mmprefix.model import PrefixLM
from mmprefix.saved_model import ModelSettings, TrainingRecord
from tiny import decoders as tiny_decoders
from tiny import encoders as tiny_encoders
from tiny import models as tiny_models
from tiny.captioning_system import CaptioningSystem
from tiny.models import assert_same_candidates

# ------------------------------------------------------------------------------------------------------ save and load


def test_a_moved_directory_loads_the_same_model(
    model: Predictor, saved: dict[str, Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.candidates(files)
    model.save(tmp_path / "again")
    assert (tmp_path / "again" / "mmprefix.yaml").read_text() == (saved["both"] / "mmprefix.yaml").read_text()
    shutil.move(tmp_path / "again", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "elsewhere", "elsewhere", "./elsewhere"):
        assert_same_candidates(mmprefix.load(folder, device="cpu").candidates(files), expected, 1e-6)


def test_settings_and_card_survive_saving_again(parts: dict[str, Path], files: list[Path], tmp_path: Path) -> None:
    own = GenerateOptions(max_new_tokens=5, num_beams=3, length_penalty=0.5)
    settings = ModelSettings(own, "a dog", TrainingRecord(["x.jsonl"], figures={"cider_d": 1.5}))
    first = Predictor(tiny_models.build_model(parts, "audio"), settings)
    first.save(tmp_path / "m")
    for _ in range(2):  # loaded, saved over itself, and loaded again
        again = mmprefix.load(tmp_path / "m", device="cpu")
        assert again.settings == settings
        assert again(files[0]) == first(files[0]) == first(files[0], prompt="a dog") != first(files[0], prompt="")
        card = (tmp_path / "m" / "README.md").read_text()
        assert "| cider_d | 1.5000 |" in card
        assert "num_beams=3" in card
        assert "x.jsonl" in card
        assert {file.name for file in (tmp_path / "m").iterdir()} == {"mmprefix.yaml", "model.safetensors", "README.md"}
        again.save(tmp_path / "m")
    assert [file.name for file in tmp_path.iterdir()] == ["m"]  # nothing temporary is left


def test_saving_replaces_a_model_and_nothing_else(model: Predictor, saved: dict[str, Path], tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    model.save(foreign)  # an empty folder is free
    mmprefix.load(saved["audio"], device="cpu").save(foreign)
    assert list(mmprefix.load(foreign, device="cpu").model.encoders) == ["audio"]
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("rain")
    with pytest.raises(InputError, match="diary: is not empty and no saved model"):
        model.save(tmp_path / "diary")
    assert (tmp_path / "diary" / "monday.txt").read_text() == "rain"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file"):
        model.save(tmp_path / "file")


def test_moved_frozen_parts_are_given_by_name(
    parts: dict[str, Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMPREFIX_CACHE", str(tmp_path / "cache"))  # no other copy is remembered
    copied = {name: shutil.copytree(folder, tmp_path / "first" / name) for name, folder in parts.items()}
    directory = tiny_models.save_model(tmp_path / "m", copied, "image", "audio")
    expected = mmprefix.load(directory, device="cpu")(files)
    (tmp_path / "first").rename(tmp_path / "second")
    moved = {name: str(tmp_path / "second" / name) for name in parts}
    for left in ("image", "audio", "decoder"):
        others = {name: folder for name, folder in moved.items() if name != left}
        with pytest.raises(InputError) as error:
            mmprefix.load(directory, parts=others)
        part = "decoder" if left == "decoder" else f"encoder of branch '{left}'"
        assert f"the {part} is not at {tmp_path}/first/{left}" in str(error.value)
        assert f"--part {left}=PLACE in the shell, parts={{'{left}': PLACE}} in Python" in str(error.value)
    again = mmprefix.load(directory, device="cpu", parts=moved)
    assert again(files) == expected
    again.save(tmp_path / "n")  # with the new folders in its recipe
    assert mmprefix.load(tmp_path / "n", device="cpu")(files) == expected
    with pytest.raises(InputError, match="part 'ear': this model has image, audio, decoder"):
        mmprefix.load(directory, parts={"ear": "x"})
    with pytest.raises(InputError, match=f"{tmp_path}/third"):
        mmprefix.load(directory, parts={**moved, "decoder": str(tmp_path / "third")})


def test_other_weights_are_refused_by_name(saved: dict[str, Path], parts: dict[str, Path], tmp_path: Path) -> None:
    other = tiny_decoders.save_decoder(tmp_path / "other", seed=5)
    with pytest.raises(InputError) as error:
        mmprefix.load(saved["audio"], parts={"decoder": other})
    assert f"was trained with the decoder '{parts['decoder'].name}' (sha256" in str(error.value)
    assert f"this one is '{other}'" in str(error.value)
    ear = tiny_encoders.save_whisper(tmp_path / "ear")
    tensors = load_file(ear / "model.safetensors")
    save_file({k: v + 0.01 for k, v in tensors.items()}, ear / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="was trained with the encoder of branch 'audio'"):
        mmprefix.load(saved["audio"], parts={"audio": str(ear)})


def test_directories_that_are_no_saved_model_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: |'.*none': no such folder"):
        mmprefix.load(tmp_path / "none")
    with pytest.raises(InputError, match="is no saved model"):
        mmprefix.load(tmp_path)
    broken = Path(shutil.copytree(saved["audio"], tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:100])
    with pytest.raises(InputError, match=r"model.safetensors: cannot be read"):
        mmprefix.load(broken)
    data = yaml.safe_load((broken / "mmprefix.yaml").read_text())
    for text, message in (
        ("a: [", "not YAML"),
        ("[]", "is not of format 1"),
        (yaml.safe_dump({**data, "format": 99}), "is not of format 1"),
        (yaml.safe_dump({"format": 1}), "has no recipe"),
        (yaml.safe_dump({**data, "recipe": {"branches": {"audio": None}}}), "lacks branches"),
    ):
        (broken / "mmprefix.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            mmprefix.load(broken)


def test_an_untrusted_recipe_calls_no_class_but_parts(saved: dict[str, Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved["audio"], tmp_path / "m"))
    data = yaml.safe_load((directory / "mmprefix.yaml").read_text())
    data["recipe"]["decoder"] = {"class_path": "pathlib.Path.touch", "init_args": {"model": str(tmp_path / "pwned")}}
    (directory / "mmprefix.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError):
        mmprefix.load(directory)
    data["recipe"]["decoder"] = {
        "class_path": "subprocess.Popen",
        "init_args": {"args": ["touch", f"{tmp_path}/pwned"]},
    }
    (directory / "mmprefix.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"'subprocess\.Popen': not imported"):
        mmprefix.load(directory)
    assert not (tmp_path / "pwned").exists()


# -------------------------------------------------------------------------------------------------- device and dtype


def test_bfloat16_runs_and_stays_close(
    model: Predictor, saved: dict[str, Path], files: list[Path], tmp_path: Path
) -> None:
    small = mmprefix.load(saved["both"], device="cpu", dtype="bfloat16")
    assert small.model.decoder.lm.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert all(p.dtype == torch.float32 for p in small.model.mappers.parameters())
    texts = ["a dog barks"] * len(files)
    scores, exact = small.score(files, texts), model.score(files, texts)
    assert scores == pytest.approx(exact, rel=0.03)
    assert scores != exact
    assert all(isinstance(text, str) for text in small(files))
    small.save(tmp_path / "m")  # the dtype of a run is not saved
    assert (tmp_path / "m" / "mmprefix.yaml").read_text() == (saved["both"] / "mmprefix.yaml").read_text()


def test_to_changes_the_type_of_a_loaded_model(saved: dict[str, Path], model: Predictor, files: list[Path]) -> None:
    other = mmprefix.load(saved["both"], device="cpu")
    assert other.to("cpu") is other
    assert other.device == torch.device("cpu")
    other.to(dtype=torch.bfloat16)
    assert other.model.encoder("audio").network.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert isinstance(other(files[0]), str)
    with pytest.raises(InputError, match="device 'nowhere'"):
        other.to("nowhere")


# --------------------------------------------------------------------------------------------------------- model hub


def test_push_to_hub_uploads_the_saved_directory(
    model: Predictor, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hub calls recorded instead of sent: each is bound to the real method's signature, and its folder is read."""
    calls: list[tuple[str, dict[str, Any]]] = []
    sent: dict[str, bytes] = {}

    def recorder(name: str) -> Any:
        signature = inspect.signature(getattr(HfApi, name))

        def call(self: HfApi, *args: Any, **kwargs: Any) -> str:
            arguments = signature.bind(self, *args, **kwargs).arguments
            calls.append((name, {k: v for k, v in arguments.items() if k != "self"}))
            if name == "upload_folder":
                sent.update({file.name: file.read_bytes() for file in Path(arguments["folder_path"]).iterdir()})
            return "https://hub.invalid/me/ears"

        return call

    for name in ("create_repo", "upload_folder"):
        monkeypatch.setattr(HfApi, name, recorder(name))
    assert model.push_to_hub("me/ears", private=True) == "https://hub.invalid/me/ears"
    assert [name for name, _ in calls] == ["create_repo", "upload_folder"]
    assert calls[0][1] == {"repo_id": "me/ears", "private": True, "exist_ok": True}
    assert calls[1][1]["repo_id"] == "me/ears"
    assert not Path(calls[1][1]["folder_path"]).exists()  # the temporary copy is gone
    assert sent == {file.name: file.read_bytes() for file in saved["both"].iterdir()}
    assert sent["README.md"].startswith(b"---\nlibrary_name: mmprefix\n")


def snapshot(hub: Path, name: str, commit: str, folder: Path) -> Path:
    """Copy ``folder`` into the cache ``hub`` as ``commit`` of OWNER/NAME; return the folder of the snapshot."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot_folder = repository / "snapshots" / commit
    snapshot_folder.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for file in folder.iterdir():
        blob = repository / "blobs" / f"{commit[:8]}-{file.name}"
        shutil.copy(file, blob)
        (snapshot_folder / file.name).symlink_to(os.path.relpath(blob, snapshot_folder))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot_folder


def test_a_model_is_loaded_from_the_hub_cache_by_commit(
    parts: dict[str, Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main branch of the decoder moves on; the model still loads the commit that it was saved with."""
    hub = tmp_path / "home" / "hub"
    first, later, own = ("a1" * 20, "b2" * 20, "c3" * 20)
    snapshot(hub, "someone/tongue", first, parts["decoder"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    directory = tiny_models.save_model(tmp_path / "m", parts, "audio")
    expected = mmprefix.load(directory, device="cpu")(files[0])
    data = yaml.safe_load((directory / "mmprefix.yaml").read_text())
    data["recipe"]["decoder"]["init_args"] |= {"model": "someone/tongue", "revision": first}
    (directory / "mmprefix.yaml").write_text(yaml.safe_dump(data))
    snapshot(hub, "someone/ears", own, directory)
    other = Path(tiny_decoders.save_decoder(tmp_path / "other", seed=9))
    snapshot(hub, "someone/tongue", later, other)
    model = mmprefix.load("someone/ears", device="cpu")
    assert model(files[0]) == expected
    decoder = model.model.decoder
    assert isinstance(decoder, CausalDecoder)
    assert decoder.identity.revision == first
    model.save(tmp_path / "again")
    saved = yaml.safe_load((tmp_path / "again" / "mmprefix.yaml").read_text())["recipe"]["decoder"]["init_args"]
    assert (saved["model"], saved["revision"]) == ("someone/tongue", first)
    with pytest.raises(InputError, match="'someone/nothing' is no folder here, and the model hub did not give it"):
        mmprefix.load("someone/nothing")


def test_a_model_s_own_module_runs_only_if_allowed(
    tiny: CaptioningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module beside a stranger's model, in the working folder of a notebook, is not imported."""
    (tmp_path / "payload.py").write_text(
        "from mmprefix.mappers.learned import Learned\nopen('ran', 'w').close()\n\nclass Mine(Learned):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    decoder = CausalDecoder(tiny.path("decoder"))
    Predictor(PrefixLM({}, decoder, partial(Learned, length=2)), ModelSettings()).save("model")
    recipe = Path("model/mmprefix.yaml")
    recipe.write_text(recipe.read_text().replace("mmprefix.mappers.learned.Learned", "payload.Mine"))
    with pytest.raises(InputError, match=r"class_path 'payload.Mine': not imported.*--allow payload"):
        mmprefix.load("model", device="cpu")
    assert not Path("ran").exists()
    mmprefix.load("model", device="cpu", allow=["payload"])
    assert Path("ran").exists()
