"""What differs is said in words for people: values of settings, never hashes."""

from loki.artefacts.differences import changes, differences

ONE, OTHER = "0f" * 16, "a1" * 32


def test_changes() -> None:
    assert changes({"seed": 42, "steps": 1}, {"seed": 42, "steps": 1}) == ""
    assert changes({"seed": 42}, {"seed": 7, "data": "a"}) == "seed was 42, now 7; data was None, now a"


def test_differences() -> None:
    first, second = {"steps": 7, "dtype": "float32", "seed": 1}, {"steps": 9, "dtype": "float32", "seed": 2}
    assert differences(first, second, ("steps", "dtype")) == ["steps 7 and 9"]


def test_hashes_are_not_shown() -> None:
    first, second = {"data": ONE, "model_fingerprint": ONE}, {"data": OTHER, "model_fingerprint": OTHER}
    assert changes(first, second) == "other training data; other weights of the model"
    assert differences(first, second, ("model_fingerprint",)) == ["other weights of the model"]
    assert changes({"eval_data": None}, {"eval_data": ONE}) == "other held-out data"
    assert changes({"positions": ONE, "replay": None}, {"positions": OTHER, "replay": ONE}) == (
        "other positions; other data of --replay"
    )
    assert changes({"new_field": ONE}, {"new_field": OTHER}) == "other content of new_field"
