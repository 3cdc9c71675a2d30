"""Files by pattern, in a folder, on S3 or wherever fsspec lists them."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

import obstore

from cloudem.errors import ParameterError
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.location import absolute, folder_of, is_fsspec, is_remote, join, object_store, storage_errors

_WILD = re.compile(r"[*?[]")


def has_wildcard(url: str | os.PathLike[str]) -> bool:
    """Return whether a path or URL is a pattern: it has one of ``* ? [`` in it."""
    return bool(_WILD.search(os.fspath(url)))


def matching_files(pattern: str | os.PathLike[str]) -> list[str]:
    """Return the files that a pattern stands for, absolute and sorted.

    Parameters
    ----------
    pattern
        ``*`` stands for anything but a slash, ``?`` for one character, ``[abc]`` for one of several, ``**`` for any
        folders. In a URL that fsspec reaches, wildcards stand in the last part alone.

    Raises
    ------
    ParameterError
        Wildcards where they cannot be followed.
    StorageError
        The place cannot be reached.
    """
    text = absolute(pattern)
    if is_fsspec(text):
        folder, _, name = text.rpartition("/")
        if has_wildcard(folder):
            raise ParameterError(
                f"{text}: wildcards are followed in the last part of such a URL; copy, or give a folder"
            )
        fits = _expression(name)
        return [join(folder, found) for found in fsspec_urls.names_under(folder) if fits.fullmatch(found)]
    if not is_remote(text):
        with storage_errors(text):
            found = glob.glob(str(folder_of(text)), recursive=True)  # noqa: PTH207 (pathlib wants patterns relative)
            return sorted(each for each in found if Path(each).is_file())
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    fixed = key[: _WILD.search(key).start()] if _WILD.search(key) else key  # type: ignore[union-attr]
    prefix, fits = fixed.rpartition("/")[0], _expression(key)
    root = f"{scheme}://{bucket}"
    with storage_errors(text):
        keys = [
            str(entry["path"])
            for batch in obstore.list(object_store(root), prefix or None, chunk_size=1000)
            for entry in batch
        ]
    return sorted(join(root, each) for each in keys if fits.fullmatch(each))


def _expression(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern."""
    parts, at = [], 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern[at] == "*":
            parts.append("[^/]*")
            at += 1
        elif pattern[at] == "?":
            parts.append("[^/]")
            at += 1
        elif pattern[at] == "[" and (stop := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : stop]
            parts.append(f"[{'^' + inside[1:] if inside.startswith('!') else inside}]")
            at = stop + 1
        else:
            parts.append(re.escape(pattern[at]))
            at += 1
    return re.compile("".join(parts))
