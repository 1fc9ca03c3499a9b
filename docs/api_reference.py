"""The pages of docs/api, written from the protos: every service, call, message, field and enum.

The words are those of the protos and, for google's operations, of `protos/operations.py`, with links put in. Only the
pages of all calls and of types have an introduction of their own.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

from docs.markdown import table
from google.api import field_behavior_pb2
from google.api.field_behavior_pb2 import FieldBehavior
from google.longrunning import operations_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from protos.operations import COMMENTS as OPERATIONS

from cunho_rules.refusals import Reason

ROOT = Path(__file__).parents[1]

CALLS_INTRODUCTION = """\
# All calls

Written by `make docs` from `protos/cunho/v1`; change the comments there.

The API is gRPC, in the package `cunho.v1`. What holds for every call:

- The metadata `authorization: Bearer TOKEN` says who calls. A service names the account that it acts for in
  `cunho-account`.
- Every change takes `request_id`, a UUID that makes it safe to repeat, and `validate_only`, which checks everything and
  changes nothing.
- What takes time answers with a `google.longrunning.Operation`, which [WaitOperation](operations.md#waitoperation)
  waits for.
- Lists come in pages: `next_page_token` of one is `page_token` of the next. [Filters and orders](filters.md) have a
  page of their own.
- A refusal has one of [these reasons](../errors.md), with the numbers and a remedy.
"""

TYPES_INTRODUCTION = """\
# Messages and enums

Written by `make docs` from `protos/cunho/v1`; change the comments there.

What several calls take or answer. Requests stand with their calls; reasons of refusals in [errors](../errors.md).
"""

_PROTOBUF = "https://protobuf.dev/reference/protobuf/google.protobuf/#"
#: Pages of the messages that are not ours.
_ELSEWHERE = {
    "google.protobuf.Any": f"{_PROTOBUF}any",
    "google.protobuf.Duration": f"{_PROTOBUF}duration",
    "google.protobuf.Empty": f"{_PROTOBUF}empty",
    "google.protobuf.FieldMask": f"{_PROTOBUF}field-mask",
    "google.protobuf.Timestamp": f"{_PROTOBUF}timestamp",
    "google.rpc.Status": "https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto",
    "google.type.Money": "https://github.com/googleapis/googleapis/blob/master/google/type/money.proto",
}
_BEHAVIORS = {
    FieldBehavior.REQUIRED: "required",
    FieldBehavior.OUTPUT_ONLY: "set by the service",
    FieldBehavior.IMMUTABLE: "never changes",
    FieldBehavior.IDENTIFIER: "never changes",
}

_SCALARS = {
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_STRING: "string",
}
# Typed by the protobuf package otherwise than by its stubs.
_BEHAVIOR: Any = field_behavior_pb2.field_behavior
_OPERATION_INFO: Any = operations_pb2.operation_info
#: What holds named parts, and its fields that do.
_PARTS: dict[type, tuple[str, ...]] = {
    FileDescriptorProto: ("message_type", "enum_type", "service"),
    DescriptorProto: ("field", "nested_type", "enum_type"),
    EnumDescriptorProto: ("value",),
    ServiceDescriptorProto: ("method",),
}


@cache
def _files() -> list[FileDescriptorProto]:
    """The files of the API and of google's operations, as buf reads them."""
    if not (ROOT / ".build/googleapis").exists():
        subprocess.run([sys.executable, "protos/googleapis.py", ".build/googleapis"], cwd=ROOT, check=True)
    buf = [str(Path(sys.executable).with_name("buf")), "build", "--as-file-descriptor-set", "--output", "-"]
    files = FileDescriptorSet.FromString(subprocess.check_output(buf, cwd=ROOT)).file
    return [file for file in files if file.package in ("cunho.v1", "google.longrunning")]


def _parts(whole: Any, scope: str, path: tuple[int, ...] = ()) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Full name, path and descriptor of everything that is named within."""
    for field in _PARTS.get(type(whole), ()):
        number = whole.DESCRIPTOR.fields_by_name[field].number
        for index, part in enumerate(getattr(whole, field)):
            name, place = f"{scope}.{part.name}", (*path, number, index)
            yield name, place, part
            yield from _parts(part, name, place)


@cache
def _named() -> dict[str, Any]:
    """Every service, call, message, field, enum and value by its full name."""
    return {name: each for file in _files() for name, _, each in _parts(file, file.package)}


@cache
def _comments() -> dict[str, str]:
    """The comment of each of them that has one."""
    comments: dict[str, str] = {}
    for file in _files():
        texts = {tuple(place.path): dedent(place.leading_comments).strip() for place in file.source_code_info.location}
        if file.package == "cunho.v1":
            comments |= {name: texts[path] for name, path, _ in _parts(file, file.package) if path in texts}
    return comments | OPERATIONS


def pages() -> dict[str, str]:
    """The text of each page, by its name within docs/api."""
    services = sorted(name for name, each in _named().items() if isinstance(each, ServiceDescriptorProto))
    texts = {"index.md": _calls_page(services), "types.md": _types_page()}
    texts |= {_page(service): _service_page(service) for service in services}
    return {name: f"{text.rstrip()}\n" for name, text in texts.items()}


def _title(service: str) -> str:
    name = service.rpartition(".")[2]
    return name if name == "Operations" else f"{name.removesuffix('Service')}s"


def _page(service: str) -> str:
    return f"{_title(service).lower()}.md"


def _calls_page(services: list[str]) -> str:
    parts = [_with_links(CALLS_INTRODUCTION), _with_links(_refusals_of_every_call()) + "\n"]
    for service in services:
        rows = []
        for method in _named()[service].method:
            text, who, _ = _comment(f"{service}.{method.name}")
            brief = text.partition("\n\n")[0]
            rows.append((f"[{method.name}]({_page(service)}#{method.name.lower()})", _line(brief), _line(who)))
        parts.append(f"## {_title(service)}\n\n{table(('Call', 'What it does', 'Who'), rows)}")
    return "\n".join(parts)


def _refusals_of_every_call() -> str:
    """How any call may refuse, which every service says in the same words."""
    comments = [_comments()[f"{file.package}.{service.name}"] for file in _files() for service in file.service]
    said = {"".join(text.partition("Every call may refuse")[1:]) for text in comments}
    if len(said) > 1 or not all(said):
        raise ValueError("the comments of the services do not all say alike: Every call may refuse with ...")
    return said.pop()


def _types_page() -> str:
    shown = (name for name, each in _named().items() if type(each) in (DescriptorProto, EnumDescriptorProto))
    return "\n".join([TYPES_INTRODUCTION, *(_type(name, "##") for name in shown if _is_shared(name))])


def _is_shared(name: str) -> bool:
    """Whether a message or an enum stands on the page of types, and not with its call."""
    parts = name.removeprefix("cunho.v1.").split(".")
    of_call = parts[0].endswith(("Request", "Response"))
    return name.startswith("cunho.v1.") and not (of_call or parts[0] == "ErrorReason" or parts[-1].endswith("Entry"))


def _service_page(service: str) -> str:
    parts = [f"# {_title(service)}\n", "Written by `make docs` from `protos/cunho/v1`; change the comments there.\n"]
    parts += [f"Service `{service}`.\n", _with_links(_comments()[service]) + "\n"]
    parts += [_call(service, method) for method in _named()[service].method]
    if service == "google.longrunning.Operations":
        parts.append(_type("google.longrunning.Operation", "##"))
    return "\n".join(parts)


def _call(service: str, method: MethodDescriptorProto) -> str:
    text, who, refusals = _comment(f"{service}.{method.name}")
    parts = [f"## {method.name}\n", _with_links(text) + "\n", f"- **Who**: {who}"]
    parts += [f"- **Refuses**{_with_links(refusals)}"] if refusals else []
    python = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
    parts += [f"- **Call**: `{service}/{method.name}`, in Python `client.{python}(...)`\n"]
    request, response = method.input_type[1:], method.output_type[1:]
    parts.append(_type(request, "###"))
    made = method.options.Extensions[_OPERATION_INFO].response_type
    if made:
        parts.append(
            f"It answers with an {_named_type(response)}, whose response is {_named_type(f'cunho.v1.{made}')}.\n"
        )
    elif response in _ELSEWHERE or _is_shared(response) or response == "google.longrunning.Operation":
        nothing = response == "google.protobuf.Empty"
        parts.append("It answers with nothing.\n" if nothing else f"It answers with {_named_type(response)}.\n")
    answer = f"cunho.v1.{made}" if made else response
    if answer.endswith("Response"):
        parts.append(_type(answer, "###"))
    return "\n".join(parts)


def _comment(call: str) -> tuple[str, str, str]:
    """What a call does, who may call it, and how it refuses."""
    text = _comments()[call]
    said = re.fullmatch(r"(.*?)\s*Who: (.+?)\.\s+Refuses(.+)", text, re.DOTALL)
    if not said:
        raise ValueError(f"the comment of {call} does not say: Who: ... Refuses: ...")
    return said[1], said[2], said[3]


def _type(name: str, heading: str) -> str:
    """The section of a message or an enum; with a call's, what is nested in it."""
    each = _named()[name]
    short = name.removeprefix("cunho.v1.").removeprefix("google.longrunning.")
    parts = [f"{heading} {short}\n"]
    if not short.endswith(("Request", "Response")):
        parts.append(_with_links(_comments()[name]) + "\n")
    if isinstance(each, EnumDescriptorProto):
        values = [(f"`{value.name}`", _line(_comments()[f"{name}.{value.name}"])) for value in each.value]
        return "\n".join([*parts, table(("Value", "Meaning"), values)])
    fields = [field for field in each.field if f"{name}.{field.name}" in _comments()]
    rows = [(f"`{field.name}`", _typed(field), _meaning(name, field)) for field in fields]
    parts.append(table(("Field", "Type", "Meaning"), rows) if rows else "No fields.\n")
    if not _is_shared(name):
        nested = [part.name for part in (*each.nested_type, *each.enum_type) if not part.name.endswith("Entry")]
        parts += [_type(f"{name}.{part}", heading) for part in nested]
    return "\n".join(parts)


def _typed(field: FieldDescriptorProto) -> str:
    """The type of a field, with how it behaves."""
    name = field.type_name[1:]
    if name.endswith("Entry"):
        kind = "map of strings"
    else:
        kind = ("list of " if field.label == field.LABEL_REPEATED else "") + (
            _named_type(name) if name else _SCALARS[field.type]
        )
    behaviors = [_BEHAVIORS[each] for each in field.options.Extensions[_BEHAVIOR] if each in _BEHAVIORS]
    return ", ".join([kind, *behaviors])


def _named_type(name: str) -> str:
    """The name of a message or an enum, as a link to where it is explained."""
    short = name.removeprefix("cunho.v1.").rpartition("google.")[2]
    if name in _ELSEWHERE:
        return f"[{short.rpartition('.')[2]}]({_ELSEWHERE[name]})"
    if name == "google.longrunning.Operation":
        return "[Operation](operations.md#operation)"
    page = "types.md" if _is_shared(name) else ""
    return f"[{short}]({page}#{short.replace('.', '').lower()})"


def _meaning(message: str, field: FieldDescriptorProto) -> str:
    """What a field says, and what else is set with it."""
    text = _line(_comments()[f"{message}.{field.name}"]).removesuffix(" Required.")
    if not field.HasField("oneof_index"):
        return text
    others = [each for each in _named()[message].field if each.HasField("oneof_index") and each != field]
    return f"{text} Not set with {', '.join(f'`{each.name}`' for each in others)}."


def _line(text: str) -> str:
    """A text as the cell of a table."""
    return _with_links(text).replace("\n\n", "<br>").replace("\n", " ").replace("|", "\\|")


def _with_links(text: str) -> str:
    """A comment as Markdown: reasons lead to the page of errors; outside of code, what marks text stands for itself."""
    pieces = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(pieces), 2):
        escaped = re.sub(r"(?<!\w)\*(?!\w)", r"\\*", pieces[index])
        pieces[index] = re.sub(r"\b[A-Z]+_[A-Z_]+\b", _reason, escaped)
    return "".join(pieces)


def _reason(word: re.Match[str]) -> str:
    return f"[{word[0]}](../errors.md#{word[0].lower()})" if word[0] in set(Reason) else word[0]
