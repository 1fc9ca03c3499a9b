"""The shape of every request, field by field: what the field may hold, checked before anything is looked up.

REQUESTS has one entry for each message of the API that a caller sends; a test holds it equal to the protos. Values are
plain: the server walks the messages and asks `problem` of each field. Source: ALL-5.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cunho_rules import actions, filters, limits, orders
from cunho_rules.refusals import Reason, Refusal, Violation

#: Control characters, and the invisible ones that let one name pose as another: what Unicode calls default ignorable
#: (bidirectional controls, zero-width characters, fillers, variation selectors, tags, the byte order mark ...), line
#: and paragraph separators, surrogates, noncharacters.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ud800-\udfff\ufdd0-\ufdef\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

Problem = Callable[[Any], str | None]


def text(maximum: int, minimum: int = 0, *, trimmed: bool = False) -> Problem:
    """Text of `minimum` to `maximum` characters, in Unicode normal form C, every character visible.

    Text that is `trimmed`, or must not be empty, must not begin or end with a blank either.
    """

    def problem(value: str) -> str | None:
        if len(value) < minimum:
            return "must not be empty" if minimum == 1 else f"must have at least {minimum} characters"
        if len(value) > maximum:
            return f"must have at most {maximum} characters, has {len(value)}"
        if unseen := _UNSEEN.search(value):
            return f"must not contain control or invisible characters, has U+{ord(unseen[0]):04X}"
        if not unicodedata.is_normalized("NFC", value):
            return "must be in Unicode normal form C"
        if (minimum or trimmed) and value != value.strip():
            return "must not begin or end with a blank"
        return None

    return problem


def matching(pattern: str, form: str, *, optional: bool = False) -> Problem:
    """Text that the whole pattern matches; `form` says so in words. Empty only if optional."""
    matches = re.compile(pattern).fullmatch

    def problem(value: str) -> str | None:
        if not value:
            return None if optional else "must not be empty"
        return None if matches(value) else f"must be {form}"

    return problem


def number(minimum: int, maximum: int) -> Problem:
    """An integer from `minimum` to `maximum`."""

    def problem(value: int) -> str | None:
        return None if minimum <= value <= maximum else f"must be {minimum} to {maximum}, is {value}"

    return problem


@dataclass(frozen=True, slots=True)
class Enum:
    """A value of the field's enum.

    Args:
        required: UNSPECIFIED is refused.
        only: short names of the values allowed. Default: all.
    """

    required: bool = False
    only: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Each:
    """A repeated field of `minimum` to `maximum` items, each without a problem.

    Args:
        unique: no item twice; for messages the name of the field that must differ. Default: repeats are allowed.
    """

    item: "Problem | Message | Enum"
    maximum: int
    minimum: int = 0
    unique: bool | str = False


@dataclass(frozen=True, slots=True)
class Message:
    """A field that is a message.

    Args:
        shape: the entry of PARTS that has its shape. Default: the one of its name.
    """

    required: bool = False
    shape: str = ""


@dataclass(frozen=True, slots=True)
class Mask:
    """A field mask over the fields `paths`, which belong to the message in the field `resource`."""

    resource: str
    paths: Sequence[str]


def anything(value: object) -> None:
    """Any value of the field's type."""


def ignored(value: object) -> None:
    """Any value: the field is set by the server, and what a caller sends in it has no effect."""


@dataclass(frozen=True, slots=True)
class Language:
    """A filter or an order: text that is parsed. What is wrong with it has a reason of its own. Source: SEL-3.

    Args:
        reason: why a request is refused in which nothing else is malformed.
        parse: gives what the text means; raises FilterProblem or OrderProblem.
    """

    reason: Reason
    parse: Callable[[str], Any]

    def problem(self, value: str) -> str | None:
        """What is wrong with the text, as of any other field."""
        if too_long := _LANGUAGE_TEXT(value):
            return too_long
        problem = self._problem(value)
        return f"at {problem.position}: {problem.problem}" if problem else None

    def refusal(self, field: str, value: str) -> Refusal | None:
        """The refusal with the reason of the language; None if the text cannot even be parsed."""
        problem = None if _LANGUAGE_TEXT(value) else self._problem(value)
        if problem is None:
            return None
        text = f"at {problem.position}: {problem.problem}"
        violations = (Violation(field, text),)
        return Refusal(self.reason, field=problem.field, position=problem.position, problem=text, violations=violations)

    def _problem(self, value: str) -> filters.FilterProblem | orders.OrderProblem | None:
        try:
            self.parse(value)
        except (filters.FilterProblem, orders.OrderProblem) as problem:
            return problem
        return None


_LANGUAGE_TEXT = text(limits.FILTER_LENGTH)


def _filter(fields: Mapping[str, filters.Field]) -> Language:
    return Language(Reason.INVALID_FILTER, lru_cache(1024)(lambda value: filters.parse(value, fields)))


def _order(fields: Sequence[str], tie_breaker: str) -> Language:
    return Language(Reason.INVALID_ORDER_BY, lru_cache(1024)(lambda value: orders.parse(value, fields, tie_breaker)))


image_filter, image_order = _filter(filters.IMAGE_FIELDS), _order(orders.IMAGE_ORDER_FIELDS, "image_id")
instance_filter, instance_order = _filter(filters.INSTANCE_FIELDS), _order(orders.INSTANCE_ORDER_FIELDS, "instance_id")
#: Requests name no order of operations; this one gives the default.
operation_filter, operation_order = _filter(filters.OPERATION_FIELDS), _order(("create_time",), "operation_id")

Shape = Problem | Enum | Each | Message | Mask | Language


def _id(prefix: str, *, optional: bool = False) -> Problem:
    return matching(f"{prefix}-[0-9a-z]{{8}}", f'"{prefix}-" and 8 characters of [0-9a-z]', optional=optional)


def labels(value: Any) -> str | None:
    """At most 64 labels; keys are identifiers, values up to 63 visible characters."""
    if len(value) > limits.LABELS:
        return f"must have at most {limits.LABELS} labels, has {len(value)}"
    for key, label in sorted(value.items()):
        if not filters.LABEL_KEY.fullmatch(key):
            return f"keys must be {filters.LABEL_KEY_FORM}; has {key[:63]!r}"
        if problem := _LABEL_VALUE(label):
            return f"the value of {key!r} {problem}"
    return None


_LABEL_VALUE = text(63)

_ACCOUNT = r"[a-z0-9-]{1,60}"
_LOCATION = r"[a-z0-9-]{1,60}"
_INSTANCE_TYPE = r"[A-Za-z0-9._-]{1,60}"

account_id = matching(_ACCOUNT, "1 to 60 characters of [a-z0-9-]")
account_id_or_none = matching(_ACCOUNT, "1 to 60 characters of [a-z0-9-]", optional=True)
region_id = matching(_LOCATION, 'a region, for example "ap-guangzhou"')
region_id_or_none = matching(_LOCATION, 'a region, for example "ap-guangzhou"', optional=True)
region_id_or_all = matching(rf"{_LOCATION}|-", 'a region, for example "ap-guangzhou", or "-" for all')
zone_id = matching(_LOCATION, 'a zone, for example "ap-guangzhou-3"')
zone_id_or_none = matching(_LOCATION, 'a zone, for example "ap-guangzhou-3"', optional=True)
instance_type = matching(_INSTANCE_TYPE, "1 to 60 characters of [A-Za-z0-9._-]")
instance_type_or_none = matching(_INSTANCE_TYPE, "1 to 60 characters of [A-Za-z0-9._-]", optional=True)
image_id, image_id_or_none = _id("img"), _id("img", optional=True)
instance_id = _id("ins")
operation_name = matching(r"operations/op-[0-9a-z]{8}", '"operations/op-" and 8 characters of [0-9a-z]')
request_id = matching(
    r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    'a UUID, for example "7f1f6c1e-3b6f-4f6e-9d0e-2c5c5a8b6d21"',
    optional=True,
)
etag = text(64)
name = text(limits.NAME_LENGTH, 1)
name_or_none = text(limits.NAME_LENGTH)
image_name_or_none = text(limits.NAME_LENGTH, trimmed=True)
description = text(limits.DESCRIPTION_LENGTH)
family = matching(r"[a-z0-9.-]{1,60}", "1 to 60 characters of [a-z0-9.-]", optional=True)
family_required = matching(r"[a-z0-9.-]{1,60}", "1 to 60 characters of [a-z0-9.-]")
uri = text(limits.URI_LENGTH, 1)
page_size = number(0, 2**31 - 1)
page_token = matching(
    rf"[A-Za-z0-9_-]{{1,{limits.PAGE_TOKEN_LENGTH}}}", "a next_page_token as the service gave it", optional=True
)
accounts = Each(account_id, limits.ACCOUNTS_PER_CALL, unique=True)
accounts_required = Each(account_id, limits.ACCOUNTS_PER_CALL, minimum=1, unique=True)
regions = Each(region_id, limits.REGIONS_PER_ACCOUNT, unique=True)
file_size = number(1, 2**62)
min_disk = number(1, limits.MIN_DISK_BYTES_MAX)
min_memory = number(0, limits.MIN_MEMORY_BYTES_MAX)
quota_limit = number(0, limits.QUOTA_LIMIT_MAX)
contact_uri = matching(r"(https://|mailto:)[!-~]{1,2040}", "an https or mailto URI of up to 2048 characters")


def _actions(known: Collection[str]) -> Each:
    return Each(matching("|".join(known), f"one of {', '.join(known)}"), len(known), unique=True)


#: The fields of messages within requests, by message name. The fields that a mask names are checked if it names them.
PARTS: dict[str, dict[str, Shape]] = {
    "OperatingSystem": {"family": Enum(required=True), "platform": name, "version": name_or_none},
    "OperatingSystem of a public image": {
        "family": Enum(required=True, only=("LINUX", "WINDOWS")),
        "platform": name,
        "version": name_or_none,
    },
    "Checksum": {
        "algorithm": Enum(required=True),
        "value": matching(r"[0-9a-f]+", "hexadecimal digits in lower case"),
    },
    "ImageContent": {"uri": uri, "checksum": Message()},
    "Software": {"name": name, "version": name},
    "Support": {"kind": Enum(required=True), "contact_uri": contact_uri, "note": description},
    "Deprecation": {"state": Enum(required=True), "replacement_image_id": image_id_or_none, "message": description},
    "CopyImageRequest.Destination": {"region_id": region_id, "name": image_name_or_none},
    "Image": {
        "image_id": image_id,
        "name": name,
        "description": description,
        "min_disk_bytes": min_disk,
        "min_memory_bytes": min_memory,
        "family": family,
        "labels": labels,
        "etag": etag,
    },
    "Instance": {
        "instance_id": instance_id,
        "name": name_or_none,
        "description": description,
        "labels": labels,
        "etag": etag,
    },
    "Account": {
        "account_id": account_id,
        "display_name": name_or_none,
        "region_ids": regions,
        "state": Enum(required=True),
        "etag": etag,
    },
}

_PAGE: dict[str, Shape] = {"page_size": page_size, "page_token": page_token}
_SAFE: dict[str, Shape] = {"request_id": request_id, "validate_only": anything}
_LIST: dict[str, Shape] = {"region_id": region_id_or_all, **_PAGE}
_SHARES: dict[str, Shape] = {"image_id": image_id, "etag": etag, **_SAFE}
_INSTANCE: dict[str, Shape] = {"instance_id": instance_id, "etag": etag, **_SAFE}

#: The fields of every request, by message name.
REQUESTS: dict[str, dict[str, Shape]] = {
    "GetImageRequest": {"image_id": image_id},
    "BatchGetImagesRequest": {"image_ids": Each(image_id, limits.IMAGES_PER_CALL, minimum=1, unique=True)},
    "ListImagesRequest": {
        **_LIST,
        "filter": image_filter,
        "order_by": image_order,
        "usable_with_instance_type": instance_type_or_none,
    },
    "ResolveImageRequest": {"region_id": region_id, "family": family_required, "architecture": Enum()},
    "CreateImageRequest": {
        "region_id": region_id,
        "instance_id": instance_id,
        "name": name,
        "description": description,
        "family": family,
        "labels": labels,
        "consistency": Enum(),
        **_SAFE,
    },
    "ImportImageRequest": {
        "region_id": region_id,
        "name": name,
        "uri": uri,
        "format": Enum(required=True),
        "os": Message(required=True),
        "architecture": Enum(required=True),
        "expected_checksum": Message(),
        "description": description,
        "family": family,
        "labels": labels,
        "size_bytes": file_size,
        "min_disk_bytes": file_size,
        "boot_mode": Enum(),
        "cloud_init": anything,
        **_SAFE,
    },
    "CopyImageRequest": {
        "image_id": image_id,
        "destinations": Each(Message(required=True), limits.DESTINATIONS_PER_CALL, minimum=1, unique="region_id"),
        "copy_labels": anything,
        **_SAFE,
    },
    "UpdateImageRequest": {
        "image": Message(required=True),
        "update_mask": Mask("image", ("name", "description", "family", "labels", "min_disk_bytes", "min_memory_bytes")),
        **_SAFE,
    },
    "PublishImageRequest": {
        "region_id": region_id,
        "name": name,
        "description": description,
        "family": family,
        "os": Message(required=True, shape="OperatingSystem of a public image"),
        "architecture": Enum(required=True),
        "content": Message(required=True),
        "size_bytes": file_size,
        "min_disk_bytes": min_disk,
        "min_memory_bytes": min_memory,
        "boot_mode": Enum(),
        "cloud_init": anything,
        "software": Each(Message(required=True), limits.SOFTWARE),
        "support": Message(required=True),
        "labels": labels,
        **_SAFE,
    },
    "ShareImageRequest": {"account_ids": accounts_required, **_SHARES},
    "UnshareImageRequest": {"account_ids": accounts_required, **_SHARES},
    "SetImageSharesRequest": {"account_ids": accounts, **_SHARES},
    "ListImageSharesRequest": {"image_id": image_id, **_PAGE},
    "LeaveImageShareRequest": {"image_id": image_id, **_SAFE},
    "DeprecateImageRequest": {"deprecation": Message(required=True), **_SHARES},
    "DeleteImageRequest": {"force": anything, **_SHARES},
    "CheckImageActionsRequest": {
        "image_id": image_id,
        "actions": _actions(actions.IMAGE_ACTIONS),
        "target_region_id": region_id_or_none,
        "target_account_ids": accounts,
        "zone_id": zone_id_or_none,
        "instance_type": instance_type_or_none,
        "name": image_name_or_none,
        "force": anything,
    },
    "CreateInstanceRequest": {
        "region_id": region_id,
        "zone_id": zone_id,
        "name": name_or_none,
        "instance_type": instance_type,
        "image_id": image_id,
        "count": number(0, limits.INSTANCES_PER_CALL),
        "labels": labels,
        "expected_image_etag": etag,
        "description": description,
        **_SAFE,
    },
    "GetInstanceRequest": {"instance_id": instance_id},
    "ListInstancesRequest": {**_LIST, "filter": instance_filter, "order_by": instance_order},
    "UpdateInstanceRequest": {
        "instance": Message(required=True),
        "update_mask": Mask("instance", ("name", "description", "labels")),
        **_SAFE,
    },
    "StartInstanceRequest": _INSTANCE,
    "StopInstanceRequest": _INSTANCE,
    "RebootInstanceRequest": _INSTANCE,
    "ReinstallInstanceRequest": {"image_id": image_id_or_none, **_INSTANCE},
    "DeleteInstanceRequest": _INSTANCE,
    "ListInstanceTypesRequest": _PAGE,
    "CheckInstanceActionsRequest": {
        "instance_id": instance_id,
        "actions": _actions(actions.INSTANCE_ACTIONS),
        "target_image_id": image_id_or_none,
        "image_name": image_name_or_none,
    },
    "GetQuotaRequest": {
        "quota_id": Enum(required=True),
        "region_id": region_id_or_none,
        "account_id": account_id_or_none,
        "image_id": image_id_or_none,
    },
    "ListQuotasRequest": {"account_id": account_id_or_none, **_PAGE},
    "SetQuotaLimitRequest": {
        "quota_id": Enum(required=True),
        "account_id": account_id_or_none,
        "region_id": region_id_or_none,
        "image_id": image_id_or_none,
        "limit": quota_limit,
        **_SAFE,
    },
    "RegisterAccountRequest": {"account_id": account_id, "display_name": name_or_none, "region_ids": regions, **_SAFE},
    "GetAccountRequest": {"account_id": account_id},
    "ListAccountsRequest": _PAGE,
    "UpdateAccountRequest": {
        "account": Message(required=True),
        "update_mask": Mask("account", ("display_name", "region_ids", "state")),
        **_SAFE,
    },
    "ListRegionsRequest": _PAGE,
    "GetOperationRequest": {"name": operation_name},
    "ListOperationsRequest": {
        "name": matching("operations", '"operations"', optional=True),
        "filter": operation_filter,
        **_PAGE,
        "return_partial_success": ignored,
    },
    "WaitOperationRequest": {"name": operation_name, "timeout": ignored},
    "CancelOperationRequest": {"name": operation_name},
    "DeleteOperationRequest": {"name": operation_name},
}


#: Numbers of cunho.v1.Checksum.Algorithm, and how many hexadecimal digits their values have.
_DIGITS = {1: ("SHA256", 64), 2: ("SHA512", 128)}

#: Numbers and names of cunho.v1.QuotaId.
_CUSTOM_IMAGES, _SHARES_PER_IMAGE = (1, "QUOTA_ID_CUSTOM_IMAGES"), (2, "QUOTA_ID_SHARES_PER_IMAGE")

#: Finds what is wrong with the fields of a message together.
Together = Callable[[Any], Iterator[Violation]]


def _digits(checksum: Any) -> Iterator[Violation]:
    algorithm, digits = _DIGITS.get(checksum.algorithm, ("", 0))
    if digits and checksum.value and len(checksum.value) != digits:
        yield Violation("value", f"must have {digits} digits for {algorithm}, has {len(checksum.value)}")


def _scope(needed_of_images: Sequence[str]) -> Together:
    """The fields that a quota has, and those that it has not."""
    scopes = {
        _CUSTOM_IMAGES: (needed_of_images, ("image_id",)),
        _SHARES_PER_IMAGE: (("image_id",), ("account_id", "region_id")),
    }

    def find(request: Any) -> Iterator[Violation]:
        for (number, name), (needed, barred) in scopes.items():
            if request.quota_id == number:
                yield from (
                    Violation(each, f"must be given for {name}") for each in needed if not getattr(request, each)
                )
                yield from (
                    Violation(each, f"must not be given for {name}") for each in barred if getattr(request, each)
                )

    return find


def _numbered(request: Any) -> Iterator[Violation]:
    added = len(f"-{request.count}") if request.count > 1 else 0
    if added and len(request.name) + added > limits.NAME_LENGTH:
        problem = f"must have at most {limits.NAME_LENGTH - added} characters with a count of {request.count}"
        yield Violation("name", f"{problem}, has {len(request.name)}")


def _another(request: Any) -> Iterator[Violation]:
    if request.image_id and request.image_id == request.deprecation.replacement_image_id:
        yield Violation("deprecation.replacement_image_id", "must be another image")


#: What is wrong with the fields of a message together, by message name.
TOGETHER: dict[str, Together] = {
    "Checksum": _digits,
    "CreateInstanceRequest": _numbered,
    "DeprecateImageRequest": _another,
    "GetQuotaRequest": _scope(("region_id",)),
    "SetQuotaLimitRequest": _scope(("account_id", "region_id")),
}
