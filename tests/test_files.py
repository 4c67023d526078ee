"""Nothing is half written, nothing is overwritten unasked."""

import os
from pathlib import Path

import pytest

from loki.errors import LokiError
from loki.files import atomic_directory, atomic_file, protect_inputs, read_json, write_json


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
        assert listing(tmp_path) == [temporary.name]
    assert listing(tmp_path) == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "new"


def test_failed_file_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "out.txt", overwrite=True) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert listing(tmp_path) == ["out.txt"]
    assert (tmp_path / "out.txt").read_text() == "old"


def test_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    with pytest.raises(LokiError, match="--overwrite"), atomic_file(tmp_path / "out.txt"):
        pytest.fail("the block must not run")


def test_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with atomic_file(tmp_path / "out.txt") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(old)
    assert (tmp_path / "out.txt").stat().st_mode & 0o777 == 0o644


def test_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.txt").write_text("old")
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "fresh.txt").write_text("new")
        assert listing(target) == ["stale.txt"]
    assert listing(target) == ["fresh.txt"]
    assert listing(tmp_path) == ["model"]


def test_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "kept.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True) as temporary:
        (temporary / "half.txt").write_text("new")
        raise RuntimeError
    assert listing(target) == ["kept.txt"]
    assert listing(tmp_path) == ["model"]


def test_empty_directory_counts_as_absent(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with atomic_directory(tmp_path / "model") as temporary:
        (temporary / "fresh.txt").write_text("new")
    assert listing(tmp_path / "model") == ["fresh.txt"]


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"é": [1, 2]})
    assert read_json(tmp_path / "value.json", what="settings") == {"é": [1, 2]}
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(LokiError, match=r"settings .*broken\.json is not JSON"):
        read_json(tmp_path / "broken.json", what="settings")
    with pytest.raises(LokiError, match="does not exist"):
        read_json(tmp_path / "absent.json", what="settings")


def test_an_output_may_not_remove_an_input(tmp_path: Path) -> None:
    folder, file = tmp_path / "models" / "base", tmp_path / "models" / "base" / "config.json"
    folder.mkdir(parents=True)
    file.touch()
    (tmp_path / "link").symlink_to(folder)
    for output, given in [(folder, folder), (folder, file), (tmp_path / "models", file), (tmp_path / "link", folder)]:
        with pytest.raises(LokiError, match="--overwrite would remove"):
            protect_inputs(output, None, "org/hub-id", given)
    for output in (tmp_path / "other", folder / "restored", file):
        protect_inputs(output, None, "org/hub-id", folder)
