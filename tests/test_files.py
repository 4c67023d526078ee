"""Nothing is half written, nothing is overwritten unasked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loki.errors import LokiError
from loki.files import atomic_directory, atomic_file, empty_directory, protect_inputs, refuse_existing, write_json
from loki.inputs import read_json


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
        with pytest.raises(LokiError, match=r"--overwrite .*remove"):
            protect_inputs(output, None, "org/hub-id", given)
    protect_inputs(tmp_path / "other", None, "org/hub-id", folder)


def test_a_file_is_no_place_for_an_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (atomic_file, atomic_directory):
        for output in (tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
            with pytest.raises(LokiError, match=r"because .*file is a file"), write(output, overwrite=True):
                pytest.fail("the block must not run")


def test_a_directory_is_no_output_file(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for overwrite in (False, True):
        with pytest.raises(LokiError, match="is a directory"), atomic_file(tmp_path / "empty", overwrite=overwrite):
            pytest.fail("the block must not run")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("old")
    for name, target in {"to-empty": "empty", "to-file": "file", "to-nothing": "nothing"}.items():
        (tmp_path / name).symlink_to(tmp_path / target)
    with atomic_directory(tmp_path / "to-empty") as temporary:
        (temporary / "fresh.txt").write_text("new")
    assert listing(tmp_path / "empty") == ["fresh.txt"]
    with pytest.raises(LokiError, match="--overwrite"), atomic_file(tmp_path / "to-file"):
        pytest.fail("the block must not run")
    for name, overwrite in {"to-file": True, "to-nothing": False}.items():
        with atomic_file(tmp_path / name, overwrite=overwrite) as temporary:
            temporary.write_text("new")
    assert [(tmp_path / name).read_text() for name in ("file", "nothing")] == ["new", "new"]
    assert all((tmp_path / name).is_symlink() for name in ("to-empty", "to-file", "to-nothing"))


def test_the_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LokiError, match="the folder you are in"), atomic_directory(Path()):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 200_000])
def test_json_that_python_cannot_hold(tmp_path: Path, text: str) -> None:
    (tmp_path / "value.json").write_text(text)
    with pytest.raises(LokiError, match="is not JSON"):
        read_json(tmp_path / "value.json", what="settings")


def leftover_of_a_dead_process(folder: Path, name: str, suffix: str) -> Path:
    """What a process that ran on this machine, and runs no more, left of `name`."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with atomic_file(folder / "probe") as temporary:
        machine = temporary.name.split(".")[2].partition("-")[0]
    (folder / "probe").unlink()
    return folder / f".{name}.{machine}-{ended.pid}.abcd1234{suffix}"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    leftover_of_a_dead_process(tmp_path, "out.txt", ".tmp").write_text("half")
    for suffix in (".tmp", ".gone"):
        leftover_of_a_dead_process(tmp_path, "model", suffix).mkdir()
    with atomic_file(tmp_path / "out.txt") as temporary:
        temporary.write_text("new")
    with atomic_directory(tmp_path / "model"):
        pass
    assert listing(tmp_path) == ["model", "out.txt"]


def test_what_a_running_process_writes_is_left_alone(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "out.txt", overwrite=True) as first:
        first.write_text("first")
        with atomic_file(tmp_path / "out.txt") as second:
            second.write_text("second")
        assert first.read_text() == "first"
        running = tmp_path / first.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
        running.write_text("of another process")
    with atomic_file(tmp_path / "out.txt", overwrite=True):
        assert running.exists()


def test_what_was_moved_aside_is_put_back(tmp_path: Path) -> None:
    """Killed between moving the old directory away and putting the new one in its place."""
    old = leftover_of_a_dead_process(tmp_path, "model", ".old")
    old.mkdir()
    (old / "weights").write_text("old")
    with pytest.raises(LokiError, match="--overwrite"), atomic_directory(tmp_path / "model"):
        pytest.fail("the block must not run")
    assert (tmp_path / "model" / "weights").read_text() == "old"
    with atomic_directory(tmp_path / "model", overwrite=True):
        pass
    assert listing(tmp_path) == ["model"]


def test_a_directory_with_leftovers_alone_is_empty(tmp_path: Path) -> None:
    leftover_of_a_dead_process(tmp_path, "run.json", ".tmp").write_text("half")
    refuse_existing(tmp_path, overwrite=False)
    (tmp_path / "mine").touch()
    with pytest.raises(LokiError, match="exists already"):
        refuse_existing(tmp_path, overwrite=False)


@pytest.mark.parametrize("output", ["data", "data/inner", "data/inner/deep", ".", "link", "link/inner", "hard"])
def test_no_output_over_in_or_around_an_input(tmp_path: Path, output: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "hard").hardlink_to(tmp_path / "data" / "file")
    source = tmp_path / "data" / "file" if output == "hard" else tmp_path / "data"
    with pytest.raises(LokiError, match=r"holds the input|lies in the input"):
        protect_inputs(tmp_path / output, None, "a/hub-id", source)
    protect_inputs(tmp_path / "elsewhere", source)


def test_what_another_process_has_written_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(LokiError, match="exists already"), atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("mine")
        (tmp_path / "file").write_text("theirs")
    with pytest.raises(LokiError, match="exists already"), atomic_directory(tmp_path / "out") as temporary:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/theirs").touch()
    assert (tmp_path / "file").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "out", "theirs"]


def test_what_stood_there_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    move = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise KeyboardInterrupt
        return move(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(tmp_path / "out", overwrite=True) as temporary:
        (temporary / "new").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "out"]


def test_two_that_replace_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out", overwrite=True) as temporary:
        (temporary / "first").touch()
        with atomic_directory(tmp_path / "out", overwrite=True) as other:
            (other / "second").touch()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["second"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["first", "out"]


def test_the_last_entry_of_a_directory_goes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/inner").mkdir(parents=True)
    for name in ("a/inner/x", "run.json", "z"):
        (tmp_path / name).touch()
    moved: list[str] = []
    move = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: moved.append(self.name) or move(self, target))
    empty_directory(tmp_path, "run.json")
    assert sorted(moved[:2]) == ["a", "z"] and moved[2:] == ["run.json"]
    assert not list(tmp_path.iterdir())
