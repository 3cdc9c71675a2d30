"""Where the stacks that a table names are, in folders or elsewhere, and what their headers say.

A table that is not in a folder may come from anybody, so that what it names is looked for under the bucket, host or
prefix that the user gave and nowhere else, whatever ``..`` there is in the name.
"""

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from obstore.exceptions import PermissionDeniedError

from cloudem import traffic
from cloudem.errors import MissingInputError, StorageError
from cloudem.io.formats.mrc import HEADER_BYTES, MrcHeader, header_of
from cloudem.io.images.remote import in_threads
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.location import (
    absolute,
    first_bytes,
    folder_of,
    is_fsspec,
    is_local,
    join,
    object_store,
    read_start,
    storage_errors,
)


class Stack(NamedTuple):
    """A stack of images.

    Attributes
    ----------
    place
        Its path or URL.
    header
        Checked against its size.
    root
        Of what is not in a folder, the URL under which the table's names are looked for; empty elsewhere.
    etag
        Of the object whose header was read, or what tells its versions apart; empty elsewhere.
    """

    place: str
    header: MrcHeader
    root: str = ""
    etag: str = ""


class _Names(Protocol):
    """What names of stacks may mean."""

    bases: list[str]
    """Where names may start from, the likeliest first."""

    def stack(self, base: str, name: str) -> Stack | None:
        """Return the stack of a name that starts from a base, or None where there is none."""

    def why_missing(self, name: str) -> str:
        """Return the rest of a sentence about a name of which there is no stack."""


def find_stacks(
    names: Sequence[str], table: str | os.PathLike[str], project_folder: str | os.PathLike[str] | None = None
) -> tuple[Stack, ...]:
    """Return the stacks that a table names.

    Names start, in this order, from the project folder if one is given; else from the working directory (of a table
    that is a file), as in RELION; else from the folder of the table or one above it, up to the bucket on S3. Where the
    first was found the others are looked for first.

    Parameters
    ----------
    names
        As the table has them.
    table
        Its path or URL.
    project_folder
        Path or URL.

    Raises
    ------
    MissingInputError
        Some are nowhere, or lie outside of the bucket or project folder on S3.
    FormatError
        A stack is truncated, or not MRC.
    StorageError
        S3 does not answer, or refuses.
    """
    remote = not is_local(table if project_folder is None else project_folder)
    known: _Names = _Objects(table, project_folder) if remote else _Files(table, project_folder)
    first = next(((base, stack) for base in known.bases if (stack := known.stack(base, names[0]))), None)
    if first is not None:
        known.bases.sort(key=lambda base: base != first[0])

    def find(name: str) -> Stack | None:
        return next((stack for base in known.bases if (stack := known.stack(base, name))), None)

    others = () if remote and first is None else names[1:]  # thousands of requests would tell no more
    found = [first and first[1], *(in_threads(find, others) if remote else map(find, others))]
    missing = [name for name, stack in zip(names, found, strict=False) if stack is None]
    if missing:
        more = f" and {len(missing) - 1} other stacks" if len(missing) > 1 else ""
        raise MissingInputError(f"{os.fspath(table)} refers to {missing[0]}{more}, {known.why_missing(missing[0])}")
    return tuple(stack for stack in found if stack is not None)


class _Files:
    """Names that are paths."""

    def __init__(self, table: str | os.PathLike[str], project_folder: str | os.PathLike[str] | None) -> None:
        if project_folder is not None:
            folders, self._where = [folder_of(project_folder)], f"under {os.fspath(project_folder)}"
        else:
            here = Path(absolute(table)).parent
            folders, self._where = [Path.cwd(), here, *here.parents], "here or beside the table"
        self.bases = [str(folder) for folder in folders]

    def stack(self, base: str, name: str) -> Stack | None:
        place = str(Path(base) / name)
        start = read_start(place, HEADER_BYTES)
        return None if start is None else Stack(place, header_of(*start, place))

    def why_missing(self, name: str) -> str:
        return f"not found {self._where}; give the folder that the names start from with --project-folder"


class _Objects:
    """Names that are keys of objects; bases are prefixes under the root, which no name leaves."""

    def __init__(self, table: str | os.PathLike[str], project_folder: str | os.PathLike[str] | None) -> None:
        if project_folder is not None:
            self._root, self.bases = absolute(project_folder), [""]
        else:
            scheme, _, path = absolute(table).partition("://")
            bucket, _, key = path.partition("/")
            self._root = f"{scheme}://{bucket}"
            self.bases = ["" if str(folder) == "." else str(folder) for folder in PurePosixPath(key).parents]
        self._store = None if is_fsspec(self._root) else object_store(self._root)

    def stack(self, base: str, name: str) -> Stack | None:
        key = _key(base, name)
        if key is None:
            return None
        place = join(self._root, key)
        with storage_errors(place), traffic.purpose("images"):
            try:
                if self._store is None:
                    start = fsspec_urls.read_first(place, HEADER_BYTES)
                else:
                    start = first_bytes(self._store, key, HEADER_BYTES)
            except StorageError as error:
                if not fsspec_urls.is_denied(error) or base == self.bases[-1]:
                    raise
                return None
            except (ValueError, PermissionDeniedError) as error:  # no key has such characters; or nobody may look there
                if isinstance(error, PermissionDeniedError) and base == self.bases[-1]:
                    raise
                return None
        return None if start is None else Stack(place, header_of(*start[:2], place), self._root, start[2])

    def why_missing(self, name: str) -> str:
        if all(_key(base, name) is None for base in self.bases):
            return (
                f"which lies outside of {self._root}, and nothing else is read for it; correct the names in the table,"
                " or give the prefix that they start from with --project-folder"
            )
        return f"not found under {self._root}; give the prefix that the names start from with --project-folder"


def _key(base: str, name: str) -> str | None:
    """Return the key that a name means, seen from a base; None where it lies outside of the root."""
    key = posixpath.normpath(posixpath.join(base, name))
    return None if key in (".", "..") or key.startswith(("/", "../")) else key
