"""Sources of frozen weights (folder, package, hub), and the hash that identifies them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mmprefix.decoders.causal import CausalDecoder
from mmprefix.errors import InputError
from mmprefix.weights import source as sources
from tiny import decoders as tiny_decoders


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Cache of the model hub on disk; the network is not used."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_folder_may_be_absolute_relative_or_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "own").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "models/own"), "models/own", "./models/own", "~/models/own"):
        assert sources.resolve_folder(name) == tmp_path / "models" / "own"


def test_models_inside_the_package() -> None:
    assert (sources.resolve_folder("mmprefix:world") / "scenes.py").is_file()
    with pytest.raises(InputError, match="'mmprefix:world/frozen/nose': this package holds no such model"):
        sources.resolve_folder("mmprefix:world/frozen/nose")


def test_models_in_the_folder_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_decoders.save_decoder(tmp_path / "tongue")
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path))
    assert sources.resolve_folder("models:tongue") == tmp_path / "tongue"
    decoder = CausalDecoder("models:tongue")
    assert decoder.identity.source == "models:tongue"  # no path of this machine
    assert sources.settings(decoder.identity)
    with pytest.raises(InputError, match=r"'models:ear': no such folder .*ear .MMPREFIX_MODELS=.*; there is tongue$"):
        sources.resolve_folder("models:ear")
    with pytest.raises(InputError, match=r"'models:tung': no such folder .*; did you mean 'models:tongue'\?$"):
        sources.resolve_folder("models:tung")
    with pytest.raises(InputError, match="no such folder"):
        sources.resolve_folder(f"models:../{tmp_path.name}")
    for name in (f"models:{tmp_path / 'tongue'}", "models:"):  # no way out of the folder, and not the folder itself
        with pytest.raises(InputError, match="give the name of a folder in the one that MMPREFIX_MODELS names"):
            sources.resolve_folder(name)
    monkeypatch.delenv("MMPREFIX_MODELS")
    with pytest.raises(InputError, match="'models:tongue': set MMPREFIX_MODELS to the folder that holds 'tongue'"):
        sources.resolve_folder("models:tongue")


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "~/model-that-is-not", "runs/parts/encoder", "../model"])
def test_a_path_is_never_searched_on_the_hub(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        sources.resolve_folder(name)


def test_an_unavailable_hub_name_is_refused(offline: Path) -> None:
    for name in ("gpt2", "someone/model"):
        with pytest.raises(InputError) as error:
            sources.resolve_folder(name)
        assert f"{name!r} is no folder here, and the model hub did not give it" in str(error.value)
        assert "\n" not in str(error.value)


def test_the_identity_of_a_cached_hub_model_has_its_commit(offline: Path) -> None:
    """Cache in huggingface_hub's layout; the decoder's identity has the commit."""
    commits = "c0ffee00" * 5, "decade00" * 5
    repository = offline / "models--someone--tongue"
    for seed, commit in enumerate(commits):
        tiny_decoders.save_decoder(repository / "snapshots" / commit, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[1])
    assert sources.resolve_folder("someone/tongue") == repository / "snapshots" / commits[1]
    assert sources.resolve_folder("someone/tongue", commits[0]) == repository / "snapshots" / commits[0]
    newest, older = CausalDecoder("someone/tongue"), CausalDecoder("someone/tongue", commits[0])
    assert newest.identity.revision == commits[1]
    assert older.identity.revision == commits[0]
    assert newest.identity.source == older.identity.source == "someone/tongue"
    assert newest.identity.sha256 != older.identity.sha256
    with pytest.raises(InputError, match="'someone/tongue' is no folder here"):
        sources.resolve_folder("someone/tongue", "branch-that-is-not")


def test_bin_files_of_older_repositories_are_weights(offline: Path) -> None:
    snapshot = offline / "models--someone--old" / "snapshots" / ("ab" * 20)
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").write_bytes(b"weights")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("ab" * 20)
    assert sources.provenance_of("someone/old", sources.resolve_folder("someone/old")).revision == "ab" * 20


def test_the_hash_covers_contents_in_order_of_names(tmp_path: Path) -> None:
    parts = {"b.bin": b"two", "a.safetensors": b"one", "notes.txt": b"not a weight"}
    for name, content in parts.items():
        (tmp_path / name).write_bytes(content)
    digests = [hashlib.sha256(parts[name]).digest() for name in ("a.safetensors", "b.bin")]
    identity = sources.provenance_of("own", tmp_path)
    assert identity == sources.Provenance("own", None, hashlib.sha256(b"".join(digests)).hexdigest())
    assert identity.as_dict() == {"source": "own", "revision": None, "sha256": identity.sha256}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name, content in parts.items():
        (moved / name).write_bytes(content)
    assert sources.provenance_of("other", moved).sha256 == identity.sha256
    (moved / "b.bin").write_bytes(b"twO")
    assert sources.provenance_of("other", moved).sha256 != identity.sha256


def test_a_folder_without_weights_has_no_identity(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no weights \(\*\.safetensors, "):
        sources.provenance_of("own", tmp_path)


def test_files_that_are_no_json_object_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for text, message in (("{", "Expecting property name"), ("[1]", "expected a JSON object"), (None, "No such file")):
        if text is not None:
            file.write_text(text)
        else:
            file.unlink()
        with pytest.raises(InputError, match=message) as error:
            sources.read_json(file)
        assert str(file) in str(error.value)
    file.write_text('{"a": [1]}')
    assert sources.read_json(file) == {"a": [1]}
