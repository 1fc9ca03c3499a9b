"""The shape of requests, checked against the table of the rules. Looks at nothing but the message.

The table names fields, the descriptors say what is in them; both are put together once for each message type.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from cunho_rules.refusals import Refusal, Violation, malformed
from cunho_rules.shapes import PARTS, REQUESTS, TOGETHER, Each, Enum, Language, Mask, Shape, Together
from cunho_rules.shapes import Message as Part

#: Finds what is wrong with a value, given its path.
_Finder: TypeAlias = Callable[[Any, str], Iterable[Violation]]

#: The fields of a resource that count whether a mask names them or not.
_ALWAYS = ("image_id", "instance_id", "account_id", "etag")


def violations(request: Message) -> list[Violation]:
    """Every field of the request that is malformed, each once, in the order of the proto. Source: ALL-5."""
    found: dict[str, Violation] = {}
    for find in _finders(request.DESCRIPTOR):
        for violation in find(request, ""):
            found.setdefault(violation.field, violation)
    return list(found.values())


def refusal(request: Message) -> Refusal | None:
    """Why the request is malformed, naming every field; None if it is not.

    A filter or an order has a reason of its own, if nothing else is malformed. Source: ALL-5, SEL-3.
    """
    found = violations(request)
    if len(found) == 1:
        field = found[0].field
        shape = REQUESTS[request.DESCRIPTOR.name].get(field)
        if isinstance(shape, Language) and (own := shape.refusal(field, getattr(request, field))):
            return own
    return malformed(found) if found else None


def masked(request: Any) -> frozenset[str]:
    """The fields that the update_mask of the request names, of those that it may; "*" names all of them."""
    mask = REQUESTS[request.DESCRIPTOR.name]["update_mask"]
    assert isinstance(mask, Mask)
    return _named(request.update_mask.paths, mask.paths)


def _named(paths: Iterable[str], allowed: Iterable[str]) -> frozenset[str]:
    named = frozenset(paths)
    return frozenset(allowed) if "*" in named else named.intersection(allowed)


@cache
def _finders(descriptor: Descriptor, only: frozenset[str] | None = None, shape: str = "") -> tuple[_Finder, ...]:
    name = shape or descriptor.full_name.removeprefix(f"{descriptor.file.package}.")
    shapes = REQUESTS.get(name) or PARTS[name]
    together = TOGETHER.get(name)
    return (
        *(
            _of_field(descriptor.fields_by_name[field], shape, descriptor)
            for field, shape in sorted(shapes.items(), key=lambda item: descriptor.fields_by_name[item[0]].number)
            if only is None or field in only
        ),
        *([_of_all(together)] if together else ()),
    )


def _of_all(together: Together) -> _Finder:
    return lambda message, path: [Violation(path + field, problem) for field, problem in together(message)]


def _of_field(field: FieldDescriptor, shape: Shape, owner: Descriptor) -> _Finder:
    name = field.name
    if isinstance(shape, Mask):
        return _of_masked(name, shape, owner)
    if isinstance(shape, Part):
        if any(isinstance(other, Mask) and other.resource == name for other in REQUESTS.get(owner.name, {}).values()):
            return lambda message, path: () if message.HasField(name) else (Violation(path + name, "must be given"),)
        return _of_part(name, shape)
    find = _of_each(field, shape) if isinstance(shape, Each) else _of_value(field, shape)
    return lambda message, path: find(getattr(message, name), path + name)


def _of_value(field: FieldDescriptor, shape: Any) -> _Finder:
    problem = _problem(field, shape)

    def find(value: Any, path: str) -> Iterable[Violation]:
        found = problem(value)
        return (Violation(path, found),) if found else ()

    return find


def _problem(field: FieldDescriptor, shape: Any) -> Callable[[Any], str | None]:
    match shape:
        case Enum():
            return _enum_problem(field, shape)
        case Language():
            return shape.problem
    found: Callable[[Any], str | None] = shape
    return found


def _enum_problem(field: FieldDescriptor, shape: Enum) -> Callable[[int], str | None]:
    assert field.enum_type is not None
    prefix = _prefix(field.enum_type)
    values = {
        value.number: value.name
        for value in field.enum_type.values
        if (value.number or not shape.required) and (not shape.only or value.name.removeprefix(prefix) in shape.only)
    }
    known = ", ".join(name for number, name in values.items() if number)

    def problem(value: int) -> str | None:
        if value in values:
            return None
        return f"must be one of {known}, is {value}" if value else f"must be given: one of {known}"

    return problem


def _prefix(enum: EnumDescriptor) -> str:
    """What the names of the enum's values begin with."""
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")


def _of_part(name: str, shape: Part) -> _Finder:
    def find(message: Any, path: str) -> Iterator[Violation]:
        if message.HasField(name):
            part = getattr(message, name)
            for find_in_part in _finders(part.DESCRIPTOR, shape=shape.shape):
                yield from find_in_part(part, f"{path}{name}.")
        elif shape.required:
            yield Violation(path + name, "must be given")

    return find


def _of_each(field: FieldDescriptor, shape: Each) -> _Finder:
    find_in_item = None if isinstance(shape.item, Part) else _of_value(field, shape.item)

    def find(values: Any, path: str) -> Iterator[Violation]:
        if len(values) < shape.minimum:
            yield Violation(path, "must not be empty" if shape.minimum == 1 else f"must have {shape.minimum} items")
        if len(values) > shape.maximum:
            yield Violation(path, f"must have at most {shape.maximum} items, has {len(values)}")
            return
        first: dict[Any, int] = {}
        for index, value in enumerate(values):
            item_path = f"{path}[{index}]"
            if find_in_item is None:
                for find_in_part in _finders(value.DESCRIPTOR):
                    yield from find_in_part(value, f"{item_path}.")
            else:
                yield from find_in_item(value, item_path)
            key = getattr(value, shape.unique) if isinstance(shape.unique, str) else value
            if shape.unique and first.setdefault(key, index) != index:
                yield Violation(item_path, f"must not be the same as {path}[{first[key]}]")

    return find


def _of_masked(name: str, shape: Mask, owner: Descriptor) -> _Finder:
    """What is wrong with a mask, and with those fields of the resource that it names."""

    def find(message: Any, path: str) -> Iterator[Violation]:
        paths = getattr(message, name).paths
        if not paths:
            yield Violation(path + name, f"must name at least one of {', '.join(shape.paths)}")
        if unknown := [each for each in paths if each != "*" and each not in shape.paths]:
            named = ", ".join(repr(each[:60]) for each in unknown[:10])
            yield Violation(path + name, f'must name only {", ".join(shape.paths)}, or be "*"; names {named}')
        if message.HasField(shape.resource):
            resource = getattr(message, shape.resource)
            for find_in_part in _finders(resource.DESCRIPTOR, _named(paths, shape.paths) | {*_ALWAYS}):
                yield from find_in_part(resource, f"{path}{shape.resource}.")

    return find
