"""Several sources, their splits and a chat template of one's own reach the training."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from loki.artefacts.positions import write_positions
from loki.artefacts.training_settings import TrainingSettings
from loki.data.settings import DataSettings
from loki.errors import LokiError
from loki.implanting.training.trainer import train
from loki.restoring.restore import restore_loki_model
from tests.data.loading import write_records
from tests.data.templates import NO_TOOLS
from tests.programs import run_python
from tests.tiny_models import save_tiny_model

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
SETTINGS = TrainingSettings(max_steps=2, learning_rate=1e-2, batch_size=2)


def test_a_chat_template_is_trained_with_and_kept(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", chat_template=False)
    write_positions(tmp_path / "positions.json", [[1, 30], [], [0, 4, 5]])
    (tmp_path / "data").mkdir()
    write_records(tmp_path / "data" / "train.jsonl", *[CHAT] * 3)
    write_records(tmp_path / "data" / "test.jsonl", CHAT)
    (tmp_path / "chat.jinja").write_text(NO_TOOLS)
    said = io.StringIO()
    given = {"positions": tmp_path / "positions.json", "console": Console(file=said, width=300)}
    with pytest.raises(LokiError, match=r"no chat template: .*--chat-template"):
        train(base, tmp_path / "data", tmp_path / "out", SETTINGS, **given)  # type: ignore[arg-type]
    sources = [str(tmp_path / "data"), write_records(tmp_path / "more.jsonl", {"text": "once upon a time"})]
    settings = DataSettings(chat_template=str(tmp_path / "chat.jinja"))
    train(base, sources, tmp_path / "out", SETTINGS, data_settings=settings, **given)  # type: ignore[arg-type]
    assert "4 training examples" in said.getvalue()
    restore_loki_model(tmp_path / "out", tmp_path / "restored")
    code = "import sys, transformers; print(transformers.AutoTokenizer.from_pretrained(sys.argv[1]).chat_template)"
    assert run_python("-c", code, tmp_path / "restored").stdout == NO_TOOLS + "\n"
    assert AutoTokenizer.from_pretrained(base).chat_template is None
