"""Numbers as people read them: times, bytes, dollars. The only place that says how each is written."""

from __future__ import annotations

import math
import time


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it: ``4.2 s``, ``3:07``, ``2:05:00``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float | None) -> str:
    """Return a duration in words: ``4.2 s``, ``3 min 07 s``, ``2 h 05 min``; a dash where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def rough_time(seconds: float) -> str:
    """Return an estimated duration: ``40 s``, ``12 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f}".removesuffix(".0") + " h"


def amount_done(done: int, total: int | None, unit: str) -> str:
    """Return how far something is: ``340 of 600 images``, ``340 images``, or nothing before anything is done."""
    if total is not None:
        return f"{done:,} of {total:,} {unit}"
    return f"{done:,} {unit}" if done else ""


def moment(at: float, *, seconds: bool = False, utc: bool = False) -> str:
    """Return a time (seconds since 1970) as date and time of day: ``2026-03-07 18:05``, local unless ``utc``."""
    parts = time.gmtime(at) if utc else time.localtime(at)
    return time.strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M", parts)


def time_of_day(at: float) -> str:
    """Return the local time of day of a time (seconds since 1970): ``18:05:09``."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def dollars(usd: float) -> str:
    """Return an amount, small ones with more digits: ``$12.30``, ``$0.123``, ``$0.0042``, ``<$0.0001``."""
    if 0 < usd < 0.00005:
        return "<$0.0001"
    if usd >= 1 or abs(usd - round(usd, 2)) < 1e-9:
        return f"${usd:,.2f}"
    return f"${usd:.3f}" if usd >= 0.1 else f"${usd:.4f}"


def round_dollars(usd: float) -> str:
    """Return an amount without digits that say nothing, as for limits and the marks of an axis: ``$5``, ``$0.25``."""
    return f"${usd:,.6g}"


def rough_dollars(usd: float) -> str:
    """Return an estimated amount: ``$0.012``, ``$3.40``, ``$1,230``."""
    if 0 < usd < 0.0005:
        return "<$0.001"
    return f"${usd:.3f}" if usd < 0.1 else f"${usd:.2f}" if usd < 100 else f"${usd:,.0f}"


def size(count: float) -> str:
    """Return a number of bytes as what is moved or stored: ``312 MB``, ``4.1 MB``, ``26 kB``, in powers of 1000."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:.1f} {unit}" if unit != "B" and count < 9.95 else f"{count:.0f} {unit}"


def memory(count: float) -> str:
    """Return a number of bytes as memory is counted: ``1.50 GiB``, ``312 MiB``, ``1.5 KiB``, in powers of 1024."""
    if count < 1 << 20:
        return f"{count / (1 << 10):.1f} KiB"
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"


def memory_share(used: float | None, limit: float | None) -> str:
    """Return how much of some memory is used, as far as it is known: ``5.0 of 32.0 GiB``, ``312 MiB of 4.00 GiB``."""
    if used is None or limit is None:
        return memory(used) if used is not None else f"– of {memory(limit)}" if limit is not None else "–"
    if used >= 1 << 30 and limit >= 1 << 30:
        return f"{used / (1 << 30):.1f} of {limit / (1 << 30):.1f} GiB"
    return f"{memory(used)} of {memory(limit)}"
