"""The command line as scripts see it: status, standard error, files; most of it in processes of its own."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest

from cloudem.cli import command_line
from cloudem.cli.command_line import JobCommand, RunOptions, _split
from cloudem.cli.commands import DeclaredCommand
from cloudem.cloud.planning.work import Size
from cloudem.errors import CloudemError, MissingInputError, ParameterError
from cloudem.jobs.base import JOBS, Job, find_job
from cloudem.jobs.parameters import option_of
from cloudem.runs.workflow import read_workflow
from tests.counting_job import Count

ROOT = Path(__file__).parents[2]


def count(*arguments: str, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.counting_job", *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        # with a cache of its own, where no speed of this machine was kept
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "CLOUDEM_CACHE": f"{cwd.parent}/cache"},
        capture_output=True,
        text=True,
        **options,
    )


def values_of(declaration: type, line: list[str]) -> dict[str, object]:
    """Parse what follows a job's name, as the command line does, and return the values for its declaration."""
    command = JobCommand(declaration)
    return _split(command.make_context(declaration.name, line).params)[0]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cloudem.cli\n"
        "try: cloudem.cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'numpy', 'numba', 'distributed', 'dask', 'zarr', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for name in JOBS:
        assert re.search(rf"^  {name} +\S", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", JOBS)
def test_help_of_a_job_shows_every_parameter_with_its_unit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    declaration = find_job(name)
    with pytest.raises(click.exceptions.Exit):
        JobCommand(declaration).make_context(name, ["--help"])
    shown = capsys.readouterr().out
    for field in declaration.model_fields:
        assert option_of(field) in shown or field.upper() in shown
    assert "--scheduler" in shown
    assert all(example in shown for example in declaration.examples)


def test_help_says_unit_default_bounds_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        JobCommand(Count).make_context("count", ["--help"])
    shown = capsys.readouterr().out
    assert re.search(r"^NUMBERS TEXT … +required +numbers to count to", shown, re.MULTILINE)
    assert re.search(r"^--edge-A NUMBER +Å +10 +width of the edge \(> 0, ≤ 50\)", shown, re.MULTILINE)
    assert re.search(r"^--window-px INTEGER INTEGER +px +1 2 +first and last pixel", shown, re.MULTILINE)
    assert re.search(r"^--kind up\|down +up +direction", shown, re.MULTILINE)
    assert re.search(r"^--loud\|--no-loud +yes +say it", shown, re.MULTILINE)
    assert re.search(r"^--limit INTEGER +none +where to stop \(≥ 1\)", shown, re.MULTILINE)


def test_options_become_values() -> None:
    line = "3 4 --edge-a 2.5 --window_px 5 9 --kind down --limit 7 --no-loud --out result"
    job = Count(**values_of(Count, shlex.split(line)))
    assert job.numbers == ("3", "4")
    assert (job.edge_A, job.window_px, job.kind, job.limit, job.loud) == (2.5, (5, 9), "down", 7, False)
    assert job == Count(**job.model_dump())


def test_what_is_not_given_is_left_to_the_declaration() -> None:
    assert values_of(Count, ["3", "--out", "x"]) == {"numbers": ("3",), "out": "x"}


def declared(command: click.Command) -> list[DeclaredCommand]:
    if isinstance(command, click.Group):
        return [each for one in command.commands.values() for each in declared(one)]
    return [command] if isinstance(command, DeclaredCommand) else []


def examples() -> list[str]:
    """Return the commands that pages show in their blocks of code, and those that help texts show."""
    found = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        inside = False
        for line in page.read_text().replace("\\\n", "").splitlines():
            if line.startswith("```"):
                inside = not inside
            elif inside and line.startswith("cloudem "):
                found.append(line)
    found += [example for name in JOBS for example in find_job(name).examples]
    found += [example for command in declared(command_line.COMMANDS) for example in command.declaration.examples]
    return list(dict.fromkeys(example for example in found if example.startswith("cloudem ")))


@pytest.mark.parametrize("example", examples())
def test_examples_are_commands_that_exist(example: str) -> None:
    _, *line = shlex.split(example, comments=True)
    command: click.Command | None = command_line.COMMANDS
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), line.pop(0))
    if isinstance(command, DeclaredCommand):
        given = command.make_context(str(command.name), line).params
        values = {key: value for key, value in given.items() if value not in (None, ())}
        assert command.declaration(**values).name.split()[-1] == command.name
    elif isinstance(command, command_line.JobCommand):
        assert command.declaration(**values_of(command.declaration, line)).name == command.name
    else:
        assert command is not None
        command.make_context(str(command.name), line)


def test_a_job_runs_and_leaves_log_and_result(tmp_path: Path) -> None:
    result = count("count", "3", "4", "--out", "result", "--threads", "2", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "result/total").read_text() == "7"
    lines = [line.split("  ", 1)[1] for line in result.stdout.splitlines()]
    assert lines[1] == "runs on: Dask, 2 threads of this process"
    assert "iteration 1, resolution 9.88 Å, total 7" in lines
    assert lines[-2:] == ["that was all", f"count finished in {lines[-1].split()[3]} s: {tmp_path}/result"]
    log = (tmp_path / "result/log.txt").read_text()
    assert "DEBUG   parameter edge_A = 10.0" in log
    assert "WARNING that was all" in log


def test_a_second_run_appends_to_the_log(tmp_path: Path) -> None:
    for _ in range(2):
        assert count("count", "1", "--out", "result", "--executor", "serial", cwd=tmp_path).returncode == 0
    assert (tmp_path / "result/log.txt").read_text().count("count finished") == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("count --out x", "count needs NUMBERS: numbers to count to"),
        ("count 1", "count needs --out: folder for the results"),
        ("count 1 --out x --edge-A -3", "--edge-A: got '-3', needs greater than 0, in Å (width of the edge)"),
        ("count 1 --out x --limit 2.5", "--limit: got '2.5', needs a valid integer"),
        ("count 1 --out x --kind side", "--kind: got 'side', needs up or down (direction)"),
        ("count 1 --out x --kind down", "count --kind down needs --limit: where to stop"),
        ("count 1 --out x --edge-B 3", "No such option '--edge-b'"),
        ("count 1 --out x --limti 3", "'--limit'? See cloudem count --help"),
        ("count 1 --out x --threads 0", "--threads: got '0', needs greater than or equal to 1"),
        ("cuont 1", "No such command 'cuont'"),
        ("sweep", "No such command 'sweep'. Did you mean 'cluster sweep'? See cloudem --help"),
        ("count 1 --out x --executor serial --fail early", "stack has 3 images, table has 4; export them again"),
        ("count 1 --out x --executor serial --fail oddly", "unexpected KeyError: 'foo'; run again with --debug"),
        ("count 1 --out x --executor serial --fail disk", "result/map: No space left on device"),
        ("count 1 --out x --memory-GiB 1e6", "this needs 1000000.00 GiB of memory, but the machine has"),
        ("count 1 --out x --scheduler nonsense", "--scheduler: got 'nonsense', needs an address"),
        ("run nothing.toml", "nothing.toml: no such file"),
    ],
)
def test_a_failure_is_one_line_and_status_1(line: str, message: str, tmp_path: Path) -> None:
    result = count(*shlex.split(line), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("cloudem: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    if "oddly" not in line and "disk" not in line:
        assert not (tmp_path / "x").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = count("count", "1", "--out", "x", "--executor", "serial", "--fail", "oddly", "--debug", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "Traceback" in (tmp_path / "x/log.txt").read_text()


def test_dry_run_plans_and_leaves_nothing(tmp_path: Path) -> None:
    result = count("count", "1", "2", "--out", "x", "--dry-run", "--executor", "serial", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "memory 2 MiB, disk 1 MiB, time 22.1 s to 2:22" in result.stdout
    assert "counting: 2 numbers, in parallel" in result.stdout
    assert list(tmp_path.iterdir()) == []


def gpus_of(job: Job) -> bool:
    return job.work({"particles": Size(1000, (64, 64), 4.0)}).on_gpu


@pytest.mark.parametrize(("name", "gpus"), [("refine3d", True), ("reconstruct", False)])
def test_only_jobs_that_use_gpus_get_worker_processes_on_them(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: bool
) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr("cloudem.execution.dask.executor.DaskExecutor", lambda **options: given.append(options))
    monkeypatch.setattr("cloudem.jobs.runner.run_job", lambda job, make, *rest, **named: make(gpus_of(job)))
    arguments = ["--particles", "p.zarr", "--out", "o"]
    if name == "refine3d":
        arguments += ["--reference", "r.mrc", "--diameter-A", "100"]
    command_line.COMMANDS.main([name, *arguments], standalone_mode=False)
    assert [options["gpus"] for options in given] == [gpus]


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ({"threads": 5}, 5),
        ({"threads": 3, "workers": 2}, 6),
        ({"executor": "serial", "threads": 8}, 1),
        ({"scheduler": "tcp://elsewhere:8786"}, 0),  # they take another machine's memory
    ],
)
def test_the_plan_counts_the_tasks_of_this_machine(options: dict[str, Any], tasks: int) -> None:
    assert RunOptions(**options).tasks == tasks


def test_a_file_runs_one_job_or_several(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text('job = "count"\nnumbers = ["5"]\nout = "one"\nedge_A = 3')
    (tmp_path / "two.toml").write_text(
        '[[job]]\nname = "count"\nnumbers = ["1"]\nout = "a"\n[[job]]\nname = "count"\nnumbers = ["2"]\nout = "b"\n'
    )
    for name in ("one", "two"):
        result = count("run", f"{name}.toml", "--executor", "serial", cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
    assert [(tmp_path / folder / "total").read_text() for folder in ("one", "a", "b")] == ["5", "1", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job = ", "is not valid TOML"),
        ("out = 'x'", "names no job"),
        ("job = 'refine'", "there is no job 'refine', did you mean 'refine3d'"),
        ("job = 'mask'\nvolume_x = 1\nout = 'x'", "mask has no parameter 'volume_x'"),
        ("[[job]]\nout = 'x'", "names no job"),
        ("a = 1\n[[job]]\nname = 'mask'", "has a outside of [[job]]"),
    ],
)
def test_a_bad_job_file_is_named_and_explained(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        read_workflow(str(path))


def test_a_missing_job_file_is_a_missing_input() -> None:
    with pytest.raises(MissingInputError) as caught:
        read_workflow("nowhere.toml")
    assert isinstance(caught.value, CloudemError)


@pytest.mark.parametrize(("number", "how"), [(signal.SIGTERM, "--no-processes"), (signal.SIGINT, "--processes")])
def test_an_interrupt_ends_soon_with_one_line(number: signal.Signals, how: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.counting_job", "count", "1", "2", "--out", "x", "--task-s", "30", how]
    with subprocess.Popen(
        [*command, "--threads", "1"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "x").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        sent = time.monotonic()
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "cloudem: interrupted; run the same command again to resume\n"
    assert time.monotonic() - sent < 12


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )


def test_a_command_may_advise_something_else() -> None:
    """As submit does: the same command would begin another run."""
    code = """
import os, signal, time
from cloudem.interrupts import advise, guarded, watch
def command():
    advise("the run continues")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
watch()
raise SystemExit(guarded(command))
"""
    ended = python(code)
    assert (ended.returncode, ended.stderr) == (130, "cloudem: interrupted; the run continues\n")


@pytest.mark.parametrize("how", ["swallowed", "disguised", "unraisable"])
def test_an_interrupt_that_a_library_made_something_of_counts(how: str, tmp_path: Path) -> None:
    ended = count("count", "1", "--out", "x", "--fail", how, "--executor", "serial", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "cloudem: interrupted; run the same command again to resume\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment_s", [0.0, 0.05, 0.15])
def test_an_interrupt_during_imports_ends_with_one_line(number: signal.Signals, moment_s: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cloudem", "--help"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not handles(process.pid, signal.SIGINT) or not handles(process.pid, signal.SIGTERM):
            time.sleep(0.001)
        time.sleep(moment_s)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    line = "cloudem: interrupted; run the same command again to resume\n"
    assert (process.returncode, errors) in {(130, line), (0, "")}


def test_handlers_are_set_before_anything_is_imported_that_takes_a_while() -> None:
    code = (
        "import os, signal, sys\n"
        "def stop(*_): print(*sorted(set(sys.modules) - before)), sys.exit()\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "before, signal.signal = set(sys.modules), stop\n"
        "from cloudem.__main__ import main\n"
        "print('imported')\n"
        "main()"
    )
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    # what imports the entry point again, as worker processes do, gets no handlers
    assert ended.stdout == "imported\n__future__ cloudem cloudem.__main__ cloudem.interrupts\n"


def test_nothing_is_said_after_an_interrupt_but_one_line() -> None:
    code = (
        "import os, signal, sys, cloudem.interrupts as i\n"
        "def command():\n"
        "    try: os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally: sys.stderr.write('torn down\\n'); os.write(2, b'without a word\\n')\n"
        "raise SystemExit(i.guarded(command))"
    )
    ended = python(code)
    line = "cloudem: interrupted; run the same command again to resume\n"
    assert (ended.returncode, ended.stderr) == (130, line)


def test_what_clears_up_after_a_process_that_left_on_the_spot_says_nothing() -> None:
    code = (
        "import multiprocessing, os, cloudem.interrupts as i\n"
        "i.watch()\n"
        "i.keep_from_children()\n"
        "left = multiprocessing.get_context('spawn').Semaphore()\n"
        "os._exit(130)"
    )
    ended = python(code)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_an_interrupt_while_the_interpreter_is_taken_down_changes_nothing() -> None:
    code = (
        "import os, signal, cloudem.interrupts as i\n"
        "class Last:\n"
        "    def __init__(self): self.kill, self.me, self.number = os.kill, os.getpid(), signal.SIGINT\n"
        "    def __del__(self): self.kill(self.me, self.number)\n"
        "last = Last()\n"
        "raise SystemExit(i.guarded(lambda: 0))"
    )
    ended = python(code)
    assert (ended.returncode, ended.stderr) == (0, "")


def handles(pid: int, number: int) -> bool:
    """Return whether a process has a handler of its own for a signal."""
    (caught,) = re.findall(r"^SigCgt:\s(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_an_interrupt_in_code_made_from_text_has_the_same_status(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.counting_job", "count", "1", "--out", "x", "--fail", "interrupted"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True
    )
    assert ended.returncode == 130


class Stalling(BaseHTTPRequestHandler):
    """Answers the first request and no other."""

    stalled = threading.Event()
    over = threading.Event()
    first = True

    def do_GET(self) -> None:
        if not Stalling.first:
            Stalling.stalled.set()
            Stalling.over.wait(30)
            self.close_connection = True
            return
        Stalling.first = False
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_an_interrupt_ends_the_wait_for_a_server(tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    with ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        threading.Thread(target=server.serve_forever).start()
        keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "knows"}
        with subprocess.Popen(
            [sys.executable, "-m", "cloudem", "report", "s3://bucket/x"],
            env={**keys, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}", "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert Stalling.stalled.wait(30)
                sent = time.monotonic()
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=20)
            finally:
                process.kill()
                Stalling.over.set()
                server.shutdown()
    assert (process.returncode, errors) == (130, "cloudem: interrupted; run the same command again to resume\n")
    assert time.monotonic() - sent < 10


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    command = (
        f"{sys.executable} -m tests.counting_job count 1 --out x --executor serial | true; exit ${{PIPESTATUS[0]}}"
    )
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "x/total").exists()
