"""The page of filters and orders, docs/api/filters.md, written from the rules that read them."""

import re
from collections.abc import Collection, Mapping

from docs.markdown import table

from cunho_rules import filters, orders
from cunho_rules.filters import Field

INTRODUCTION = """\
# Filters and orders

Written by `make docs` from `server/cunho_rules/filters.py` and `orders.py`; change them there.

## The language of filters
"""

ORDERS = f"""\
## Orders

`order_by` is empty, or fields with commas between them, each ascending unless `desc` follows:
`create_time desc, name`. The default is `{orders.DEFAULT_ORDER}`. What is equal is ordered by id.
"""

#: Each list: the call, its filter's fields, and its order's.
LISTS: dict[str, tuple[str, Mapping[str, Field], Collection[str]]] = {
    "Images": ("[ListImages](images.md#listimages)", filters.IMAGE_FIELDS, orders.IMAGE_ORDER_FIELDS),
    "Instances": ("[ListInstances](instances.md#listinstances)", filters.INSTANCE_FIELDS, orders.INSTANCE_ORDER_FIELDS),
    "Operations": ("[ListOperations](operations.md#listoperations)", filters.OPERATION_FIELDS, ()),
}


def page() -> str:
    """The text of docs/api/filters.md."""
    return "\n".join([INTRODUCTION, _language(), ORDERS, *(_list(name, *each) for name, each in LISTS.items())])


def _language() -> str:
    """What the filters' own file says of them."""
    text = (filters.__doc__ or "").split("\n\n", 1)[1].rpartition("\nThe fields are data")[0]
    text = re.sub(r"::\n\n    (.+)\n", lambda code: f":\n\n```text\n{code[1]}\n```\n", text)
    return f"{text}\n".replace("(https://google.aip.dev/160)", "").replace(
        "AIP-160 .", "[AIP-160](https://google.aip.dev/160)."
    )


def _list(name: str, call: str, fields: Mapping[str, Field], order: Collection[str]) -> str:
    rows = [
        (_path(path, field), _values(field), f"`{' '.join(field.operators)}`", field.meaning)
        for path, field in fields.items()
    ]
    ordered = f"\nOrders by: {', '.join(f'`{each}`' for each in order)}.\n" if order else ""
    return f"## {name}\n\nOf {call}.\n\n{table(('Field', 'Values', 'Operators', 'Meaning'), rows)}{ordered}"


def _path(path: str, field: Field) -> str:
    return f"`{path}.KEY`" if isinstance(field, filters.Label) else f"`{path}`"


def _values(field: Field) -> str:
    """What the field is compared with, in words."""
    match field:
        case filters.Enum(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case filters.Int(values=values) if values:
            return ", ".join(f"`{value}`" for value in values)
        case filters.Int():
            return "integer"
        case filters.Bool():
            return "`true`, `false`"
        case filters.Time():
            return "time"
    return "text"
