"""Names of saved models: what is looked for on this machine, and what a wrong one is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmprefix import InputError
from mmprefix.inference.model_folder import find_model


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with the models mine/first/model and mine/second, and no way to a hub."""
    for name in ("mine/first/model", "mine/second"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "mmprefix.yaml").write_text("format: 1\n")
    (tmp_path / "someone").mkdir()
    for ear in ("ear", "models/ear"):
        (tmp_path / ear).mkdir(parents=True)
        (tmp_path / ear / "config.json").write_text('{"model_type": "whisper"}')
    monkeypatch.setenv("MMPREFIX_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_folder_is_found_by_any_of_its_names(workplace: Path) -> None:
    for name in ("mine/second", "./mine/second", str(workplace / "mine/second"), workplace / "mine" / "second"):
        assert find_model(name).samefile(workplace / "mine/second")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine/secnd", "'mine/secnd': no such folder; did you mean 'mine/second'?"),
        ("mine/first/modle", "'mine/first/modle': no such folder; did you mean 'mine/first/model'?"),
        ("mine/first", "mine/first: is no saved model (it has no mmprefix.yaml); did you mean 'mine/first/model'?"),
        ("someone", "someone: is no saved model (it has no mmprefix.yaml); mmprefix fit and model.save write one"),
        ("ear", "ear: is no saved model (it has no mmprefix.yaml); its whisper model is a part of one: give a recipe"),
        ("models:ear", "models/ear: is no saved model (it has no mmprefix.yaml); its whisper model is a part of one"),
        ("models:tongue", "'models:tongue': no such folder"),
        ("mine/second/mmprefix.yaml", "mmprefix.yaml: is no saved model"),
        ("runs/model", "'runs/model': no such folder"),
        ("model", "'model': no such folder"),
        ("./someone/x", "'./someone/x': no such folder"),
        ("/nowhere", "'/nowhere': no such folder"),
        ("a/b/c", "'a/b/c': no such folder"),
        ("someone/nothing", "'someone/nothing' is no folder here, and the model hub did not give it"),
    ],
)
def test_a_wrong_name_is_told_what_would_work(workplace: Path, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        find_model(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
