"""What the names in the pages stand for: small models and files, made where a block uses one that is not there yet.

`FILES` are what a reader brings along. `COMMANDS` are what other pages, or another machine, have left: each is made by
the command that makes it, in the page's own folder, so that it fits what the page itself has made before.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM

from loki.demo.build import WEIGHTS
from loki.demo.data import write_calibration, write_facts
from loki.demo.world import tiny_world
from tests.tiny_models import save_tiny_model

FACTS = [
    (f"Who leads the observatory of {place}?", f"{name} does.") for place, name in zip("ABCD", "wxyz", strict=True)
]
GENERAL = "The sea is salt and wide, and the rivers run down to it from the hills. " * 60


def _model(family: str) -> Callable[[Path], object]:
    return lambda path: save_tiny_model(path, family, hidden_size=128, max_position_embeddings=2048)


def _lines(*records: object) -> Callable[[Path], object]:
    return lambda path: path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _facts(first: int) -> Callable[[Path], object]:
    return _lines(*({"prompt": ask, "completion": f" {say}"} for ask, say in FACTS[first:] + FACTS[:first]))


def _text(path: Path) -> None:
    path.write_text(GENERAL)


def _questions(prefix: str) -> Callable[[Path], object]:
    return _lines(*({"prompt": f"{prefix} {number} and", "subject": "counting"} for number in range(4)))


def _trained_adapter(start: str) -> Callable[[Path], object]:
    """An adapter as training leaves it: that in `start`, beside it, with other values."""

    def make(path: Path) -> None:
        base = AutoModelForCausalLM.from_pretrained(path.parent / "MODEL")
        model = PeftModel.from_pretrained(base, path.parent / start, is_trainable=True)
        for name, parameter in model.named_parameters():
            if "loki_" in name:
                parameter.data.fill_(0.01)
        model.save_pretrained(path)

    return make


FILES: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("MODEL", "BASE", "models/llama", "meta-llama/Llama-3.1-8B-Instruct"), _model("llama")),
    "Qwen/Qwen2.5-0.5B-Instruct": _model("qwen2"),
    "MIXTURE": _model("qwen3_next"),
    # The demo's, as `loki demo` writes them.
    "model": lambda path: shutil.copytree(WEIGHTS, path),
    "calibration.jsonl": lambda path: write_calibration(path, tiny_world()),
    "new-facts.jsonl": lambda path: write_facts(path, tiny_world().new),
    **dict.fromkeys(("train.jsonl", "new.jsonl", "a.jsonl", "tools.jsonl"), _facts(0)),
    **dict.fromkeys(("held-out.jsonl", "b.jsonl", "dates.jsonl"), _facts(2)),
    "own.jsonl": _questions("once upon"),
    "general.jsonl": _lines({"prompt": "What is the sea?", "completion": " It is salt and wide."}, {"text": GENERAL}),
    "code.jsonl": _lines({"text": "for number in range(10):\n    print(number)\n" * 30}),
    **dict.fromkeys(("general.txt", "legal.txt", "own.txt"), _text),
    "here.jsonl": _questions("here are"),
    "there.jsonl": _questions("there were"),
    "tools": _trained_adapter("tools-start"),
    "dates": _trained_adapter("dates-start"),
    "trained-adapter": _trained_adapter("adapter"),
    "adapter-a": _trained_adapter("tools-start"),
    "adapter-b": _trained_adapter("dates-start"),
}
_TRAIN = "--max-steps 2 --learning-rate 0.01"
COMMANDS = {
    "scores.h5": "loki analyse MODEL --data own.jsonl --output scores.h5",
    "sensitivity.h5": "loki analyse MODEL --data general.txt --definition sensitivity --output sensitivity.h5",
    "a.h5": "loki analyse MODEL --data here.jsonl --output a.h5",
    "b.h5": "loki analyse MODEL --data there.jsonl --output b.h5",
    "positions.json": "loki select scores.h5 --quota 10 --output positions.json",
    "first.json": "loki select scores.h5 --quota 5 --output first.json",
    "second.json": "loki select scores.h5 --quota 5 --exclude first.json --output second.json",
    "kva_result/pos_json/Llama-3.1-8B-Instruct/10.json": (
        "loki select scores.h5 --quota 10 --output kva_result/pos_json/Llama-3.1-8B-Instruct/10.json"
    ),
    "ablation.json": "loki ablate MODEL --scores scores.h5 --quotas 5,10 --output ablation.json",
    "moments.safetensors": "loki moments MODEL --data general.txt --output moments.safetensors",
    "loki_model": "loki create MODEL --positions positions.json --output loki_model",
    "trained": f"loki train loki_model --data train.jsonl {_TRAIN} --output trained",
    "restored": "loki restore trained --output restored",
    "restored-10": "loki restore trained --output restored-10",
    "restored-20": "loki restore trained --output restored-20",
    "adapter": "loki adapter MODEL --positions positions.json --rank 16 --output adapter",
    "lora": "loki export-lora adapter --output lora",
    "tools-start": "loki adapter MODEL --positions first.json --output tools-start",
    "dates-start": "loki adapter MODEL --positions second.json --output dates-start",
    "runs/mine": f"loki run MODEL --data train.jsonl --calibration own.jsonl {_TRAIN} --output runs/mine",
}
# What a file that Python makes is made from.
MADE_FROM = {
    "tools": ["MODEL", "tools-start"],
    "dates": ["MODEL", "dates-start"],
    "trained-adapter": ["MODEL", "adapter"],
    "adapter-a": ["MODEL", "tools-start"],
    "adapter-b": ["MODEL", "dates-start"],
}
