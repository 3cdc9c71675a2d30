"""Classes that somebody has clicked on a page: the command, the step of a workflow, and the file that they become.

Nothing is ever run. Nothing is written either, unless ``cloudem serve`` was told to allow it.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudem.errors import OutputExistsError, ParameterError
from cloudem.io.storage.location import absolute, contents, join, object_store, put_if_absent, read_bytes, write_bytes
from cloudem.jobs.select import class_list, class_numbers
from cloudem.jobs.toml import LARGEST, step_toml, value_toml
from cloudem.runs.automatic import AUTO_FILE

if TYPE_CHECKING:
    from cloudem.runs.project import JobState

NAME = "good"
"""Of a selection, with a number behind it where there is one already."""

CHOOSING = ("auto", "classes", "not_classes")
"""Parameters of a selection that a choice of classes takes the place of."""


class ChosenClasses(NamedTuple):
    """What a choice of classes becomes.

    Attributes
    ----------
    classes
        Their numbers, as ``select`` reads them.
    command
        That selects them.
    step
        The same as a step of a workflow.
    file
        Name of the file in the project that would be written.
    text
        What would stand in it.
    said
        What writing it means.
    then
        Command that runs it.
    """

    classes: str
    command: str
    step: str
    file: str
    text: str
    said: str
    then: str


def choice_of(project: str, path: str, classes: str) -> ChosenClasses:
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
    numbers, project = class_list(class_numbers(classes)), absolute(project)
    source = join(project, path)
    there = set(contents(project)) if path else set()
    name = next(name for name in _names() if name not in there and f"{name}.toml" not in there)
    out = join(project, name) if path else f"{project}-{name}"
    command = ["cloudem", "select", "--particles", source, "--classes", numbers, "--out", out]
    step = step_toml("select", name, {"particles": path or source, "classes": numbers})
    given = (numbers, shlex.join(command), step)
    if not path:  # what is shown is the results of a job, among which no workflow belongs
        return ChosenClasses(*given, "", "", "", "")
    before = (read_bytes(join(project, AUTO_FILE)) or b"") if AUTO_FILE in there else b""
    changed = changed_workflow(before[:LARGEST].decode(errors="replace"), project, source, numbers)
    if changed is not None:
        file, text, said = AUTO_FILE, changed.text, f"step {changed.step} of {AUTO_FILE} takes these classes then"
    else:
        file, text = f"{name}.toml", f"project = {value_toml(project)}\n\n{step}"
        said = "it is a workflow of this one step"
    return ChosenClasses(*given, file, text, said, f"cloudem run {shlex.quote(join(project, file))}")


def sorted_from(job: JobState) -> str:
    """Return the results, as a path in the project, that the classes on the page of a job are chosen from.

    A selection holds no more what it has left out, which somebody may want back: chosen is from what it was made of.
    """
    return job.inputs.get("particles", job.path) if job.kind == "select" and job.path else job.path


def write_choice(project: str, choice: ChosenClasses) -> None:
    """Write the file of a choice into the project, whole or not at all.

    Raises
    ------
    OutputExistsError
        There is another one of that name by now.
    StorageError
        It cannot be written.
    """
    if choice.file == AUTO_FILE:
        write_bytes(join(project, AUTO_FILE), choice.text.encode())
    elif put_if_absent(object_store(project), choice.file, choice.text.encode()) is None:
        raise OutputExistsError(f"{choice.file} is there by now; choose again")


class ChangedWorkflow(NamedTuple):
    """The text of a workflow whose step, of that name, takes other classes."""

    step: str
    text: str


def changed_workflow(text: str, project: str, source: str, classes: str) -> ChangedWorkflow | None:
    """Return a workflow whose step that selects from some results takes these classes; None if it has no such step.

    Only the lines of that step that say what it selects are changed; that nothing else is, is checked.

    Parameters
    ----------
    text
        Of the file.
    project, source
        URLs of the project, and of the results.
    classes
        Their numbers.
    """
    try:
        table = tomllib.loads(text)
        steps = table.get("step", [])
        places = [_place(project, step) if step.get("job") == "select" else "" for step in steps]
    except (tomllib.TOMLDecodeError, AttributeError, TypeError, RecursionError):  # not a workflow, or none of ours
        return None
    parts = re.split(r"(?m)^(?=\[\[step\]\])", text)
    if places.count(source) != 1 or len(parts) != len(steps) + 1 or table.get("project") != project:
        return None
    number = places.index(source)
    before, part = steps[number], parts[number + 1]
    body = part.rstrip("\n")
    kept = [line for line in body.split("\n") if not re.match(rf"\s*({'|'.join(CHOOSING)})\s*=", line)]
    parts[number + 1] = "\n".join([*kept, f"classes = {value_toml(classes)}"]) + part[len(body) :]
    after = "".join(parts)
    wanted = {key: value for key, value in before.items() if key not in CHOOSING} | {"classes": classes}
    expected: dict[str, Any] = {**table, "step": [*steps[:number], wanted, *steps[number + 1 :]]}
    try:
        right = tomllib.loads(after) == expected
    except tomllib.TOMLDecodeError:
        right = False
    return ChangedWorkflow(str(before.get("name") or before["job"]), after) if right else None


def _place(project: str, step: Mapping[str, Any]) -> str:
    place = str(step.get("particles", ""))
    return place if place.startswith("/") else join(project, place)


def _names() -> Any:
    yield NAME
    number = 2
    while True:
        yield f"{NAME}-{number}"
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
