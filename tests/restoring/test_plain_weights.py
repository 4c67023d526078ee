"""What stores rows otherwise than as plain numbers is refused by every command that edits rows, before it writes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting.create import create_loki_model
from loki.implanting.peft.export import export_lora
from loki.implanting.peft.merge import merge_adapters
from loki.implanting.peft.zero import save_zero_adapter
from loki.restoring.restore import restore_loki_model
from loki.restoring.suppress import set_zero_weights
from loki.restoring.verify import verify
from tests.tiny_models import save_tiny_model

POSITIONS = [[1], [2], [3]]
QUANTISED: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [16, 16]},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
}


@pytest.fixture
def copy_of_llama(llama_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_dir, tmp_path / "copy"))


def create(base: Path, output: Path) -> None:
    create_loki_model(model_name=base, target_pos_path=output.parent / "positions.json", save_dir=output)


def suppress(base: Path, output: Path) -> None:
    set_zero_weights(base, output.parent / "positions.json", output)


def check(base: Path, output: Path) -> None:
    verify(base, base, POSITIONS)


EDITING = [create, suppress, check]


@pytest.mark.parametrize("edit", EDITING)
@pytest.mark.parametrize("method", QUANTISED)
def test_quantised(copy_of_llama: Path, tmp_path: Path, method: str, edit: Callable[[Path, Path], None]) -> None:
    config = json.loads((copy_of_llama / "config.json").read_text())
    config["quantization_config"] = QUANTISED[method]
    (copy_of_llama / "config.json").write_text(json.dumps(config))
    write_positions(tmp_path / "positions.json", POSITIONS)
    with pytest.raises(LokiError, match=f"quantised \\({method}\\).*loki adapter"):
        edit(copy_of_llama, tmp_path / "output")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("edit", EDITING)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda weight: weight.to(torch.float8_e4m3fn), "unquantised"),
        (lambda weight: weight.to(torch.int8), "unquantised"),
        (lambda weight: weight.reshape(-1, 1), r"is \[1536, 1\], and \[32, 48\] by the configuration"),
        (lambda weight: weight[:16], r"is \[16, 48\], and \[32, 48\] by the configuration"),
        (lambda weight: weight[:, :0], r"is \[32, 0\], and \[32, 48\] by the configuration"),
    ],
)
def test_other_types_and_shapes(
    copy_of_llama: Path,
    tmp_path: Path,
    change: Callable[[torch.Tensor], torch.Tensor],
    problem: str,
    edit: Callable[[Path, Path], None],
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    weights = load_file(copy_of_llama / "model.safetensors")
    weights[name] = change(weights[name]).contiguous()
    save_file(weights, copy_of_llama / "model.safetensors", metadata={"format": "pt"})
    write_positions(tmp_path / "positions.json", POSITIONS)
    with pytest.raises(LokiError, match=rf"layers\.1\.mlp\.down_proj\.weight.* {problem}"):
        edit(copy_of_llama, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def trained(folder: Path, base: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    write_positions(folder / "positions.json", POSITIONS)
    create(base, folder / "loki")
    weights = load_file(folder / "loki" / "model.safetensors")
    rows = weights["model.layers.0.mlp.down_proj.weight"]
    rows[1] = change(rows[1])
    save_file(weights, folder / "loki" / "model.safetensors", metadata={"format": "pt"})
    return folder / "loki"


def test_trained_rows_of_another_shape_are_not_restored(llama_dir: Path, tmp_path: Path) -> None:
    made = trained(tmp_path, llama_dir, lambda row: row + 1)
    weights = load(made.joinpath("model.safetensors").read_bytes())  # none of them in the file that is written
    name = "model.layers.1.mlp.down_proj.weight"
    for wrong, shape in ((weights[name][:, :0], r"\[32, 0\]"), (weights[name].flatten(), r"\[1536\]")):
        save_file({**weights, name: wrong.clone()}, made / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(LokiError, match=rf"{name} is {shape}, and \[32, 48\]"):
            restore_loki_model(made, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers_are_not_restored(llama_dir: Path, tmp_path: Path, number: float) -> None:
    made = trained(tmp_path, llama_dir, lambda row: row.fill_(number))
    with pytest.raises(LokiError, match="NaN or infinite"):
        restore_loki_model(made, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def spoil(model: Path, name: str, number: float) -> Path:
    """Put a number at one place of a tensor."""
    weights = load_file(model / "model.safetensors")
    weights[name].view(-1)[-1] = number
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("name", "number"),
    [("model.layers.1.mlp.down_proj.weight", float("nan")), ("model.embed_tokens.weight", float("-inf"))],
)
def test_weights_outside_the_rows_must_be_numbers_too(
    llama_dir: Path, tmp_path: Path, name: str, number: float
) -> None:
    made = spoil(trained(tmp_path, llama_dir, lambda row: row + 1), name, number)
    with pytest.raises(LokiError, match=f"{name} is NaN or infinite"):
        restore_loki_model(made, tmp_path / "restored")
    base = spoil(shutil.copytree(llama_dir, tmp_path / "base"), name, number)
    with pytest.raises(LokiError, match=f"{name} is NaN or infinite"):
        restore_loki_model(adapter(tmp_path, base, 1.0), tmp_path / "restored", base_model=base)
    assert not (tmp_path / "restored").exists()
    (difference,) = verify(base, shutil.copytree(base, tmp_path / "copy"), POSITIONS).differences
    assert str(difference) == f"{name}: is NaN or infinite in both models"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_other_commands_on_adapters_that_hold_no_numbers(llama_dir: Path, tmp_path: Path, number: float) -> None:
    broken = adapter(tmp_path, llama_dir, number)
    save_zero_adapter(llama_dir, [[20], [20], [20]], tmp_path / "other")
    for work in (
        lambda: merge_adapters([tmp_path / "other", broken], tmp_path / "out"),
        lambda: export_lora(broken, tmp_path / "out", full_rows=True),
    ):
        with pytest.raises(LokiError, match="NaN or infinite"):
            work()
    assert not (tmp_path / "out").exists()


def adapter(folder: Path, base: Path, value: float) -> Path:
    save_zero_adapter(base, POSITIONS, folder / "adapter")
    deltas = load_file(folder / "adapter" / "adapter_model.safetensors")
    save_file(
        {name: torch.full_like(delta, value) for name, delta in deltas.items()},
        folder / "adapter" / "adapter_model.safetensors",
    )
    return folder / "adapter"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_adapters_that_hold_no_numbers(llama_dir: Path, tmp_path: Path, number: float) -> None:
    with pytest.raises(LokiError, match="NaN or infinite"):
        restore_loki_model(adapter(tmp_path, llama_dir, number), tmp_path / "restored", base_model=llama_dir)


def test_an_adapter_whose_change_is_lost_to_rounding(llama_dir: Path, tmp_path: Path) -> None:
    made = adapter(tmp_path, llama_dir, 1e-20)
    with pytest.raises(LokiError, match="all 3 rows"):
        restore_loki_model(made, tmp_path / "restored", base_model=llama_dir)
    assert not (tmp_path / "restored").exists()


def test_rows_of_a_training_that_are_lost_to_rounding(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = save_tiny_model(tmp_path / "base", dtype=torch.bfloat16)

    def upcast(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        folder.mkdir()
        made = trained(folder, base, lambda row: row)
        weights = {name: tensor.float() for name, tensor in load_file(made / "model.safetensors").items()}
        change(weights)
        save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
        return made

    def two_rows(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.0.mlp.down_proj.weight"][1] += 1
        weights["model.layers.1.mlp.down_proj.weight"][2] += 1e-9

    made = upcast(tmp_path / "two", two_rows)
    restore_loki_model(made, tmp_path / "restored")
    assert "1 of 2 changed rows" in caplog.text
    assert verify(base, tmp_path / "restored", POSITIONS).changed_rows == 1
    with pytest.raises(LokiError, match="all 2 rows"):
        restore_loki_model(made, tmp_path / "scaled", scale=1e-20)
    assert not (tmp_path / "scaled").exists()
