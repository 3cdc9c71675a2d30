"""Places as seen from others, so that what refers to them can be moved with them."""

from cloudem.io.storage.location import is_remote


def relative(place: str, origin: str) -> str:
    """Return a place as seen from another, both absolute; empty where they share no folder or bucket."""
    one, other = place.split("/"), origin.split("/")
    shared = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if shared < (4 if is_remote(place) or is_remote(origin) else 2):
        return ""
    return "/".join([*[".."] * (len(other) - shared), *one[shared:]])


def resolved(place: str) -> str:
    """Return a place without ``..``: object storage knows none."""
    parts: list[str] = []
    for part in place.split("/"):
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
