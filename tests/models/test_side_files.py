"""Every file of a base that is no weight is kept, whatever it is called; what a training left beside it is not."""

from pathlib import Path

from loki.models.side_files import copy_side_files

KEPT = (
    "NOTICE",
    "USE_POLICY.md",
    "README.md",
    "LICENSE.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer/config.json",
    "configuration_custom.py",
)
NOT_KEPT = (
    "config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "original/consolidated.00.pth",
    "model.gguf",
    "modeling_loki.py",
    "training.json",
    "trainer_state.json",
    "training_args.bin",
    "checkpoint-10/tokenizer.json",
    "llamafactory/train.jsonl",
    ".git/config",
    ".model.tmp",
)


def test_what_is_kept(tmp_path: Path) -> None:
    for name in (*KEPT, *NOT_KEPT):
        file = tmp_path / "base" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    copy_side_files(tmp_path / "base", tmp_path / "copy")
    copied = {str(file.relative_to(tmp_path / "copy")): file.read_text() for file in (tmp_path / "copy").rglob("*.*")}
    copied |= {"NOTICE": (tmp_path / "copy" / "NOTICE").read_text()}
    assert {name: text for name, text in copied.items() if (tmp_path / "copy" / name).is_file()} == {
        name: name for name in KEPT
    }
