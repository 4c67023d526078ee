"""The shipped LlamaFactory configurations: the paper's settings, accepted by LlamaFactory's own parser."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "lf_config").glob("*/*.yaml"))
PAPER = {
    "toolace": {"num_train_epochs": 3.0, "cutoff_len": 8192, "per_device_train_batch_size": 4, "warmup_ratio": 0.1},
    "reranker": {"num_train_epochs": 1.0, "packing": True, "per_device_train_batch_size": 1, "warmup_ratio": 0.01},
}
# A record of each data set as its authors publish it.
RAW: dict[str, dict[str, Any]] = {
    "toolace": {
        "system": "You can call get_weather(city).",
        "conversations": [
            {"from": "user", "value": "Weather in Oslo?"},
            {"from": "assistant", "value": "[get_weather(city='Oslo')]"},
            {"from": "tool", "value": "3 degrees"},
            {"from": "assistant", "value": "It is 3 degrees."},
        ],
    },
    "reranker": {"conversations": [{"from": "human", "value": "Rate 1 to 7: ..."}, {"from": "gpt", "value": "5"}]},
}
PARSE = """
import json, sys, yaml
from pathlib import Path
from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import get_dataset_list
from llamafactory.hparams import get_train_args

path = Path(sys.argv[1])
arguments = yaml.safe_load(path.read_text()) | {"bf16": False, "use_cpu": True, "dataset_dir": str(path.parent)}
_, data, training, finetuning, _ = get_train_args(arguments)
(dataset,) = get_dataset_list(data.dataset, data.dataset_dir)
converted = get_dataset_converter(dataset.formatting, dataset, data)(json.loads(sys.argv[2]))
print("PARSED", json.dumps({
    "turns": len(converted["_prompt"]) + len(converted["_response"]),

    "finetuning_type": finetuning.finetuning_type, "learning_rate": training.learning_rate,
    "epochs": training.num_train_epochs, "report_to": training.report_to, "packing": bool(data.packing),
    "formatting": dataset.formatting, "user_tag": dataset.user_tag, "observation_tag": dataset.observation_tag,
}))
"""


def test_every_configuration_is_covered() -> None:
    assert {path.stem for path in CONFIGS} == set(PAPER)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_settings_of_the_paper(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    assert PAPER[path.stem].items() <= settings.items()
    assert (settings["learning_rate"], settings["lr_scheduler_type"]) == (1e-5, "cosine")
    assert (settings["finetuning_type"], settings["trust_remote_code"]) == ("full", True)
    assert "(" not in json.dumps(settings), "nothing is left to be filled in"
    datasets = json.loads((path.parent / settings["dataset_dir"] / "dataset_info.json").read_text())
    assert settings["dataset"] in datasets


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_train_script_refuses_a_directory_without_model(path: Path, tmp_path: Path) -> None:
    script = path.parent / "train.sh"
    alone = subprocess.run(["bash", "train.sh"], cwd=path.parent, capture_output=True, text=True)
    assert (alone.returncode, str(path.parent / "loki_model") in alone.stderr) == (2, True)
    refused = subprocess.run([script, tmp_path, tmp_path / "out"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "loki create" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_train_script_takes_its_defaults_from_the_configuration(
    path: Path, given: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with space" / path.parent.name
    shutil.copytree(path.parent, folder)
    shutil.copy(path.parents[1] / "train.sh", folder.parent)
    command = tmp_path / "bin" / "llamafactory-cli"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    settings = yaml.safe_load(path.read_text())
    wanted = [folder / settings["model_name_or_path"], folder / settings["output_dir"]]
    own = [tmp_path / "my model", tmp_path / "my output"]
    for place, mine in enumerate(own[:given]):
        wanted[place] = mine
    wanted[0].mkdir()
    (wanted[0] / "config.json").touch()
    words = [*own, "seed=1"][:given]
    told = subprocess.run(["bash", "train.sh", *words], cwd=folder, capture_output=True, text=True, check=True).stdout
    places = [f"model_name_or_path={wanted[0]}", f"output_dir={wanted[1]}"]
    assert told.splitlines() == [str(folder), "train", path.name, *places, *(["seed=1"] if given == 3 else [])]


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_llamafactory_accepts_it_and_the_raw_data(path: Path, environment: Path) -> None:
    words = [environment / "python", "-c", PARSE, path, json.dumps(RAW[path.stem])]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    parsed = json.loads(printed.partition("PARSED ")[2].splitlines()[0])
    assert parsed == {
        "turns": len(RAW[path.stem]["conversations"]),
        "finetuning_type": "full",
        "learning_rate": 1e-5,
        "epochs": PAPER[path.stem]["num_train_epochs"],
        "report_to": [],
        "packing": path.stem == "reranker",
        "formatting": "sharegpt",
        "user_tag": "user" if path.stem == "toolace" else "human",
        "observation_tag": "tool" if path.stem == "toolace" else "observation",
    }
