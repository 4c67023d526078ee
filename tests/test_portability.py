"""Nothing but `loki.system` calls what only POSIX has, and paths may hold spaces and letters of any language."""

import ast
import html
import json
from pathlib import Path

import pytest

import loki
from tests.cli.running import Shell, shell
from tests.tiny_models import save_tiny_model

__all__ = ["shell"]
SOURCE = Path(loki.__file__).parent
APART = SOURCE / "system.py"
MODULES = {"fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty", "pty", "msvcrt", "winreg"}
# Python's documentation says of these: "Availability: Unix", or that Windows does something else.
NAMES = {
    "os": {
        *("chown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp"),
        *("getuid", "kill", "killpg", "mkfifo", "mknod", "nice", "openpty", "posix_fadvise", "posix_fallocate"),
        *("sched_getaffinity", "sched_setaffinity", "setgid", "setpgid", "setsid", "setuid", "statvfs", "sync"),
        *("sysconf", "uname", "wait", "wait3", "wait4", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"),
    },
    "signal": {
        *("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2", "alarm"),
        *("pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"),
    },
    "time": {"clock_gettime", "tzset"},
    "socket": {"AF_UNIX", "socketpair"},
    "mmap": {"MAP_PRIVATE", "MAP_SHARED", "PROT_READ", "PROT_WRITE"},
}
OF_POPEN = {"preexec_fn", "start_new_session", "process_group", "pass_fds"}
PLACES = ("/tmp", "/dev/", "/proc/", "/etc/", "/var/", "/usr/", "/bin/")


def of_one_system(file: Path) -> list[str]:
    """What a module uses that only some systems have."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        used: list[str] = []
        if isinstance(node, ast.Import):
            used = [alias.name for alias in node.names if alias.name in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            used = [str(node.module)] if node.module in MODULES else [*names & NAMES.get(str(node.module), set())]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = [node.attr] if node.attr in NAMES.get(node.value.id, set()) else []
        elif isinstance(node, ast.Call):
            used = [word.arg for word in node.keywords if word.arg in OF_POPEN]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used = [node.value] if node.value.startswith(PLACES) else []
        found += [f"{file.relative_to(SOURCE)}:{node.lineno}: {name}" for name in used if hasattr(node, "lineno")]
    return found


def test_one_module_alone_calls_what_one_system_has() -> None:
    modules = [file for file in SOURCE.rglob("*.py") if file != APART]
    assert len(modules) > 100
    assert [use for file in modules for use in of_one_system(file)] == []


def test_the_search_finds_what_it_looks_for() -> None:
    found = " ".join(of_one_system(APART))
    assert all(name in found for name in ("fcntl", "msvcrt", "killpg", "SIGKILL", "start_new_session", "kill"))


@pytest.mark.slow
def test_paths_with_spaces_and_letters_of_many_languages(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "Größe & Maß, 模型 тест é'"
    folder.mkdir()
    model = save_tiny_model(folder / "my model")
    data, questions, output = folder / "neue Fakten.jsonl", folder / "вопросы 1.jsonl", folder / "läuft so"
    data.write_text('{"prompt": "Größe?", "completion": " 大"}\n' * 4, encoding="utf-8")
    questions.write_text('{"prompt": "однажды"}\n{"prompt": "es war einmal"}\n', encoding="utf-8")
    short = ("--max-steps", 2, "--learning-rate", 1e-2, "--batch-size", 2, "--quota", 25)
    files = ("--data", data, "--calibration", questions, "--output", output)
    said = shell.done("run", model, *files, *short, "--json")
    assert any("läuft so" in str(value) for value in json.loads(said.out).values())
    assert "LoKI: läuft so" in html.unescape((output / "report.html").read_text(encoding="utf-8"))
    shell.done("verify", model, output / "restored", "--positions", output / "positions.json")
    # And named from within, as relative paths.
    monkeypatch.chdir(folder)
    shell.done("select", "läuft so/scores.h5", "--quota", 10, "--output", "Größe 10%.json")
    shell.done("adapter", "my model", "--positions", "Größe 10%.json", "--output", "адаптер 1")
    shell.done("export-lora", "адаптер 1", "--full-rows", "--output", "lo ra")
    assert (folder / "lo ra" / "adapter_model.safetensors").is_file()
