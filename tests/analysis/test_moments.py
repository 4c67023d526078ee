"""Second moments are those of what really goes into every `down_proj`, however the texts are batched."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loki.analysis.moments import blocks_of, few_tokens_advice, measure_moments
from loki.analysis.options import MomentsSettings
from loki.artefacts.moments import FORMAT, VERSION, Moments
from loki.errors import LokiError
from loki.models.experts import down_projections
from loki.models.loading import load_model
from tests.programs import run_together
from tests.tiny_models import save_tiny_model
from tests.tolerances import assert_close

TEXTS = [[5, 9, 17], [8] * 11, [30, 31, 200, 7, 7, 1, 90], [4, 3], list(range(40, 60))]
FLOAT32 = {"dtype": "float32", "device": "cpu"}


def write_texts(path: Path, texts: list[list[int]] = TEXTS) -> str:
    path.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in texts))
    return str(path)


def reference(model_dir: Path, texts: list[list[int]]) -> list[torch.Tensor]:
    """`[d_ff, d_ff]` of every layer in float64, one text at a time."""
    model = load_model(model_dir, dtype="float32")
    seen: list[list[torch.Tensor]] = [[] for _ in down_projections(model)]
    for inputs, projection in zip(seen, down_projections(model).values(), strict=True):
        projection.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0][0].double()))
    with torch.no_grad():
        for ids in texts:
            model(torch.tensor([ids]))
    rows = [torch.cat(inputs) for inputs in seen]
    return [layer.T @ layer / len(layer) for layer in rows]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_second_moments(llama_dir: Path, tmp_path: Path, batch_size: int) -> None:
    output = tmp_path / "moments.safetensors"
    data = write_texts(tmp_path / "texts.jsonl")
    origin = measure_moments(llama_dir, data, output, MomentsSettings(batch_size=batch_size, **FLOAT32))
    assert (origin.texts, origin.tokens) == (5, sum(map(len, TEXTS)))
    moments = Moments(output)
    assert moments.origin == origin
    assert moments.layers == 3
    for layer, expected in enumerate(reference(llama_dir, TEXTS)):
        assert_close(moments.second_moment(layer)[0].double(), expected, torch.float32)
        assert torch.equal(moments.mean_square(layer), moments.second_moment(layer)[0].diagonal())
        assert torch.equal(moments.second_moment(layer)[0], moments.second_moment(layer)[0].T)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2", "glm4"])
def test_where_the_output_is_normalised_a_token_weighs_less_the_larger_it_is(family: str, tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", family)
    origin = measure_moments(base, write_texts(tmp_path / "texts.jsonl"), tmp_path / "m", MomentsSettings(**FLOAT32))
    assert origin.weighted and Moments(tmp_path / "m").origin == origin
    model = load_model(base, dtype="float32")
    projections = list(down_projections(model).values())
    sums = [torch.zeros(one.in_features, one.in_features, dtype=torch.float64) for one in projections]

    def add(total: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        for h, z in zip(inputs[0].double(), outputs[0].double(), strict=True):
            total += torch.outer(h, h) / z.square().mean()

    for total, projection in zip(sums, projections, strict=True):
        projection.register_forward_hook(lambda _, given, out, total=total: add(total, given[0], out))
    with torch.no_grad():
        for ids in TEXTS:
            model(torch.tensor([ids]))
    for layer, total in enumerate(sums):
        expected = total / origin.tokens
        assert_close(Moments(tmp_path / "m").second_moment(layer)[0].double(), expected, torch.float32)


def test_moments_of_an_earlier_release_are_read(llama_dir: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.jsonl")
    origin = measure_moments(llama_dir, data, tmp_path / "m", MomentsSettings(**FLOAT32))
    assert not origin.weighted
    with safe_open(tmp_path / "m", framework="pt") as file:
        header = file.metadata()
    said = json.loads(header["origin"])
    del said["weighted"]
    tensors = {name: tensor.clone() for name, tensor in load_file(tmp_path / "m").items()}
    save_file(tensors, tmp_path / "old", metadata={**header, "origin": json.dumps(said)})
    assert Moments(tmp_path / "old").origin == origin


def test_blocks(llama_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "moments.safetensors"
    measure_moments(llama_dir, write_texts(tmp_path / "texts.jsonl"), output, MomentsSettings(block_size=20, **FLOAT32))
    for layer, expected in enumerate(reference(llama_dir, TEXTS)):
        blocks = torch.stack([expected[start : start + 16, start : start + 16] for start in (0, 16, 32)])
        assert_close(Moments(output).second_moment(layer).double(), blocks, torch.float32)
    assert [blocks_of(width, 2048) for width in (1536, 2048, 4864, 14336, 18944)] == [1, 1, 4, 7, 16]


def test_long_texts_are_split_and_max_tokens_ends_the_taking(llama_dir: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.jsonl")
    split = measure_moments(llama_dir, data, tmp_path / "a", MomentsSettings(max_length=8, **FLOAT32))
    assert (split.texts, split.tokens) == (8, sum(map(len, TEXTS)))  # 20 = 8 + 8 + 4, 11 = 8 + 3
    some = measure_moments(llama_dir, data, tmp_path / "b", MomentsSettings(max_tokens=4, **FLOAT32))
    assert 4 <= some.tokens < 4 + 20


def test_plain_text(llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "general.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    origin = measure_moments(
        llama_dir, str(tmp_path / "general.txt"), tmp_path / "m", MomentsSettings(max_length=100, **FLOAT32)
    )
    assert (origin.texts, origin.tokens) == (9, 900)  # the tiny tokenizer reads bytes


def test_an_interrupted_measurement_goes_on_to_the_last_bit(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_texts(tmp_path / "texts.jsonl")
    settings = MomentsSettings(batch_size=1, save_every=2, **FLOAT32)
    measure_moments(llama_dir, data, tmp_path / "whole", settings)
    taken: list[Any] = []
    add = measure_moments.__globals__["_Sums"].add

    def failing(sums: Any, batch: list[list[int]]) -> None:
        if len(taken) == 3:
            raise RuntimeError("killed")
        taken.append(batch)
        add(sums, batch)

    monkeypatch.setattr("loki.analysis.moments._Sums.add", failing)
    with pytest.raises(RuntimeError, match="killed"):
        measure_moments(llama_dir, data, tmp_path / "part", settings)
    assert not (tmp_path / "part").exists()
    with pytest.raises(LokiError, match="batch_size was 1, now 2"):
        measure_moments(llama_dir, data, tmp_path / "part", MomentsSettings(batch_size=2, **FLOAT32))
    taken.clear()
    for name in ("part.partial-1-of-2", "part.partial-of-mine"):  # of another number of processes; of somebody else
        (tmp_path / name).write_text("")
    measure_moments(llama_dir, data, tmp_path / "part", settings)
    assert len(taken) == 3  # batches 3 to 5
    whole, resumed = load_file(tmp_path / "whole"), load_file(tmp_path / "part")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [file.name for file in tmp_path.glob("part.partial*")] == ["part.partial-of-mine"]


@pytest.mark.slow
def test_two_processes_share_the_batches_and_go_on_with_their_shares(llama_dir: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.jsonl")
    measure_moments(llama_dir, data, tmp_path / "alone", MomentsSettings(batch_size=1, **FLOAT32))
    words = ("-m", "loki", "moments", llama_dir, "--data", data, "--batch-size", 1, "--dtype", "float32")
    words += ("--device", "cpu", "--output", tmp_path / "shared")
    first, other = run_together(2, *words)
    assert "Second moments over" in first.stdout
    assert not other.stdout
    alone, shared = load_file(tmp_path / "alone"), load_file(tmp_path / "shared")
    assert alone.keys() == shared.keys()
    for name, expected in alone.items():
        assert_close(shared[name], expected)
    assert Moments(tmp_path / "shared").origin == Moments(tmp_path / "alone").origin
    assert not list(tmp_path.glob("shared.partial*"))
    refused = run_together(2, *words, code=2)
    assert [done.stderr.count("exists already") for done in refused] == [1, 0]


def test_bad_input(llama_dir: Path, tmp_path: Path) -> None:
    data = write_texts(tmp_path / "texts.jsonl")
    with pytest.raises(LokiError, match=r"no text .*2 tokens"):
        measure_moments(llama_dir, write_texts(tmp_path / "short.jsonl", [[5]]), tmp_path / "m")
    with pytest.raises(LokiError, match="token id 4000"):
        measure_moments(llama_dir, write_texts(tmp_path / "other.jsonl", [[5, 4000]]), tmp_path / "m")
    with pytest.raises(LokiError, match="--batch-size 0"):
        MomentsSettings(batch_size=0)
    with pytest.raises(LokiError, match="exists already"):
        measure_moments(llama_dir, data, Path(data))
    with pytest.raises(LokiError, match="does not exist"):
        Moments(tmp_path / "nothing")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(LokiError, match="no second moments"):
        Moments(tmp_path / "other.safetensors")


def test_values_that_are_no_numbers_are_refused(llama_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "moments.safetensors"
    measure_moments(llama_dir, write_texts(tmp_path / "texts.jsonl"), output, MomentsSettings(**FLOAT32))
    tensors, origin = load_file(output), json.dumps(vars(Moments(output).origin))
    tensors["second_moment.1"][0, 3, 3] = torch.nan
    save_file(tensors, output, metadata={"format": FORMAT, "version": str(VERSION), "origin": origin})
    Moments(output).second_moment(0)
    with pytest.raises(LokiError, match=r"second_moment\.1 .*NaN"):
        Moments(output).second_moment(1)


def test_few_tokens_are_said(llama_dir: Path, tmp_path: Path) -> None:
    """46 tokens cannot tell the 48 inputs of the tiny model apart; 400 can."""
    few, enough = tmp_path / "few.safetensors", tmp_path / "enough.safetensors"
    measure_moments(llama_dir, write_texts(tmp_path / "few.jsonl"), few, MomentsSettings(**FLOAT32))
    advice = few_tokens_advice(few)
    assert advice is not None
    assert f"{sum(map(len, TEXTS))} tokens" in advice
    assert "48 input directions" in advice
    assert "384 tokens or more" in advice
    many = write_texts(tmp_path / "enough.jsonl", [list(range(5, 105))] * 4)
    measure_moments(llama_dir, many, enough, MomentsSettings(**FLOAT32))
    assert few_tokens_advice(enough) is None
