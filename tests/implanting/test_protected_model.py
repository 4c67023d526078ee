"""LoKI directories whose rows are trained along the least used input directions."""

from pathlib import Path
from textwrap import dedent

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from loki.artefacts.moments import MomentsOrigin, write_moments
from loki.artefacts.positions import write_positions
from loki.errors import LokiError
from loki.implanting.create import create_loki_model
from loki.implanting.directions import DIRECTIONS_FILE, read_directions
from loki.implanting.protected import ProtectedLinear, directions_of
from loki.implanting.splitting import active_parameters, loki_linears
from loki.models.checkpoint import fingerprint
from loki.restoring.restore import restore_loki_model
from loki.restoring.verify import verify
from tests.implanting.test_modeling import POSITIONS, TOKENS, train
from tests.programs import run_python
from tests.tolerances import assert_close

WIDTH = 48


def some_moments(path: Path, model: Path, layers: int = 3, width: int = WIDTH, fingerprint_: str = "") -> Path:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(layers, 400, width, generator=generator, dtype=torch.float64)
    moments = [(rows.T @ rows / len(rows))[None] for rows in inputs]
    origin = MomentsOrigin(str(model), fingerprint_ or fingerprint(model), "text", "", 1, 400, "float32", "")
    write_moments(path, moments, origin)
    return path


@pytest.fixture
def made(llama_dir: Path, tmp_path: Path) -> Path:
    write_positions(tmp_path / "positions.json", POSITIONS)
    return create_loki_model(
        model_name=llama_dir,
        target_pos_path=tmp_path / "positions.json",
        save_dir=tmp_path / "loki",
        moments=some_moments(tmp_path / "moments.safetensors", llama_dir),
        protect=0.75,
    )


def test_directions_are_the_eigenvectors_of_the_smallest_eigenvalues(made: Path, tmp_path: Path) -> None:
    directions = read_directions(made / DIRECTIONS_FILE)
    assert directions.keys() == {0, 2}
    moment = load_file(tmp_path / "moments.safetensors")["second_moment.0"][0].double()
    span = directions[0][0].double()
    assert span.shape == (WIDTH, 12)
    assert_close(span.T @ span, torch.eye(12, dtype=torch.float64), torch.float32)
    projector = torch.linalg.eigh(moment).eigenvectors[:, :12]
    assert_close(span @ span.T, projector @ projector.T, torch.float32)


def test_load_train_save_reload_restore(made: Path, llama_dir: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made)
    base = AutoModelForCausalLM.from_pretrained(llama_dir)
    assert torch.equal(model(TOKENS).logits, base(TOKENS).logits)
    assert [type(module) for module in loki_linears(model).values()] == [ProtectedLinear] * 2
    assert sum(parameter.numel() for parameter in active_parameters(model).values()) == 5 * 12
    train(model)
    model.save_pretrained(tmp_path / "checkpoint")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    assert torch.equal(reloaded(TOKENS).logits, model(TOKENS).logits)
    for layer, span in directions_of(reloaded).items():
        assert torch.equal(span, directions_of(model)[layer])
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        change = load_file(tmp_path / "checkpoint" / "model.safetensors")[name] - base.get_parameter(name)
        assert change.abs().max() > 1e-3
        outside = change.double() - change.double() @ span[0].double() @ span[0].double().T
        assert outside.norm() < 1e-5 * base.get_parameter(name).norm()
    restore_loki_model(tmp_path / "checkpoint", tmp_path / "restored", base_model=llama_dir)
    assert not (tmp_path / "restored" / DIRECTIONS_FILE).exists()
    assert "directions" not in (tmp_path / "restored" / "config.json").read_text()
    report = verify(llama_dir, tmp_path / "restored", POSITIONS)
    assert not report.differences
    assert report.changed_rows == 5


def test_what_deepspeed_saves_is_not_counted_twice(
    made: Path, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves and loads a model's state, and then puts the coefficients once more."""
    model, before = (AutoModelForCausalLM.from_pretrained(folder) for folder in (made, llama_dir))
    monkeypatch.setattr("loki.implanting.protected.under_deepspeed", lambda: True)
    with torch.no_grad():
        for parameter in active_parameters(model).values():
            parameter.normal_(std=0.1)
    trained = {name: linear.merged_weight() for name, linear in loki_linears(model).items()}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, coefficients in active_parameters(model).items():
        assert torch.equal(state[name], coefficients)
        weight = name.replace("active_coefficients", "weight")
        assert torch.equal(state[weight], before.get_parameter(weight))
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == load_file(made / "model.safetensors").keys()
    resumed = AutoModelForCausalLM.from_pretrained(made)
    resumed.load_state_dict(state)
    for name, parameter in active_parameters(resumed).items():
        parameter.data.copy_(state[name])
    for name, linear in loki_linears(resumed).items():
        assert torch.equal(linear.merged_weight(), trained[name])
        assert_close(saved[f"{name}.weight"], trained[name])
        assert not torch.equal(trained[name], before.get_parameter(f"{name}.weight"))


def test_it_is_made_without_weights(made: Path) -> None:
    config = AutoConfig.from_pretrained(made)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in active_parameters(skeleton).values()) == 5 * 12


@pytest.mark.slow
@pytest.mark.parametrize("remote", [True, False])
def test_a_fresh_process_loads_it(made: Path, remote: bool) -> None:
    code = f"""
        {"" if remote else "import loki"}
        from transformers import AutoConfig, AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained({str(made)!r}, trust_remote_code={remote})
        print(sum(p.numel() for p in model.parameters() if p.requires_grad), type(model).__name__)
    """
    assert run_python("-c", dedent(code)).stdout.split() == ["60", "LoKILlamaForCausalLM"]


def test_bad_input(llama_dir: Path, qwen2_dir: Path, made: Path, tmp_path: Path) -> None:
    def create(**options: object) -> None:
        create_loki_model(
            model_name=llama_dir, target_pos_path=tmp_path / "positions.json", save_dir=tmp_path / "new", **options
        )

    good = tmp_path / "moments.safetensors"
    with pytest.raises(LokiError, match="belong together"):
        create(protect=0.5)
    with pytest.raises(LokiError, match="belong together"):
        create(moments=good)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(LokiError, match=f"--protect {share}"):
            create(protect=share, moments=good)
    with pytest.raises(LokiError, match="none of 48"):
        create(protect=0.999, moments=good)
    with pytest.raises(LokiError, match="another model"):
        create(protect=0.5, moments=some_moments(tmp_path / "a", qwen2_dir))
    own = fingerprint(llama_dir)
    with pytest.raises(LokiError, match="for 2 layers"):
        create(protect=0.5, moments=some_moments(tmp_path / "b", llama_dir, layers=2, fingerprint_=own))
    with pytest.raises(LokiError, match="for 40 inputs"):
        create(protect=0.5, moments=some_moments(tmp_path / "c", llama_dir, width=40, fingerprint_=own))
    assert not (tmp_path / "new").exists()


def test_other_directions_than_it_was_made_with_are_refused(made: Path) -> None:
    tensors = load_file(made / DIRECTIONS_FILE)
    save_file({**tensors, "0": tensors["0"].flip(1)}, made / DIRECTIONS_FILE)
    with pytest.raises(LokiError, match="other directions"):
        AutoModelForCausalLM.from_pretrained(made)
    (made / DIRECTIONS_FILE).unlink()
    with pytest.raises(LokiError, match="is missing"):
        AutoModelForCausalLM.from_pretrained(made)
