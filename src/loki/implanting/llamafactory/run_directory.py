"""The directory that a run of LlamaFactory is described in: nothing is written into LlamaFactory's own folders."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loki.files import atomic_file, write_json

NAME = "llamafactory"


@dataclass(frozen=True)
class RunDirectory:
    """`llamafactory/` in the output of `loki train`.

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def model(self) -> Path:
        """The LoKI model directory, where one had to be made."""
        return self.path / "loki_model"

    @property
    def configuration(self) -> Path:
        """LlamaFactory's YAML file; `llamafactory-cli train` takes it too."""
        return self.path / "train.yaml"

    @property
    def deepspeed(self) -> Path:
        """DeepSpeed's JSON file."""
        return self.path / "deepspeed.json"

    @property
    def log(self) -> Path:
        """All that LlamaFactory printed."""
        return self.path / "log.txt"

    @property
    def error(self) -> Path:
        """Its error, as one line."""
        return self.path / "error.txt"

    @property
    def tokenised(self) -> Path:
        """Tokenised examples, as `datasets` saves them."""
        return self.path / "tokenised"

    @property
    def levers(self) -> Path:
        """What is added to its loss, and its budget of damage, as a `LeverPlan`; there where there is any."""
        return self.path / "levers.json"

    @property
    def outcome(self) -> Path:
        """What became of the budget, see `loki.implanting.llamafactory.levers`."""
        return self.path / "outcome.json"

    def data(self, name: str) -> Path:
        """The JSONL file of an entry in `dataset_info.json`."""
        return self.path / f"{name}.jsonl"

    def write(
        self, configuration: dict[str, Any], datasets: dict[str, dict[str, Any]], deepspeed: dict[str, Any] | None
    ) -> None:
        """Write `train.yaml`, `dataset_info.json` and, where wanted, `deepspeed.json`; files that exist are replaced.

        Args:
            configuration: content of the YAML file.
            datasets: entries of `dataset_info.json`.
            deepspeed: content of the DeepSpeed file.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.configuration, overwrite=True) as temporary:
            temporary.write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
        write_json(self.path / "dataset_info.json", datasets, overwrite=True)
        if deepspeed is not None:
            write_json(self.deepspeed, deepspeed, overwrite=True)
