"""Tables in groups: particles or micrographs, with their optics groups, as arrays and attributes and back."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from numpy.typing import NDArray

from cloudem.errors import FormatError
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import ItemTable

_Kind = TypeVar("_Kind", bound=ItemTable)


def table_to_arrays(table: ItemTable) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return a table of any kind as arrays and attributes for `cloudem.io.storage.groups.write_group`."""
    optics = [
        {
            "name": group.name,
            "voltage_kV": group.voltage,
            "spherical_aberration_A": group.spherical_aberration,
            "amplitude_contrast": group.amplitude_contrast,
            "extra": dict(group.extra),
        }
        for group in table.optics
    ]
    meanings = {
        name: {"unit": table.COLUMNS[name].unit, "meaning": table.COLUMNS[name].meaning}
        if name in table.COLUMNS
        else {"unit": "", "meaning": "carried as text from the source, not used"}
        for name in table.columns
    }
    return dict(table.columns), {"optics": optics, "columns": meanings}


def table_from_arrays(kind: type[_Kind], arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> _Kind:
    """Return the table that `table_to_arrays` took apart; other attributes do not matter.

    Parameters
    ----------
    kind
        Kind of the table.
    arrays, attributes
        What `cloudem.io.storage.groups.read_group` returned.

    Raises
    ------
    FormatError
        Optics groups or columns cannot be what a table is made of.
    """
    what = f"the stored {kind.ITEM} table"
    try:
        optics = tuple(
            OpticsGroup(
                group["name"],
                float(group["voltage_kV"]),
                float(group["spherical_aberration_A"]),
                float(group["amplitude_contrast"]),
                dict(group["extra"]),
            )
            for group in attributes["optics"]
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{what} has no usable optics groups ({error}); import again") from error
    if not all(math.isfinite(x) for o in optics for x in (o.voltage, o.spherical_aberration, o.amplitude_contrast)):
        raise FormatError(f"{what} has an optics group whose numbers are not finite; import again")
    columns = attributes.get("columns")
    absent = [name for name in columns if name not in arrays] if isinstance(columns, dict) else ["columns"]
    if absent or not isinstance(columns, dict):
        raise FormatError(f"{what} lacks {absent[0][:80]}; import again")
    for name in columns:
        needed = kind.dtype_of(name)
        if arrays[name].ndim == 0 or arrays[name].dtype != needed:
            raise FormatError(
                f"{what} has a column {name[:80]} of type {arrays[name].dtype}, {needed} is needed; import again"
            )
    return kind(optics, {name: arrays[name] for name in columns})
