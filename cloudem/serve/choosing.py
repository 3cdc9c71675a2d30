"""What somebody has chosen on a page: the command, the step of a workflow, and the files that it becomes.

What can be chosen says the job that the choice becomes (`cloudem.jobs.page_choices`): classes of ``select``, limits and
lists of ``select_micrographs``. Nothing is ever run. Nothing is written either, unless ``cloudem serve`` was told to
allow it.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudem.errors import OutputExistsError, ParameterError
from cloudem.io.storage.location import absolute, contents, join, object_store, put_if_absent, read_bytes, write_bytes
from cloudem.jobs.base import Job
from cloudem.jobs.page_choices import PageChoice
from cloudem.jobs.parameters import is_positional, option_of
from cloudem.jobs.select import Select, class_list, class_numbers
from cloudem.jobs.toml import LARGEST, step_toml, value_toml
from cloudem.runs.automatic import AUTO_FILE

if TYPE_CHECKING:
    from cloudem.runs.project import JobState

WATCHED_FILE = "live.toml"
"""What the workflow of a session that is watched is called."""

CHANGED = {AUTO_FILE: "run", WATCHED_FILE: "watch --workflow"}
"""Workflows of which a step may be changed, and the command that carries each on."""


class ChosenStep(NamedTuple):
    """What a choice becomes.

    Attributes
    ----------
    command
        That does what was chosen.
    step
        The same as a step of a workflow.
    file
        Name of the workflow in the project that would be written.
    text
        What would stand in it.
    said
        What writing it means.
    then
        Command that runs it.
    lists
        Files with names that it reads, and what would stand in them; written with it.
    """

    command: str
    step: str
    file: str
    text: str
    said: str
    then: str
    lists: Mapping[str, str] = {}


def choice_of(project: str, path: str, classes: str) -> ChosenStep:
    """Return what a choice of classes of a job becomes.

    Parameters
    ----------
    project
        Its URL.
    path
        Of the job's results in it; empty where the project is these results.
    classes
        Numbers of the classes.

    Raises
    ------
    ParameterError
        They are no numbers of classes.
    StorageError
        The project cannot be read.
    """
    numbers = class_list(class_numbers(classes))
    return chosen_step(project, path, Select, {"classes": numbers}, "these classes")


def chosen_step(
    project: str,
    path: str,
    job: type[Job],
    values: Mapping[str, bool | float | str],
    what: str,
    lists: Mapping[str, Collection[str]] | None = None,
) -> ChosenStep:
    """Return what a choice on the page of a job's results becomes.

    Parameters
    ----------
    project
        Its URL.
    path
        Of the results in it; empty where the project is these results.
    job
        That the choice becomes; it has a `PageChoice`.
    values
        Parameters that were chosen.
    what
        These in words: "these classes".
    lists
        Names for parameters that are files of them; what is empty is left out.

    Raises
    ------
    StorageError
        The project cannot be read.
    """
    choice, project = _choice(job), absolute(project)
    source = join(project, path)
    there = set(contents(project)) if path else set()
    endings = [".toml", *(f"-{name}.txt" for name in choice.lists)]
    name = next(n for n in _names(choice.name) if not there & {n, *(f"{n}{end}" for end in endings)})
    out = join(project, name) if path else f"{project}-{name}"
    files = {
        f"{name}-{which}.txt": "".join(f"{line}\n" for line in names) for which, names in (lists or {}).items() if names
    }
    listed = {which: f"{name}-{which}.txt" for which, names in (lists or {}).items() if names}
    beside = project if path else project.rpartition("/")[0]
    given = {**values, **{which: join(beside, file) for which, file in listed.items()}}
    command = shlex.join(
        ["cloudem", job.name.replace("_", "-"), *_words(job, {choice.source: source, **given}), "--out", out]
    )
    values = {**values, **listed}
    step = step_toml(job.name, name, {choice.source: path or source, **values})
    if not path:  # what is shown is the results of a job, among which no workflow belongs
        return ChosenStep(command, step, "", "", "", "", files)
    for file, verb in CHANGED.items():
        before = (read_bytes(join(project, file)) or b"") if file in there else b""
        changed = changed_workflow(before[:LARGEST].decode(errors="replace"), project, source, values, job)
        if changed is not None:
            said = f"step {changed.step} of {file} takes {what} then"
            then = f"cloudem {verb} {shlex.quote(join(project, file))}"
            return ChosenStep(command, step, file, changed.text, said, then, files)
    text = f"project = {value_toml(project)}\n\n{step}"
    then = f"cloudem run {shlex.quote(join(project, f'{name}.toml'))}"
    return ChosenStep(command, step, f"{name}.toml", text, "it is a workflow of this one step", then, files)


def _choice(job: type[Job]) -> PageChoice:
    if job.page_choice is None:
        raise ParameterError(f"nothing of {job.name} can be chosen on a page")
    return job.page_choice


def _words(job: type[Job], values: Mapping[str, bool | float | str]) -> Iterator[str]:
    """Give the words of a command for these parameters, those without an option first."""
    fields = job.model_fields
    yield from (str(values[name]) for name in values if is_positional(fields[name]))
    for name, value in values.items():
        if not is_positional(fields[name]):
            yield from (option_of(name), f"{value:.10g}" if isinstance(value, float) else str(value))


def sorted_from(job: JobState) -> str:
    """Return the results, as a path in the project, that what is on the page of a job is chosen from.

    A selection holds no more what it has left out, which somebody may want back: chosen is from what it was made of.
    """
    sources = {"select": "particles", "select_micrographs": "micrographs"}
    source = sources.get(job.kind)
    return job.inputs.get(source, job.path) if source and job.path else job.path


def write_choice(project: str, choice: ChosenStep) -> None:
    """Write the files of a choice into the project, each whole or not at all.

    Raises
    ------
    OutputExistsError
        There is another one of that name by now.
    StorageError
        It cannot be written.
    """
    new = {**choice.lists, **({choice.file: choice.text} if choice.file not in CHANGED else {})}
    for file, text in new.items():
        if put_if_absent(object_store(project), file, text.encode()) is None:
            raise OutputExistsError(f"{file} is there by now; choose again")
    if choice.file in CHANGED:
        write_bytes(join(project, choice.file), choice.text.encode())


class ChangedWorkflow(NamedTuple):
    """The text of a workflow whose step, of that name, does what was chosen."""

    step: str
    text: str


def changed_workflow(
    text: str, project: str, source: str, values: Mapping[str, bool | float | str], job: type[Job]
) -> ChangedWorkflow | None:
    """Return a workflow whose step that chooses from some results does it so; None if it has no such step.

    Only the lines of that step that say what it chooses are changed; that nothing else is, is checked.

    Parameters
    ----------
    text
        Of the file.
    project, source
        URLs of the project, and of the results.
    values
        Parameters that were chosen.
    job
        That they are of.
    """
    choice = _choice(job)
    try:
        table = tomllib.loads(text)
        steps = table.get("step", [])
        places = [_place(project, step, choice.source) if step.get("job") == job.name else "" for step in steps]
    except (tomllib.TOMLDecodeError, AttributeError, TypeError, RecursionError):  # not a workflow, or none of ours
        return None
    parts = re.split(r"(?m)^(?=\[\[step\]\])", text)
    if places.count(source) != 1 or len(parts) != len(steps) + 1 or table.get("project") != project:
        return None
    number = places.index(source)
    before, part = steps[number], parts[number + 1]
    body = part.rstrip("\n")
    kept = [line for line in body.split("\n") if not re.match(rf"\s*({'|'.join(choice.parameters)})\s*=", line)]
    lines = [f"{name} = {value_toml(value)}" for name, value in values.items()]
    parts[number + 1] = "\n".join([*kept, *lines]) + part[len(body) :]
    after = "".join(parts)
    wanted = {key: value for key, value in before.items() if key not in choice.parameters} | dict(values)
    expected: dict[str, Any] = {**table, "step": [*steps[:number], wanted, *steps[number + 1 :]]}
    try:
        right = tomllib.loads(after) == expected
    except tomllib.TOMLDecodeError:
        right = False
    return ChangedWorkflow(str(before.get("name") or before["job"]), after) if right else None


def _place(project: str, step: Mapping[str, Any], source: str) -> str:
    place = str(step.get(source, ""))
    return place if place.startswith("/") else join(project, place)


def _names(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def check_writing(project: str, host: str, allowed: bool) -> None:
    """Refuse to write for whoever looks, unless that can only be somebody on this machine.

    Raises
    ------
    ParameterError
        Says what to do.
    """
    from cloudem.io.storage.location import is_local
    from cloudem.runs.webhook import only_here

    if allowed and not only_here(host):
        raise ParameterError(
            f"--allow-writing and --host {host} do not go together: others could write here. Leave --host out, and "
            "use a tunnel: ssh -L 8765:localhost:8765"
        )
    if allowed and not is_local(project):
        raise ParameterError(
            f"--allow-writing: {project} is no folder, and workflow files are read from folders; leave it out, and "
            "copy the step from the page"
        )
