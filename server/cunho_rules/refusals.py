"""Every way a call can be refused, in one table.

A check refuses by returning `Refusal(Reason.X, key=value, ...)`; code, message, remedy and metadata keys come from
REFUSALS, so that a refusal reads the same wherever it comes from. `Reason` mirrors cunho.v1.ErrorReason; a test holds
the two equal. Nothing here knows gRPC: the server turns a Refusal into a google.rpc.Status.
"""

from collections.abc import Mapping
from enum import StrEnum
from string import Formatter
from typing import NamedTuple


class Code(StrEnum):
    """The canonical codes that refusals travel with; names as in google.rpc.Code."""

    CANCELLED = "CANCELLED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class Retry(StrEnum):
    """Whether sending something again may help; mirrors cunho.v1.Advice.Retry."""

    NOTHING = "NOTHING"
    CALL = "CALL"
    READ_AGAIN = "READ_AGAIN"


class Reason(StrEnum):
    """Machine-readable reason; sent as google.rpc.ErrorInfo.reason."""

    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    INVALID_REQUEST = "INVALID_REQUEST"
    INVALID_FILTER = "INVALID_FILTER"
    INVALID_ORDER_BY = "INVALID_ORDER_BY"
    INVALID_PAGE_TOKEN = "INVALID_PAGE_TOKEN"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    OPERATOR_ROLE_REQUIRED = "OPERATOR_ROLE_REQUIRED"
    ACCOUNT_ROLE_REQUIRED = "ACCOUNT_ROLE_REQUIRED"
    ACTING_NOT_ALLOWED = "ACTING_NOT_ALLOWED"
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"
    IMAGE_FAMILY_NOT_FOUND = "IMAGE_FAMILY_NOT_FOUND"
    INSTANCE_NOT_FOUND = "INSTANCE_NOT_FOUND"
    OPERATION_NOT_FOUND = "OPERATION_NOT_FOUND"
    ACCOUNT_NOT_FOUND = "ACCOUNT_NOT_FOUND"
    REGION_NOT_FOUND = "REGION_NOT_FOUND"
    ZONE_NOT_IN_REGION = "ZONE_NOT_IN_REGION"
    INSTANCE_TYPE_NOT_FOUND = "INSTANCE_TYPE_NOT_FOUND"
    PUBLIC_IMAGE_READ_ONLY = "PUBLIC_IMAGE_READ_ONLY"
    SHARED_IMAGE_NOT_MODIFIABLE = "SHARED_IMAGE_NOT_MODIFIABLE"
    SHARED_IMAGE_NOT_COPYABLE = "SHARED_IMAGE_NOT_COPYABLE"
    SHARED_IMAGE_NOT_RESHAREABLE = "SHARED_IMAGE_NOT_RESHAREABLE"
    SHARED_IMAGE_NOT_DELETABLE = "SHARED_IMAGE_NOT_DELETABLE"
    SHARED_IMAGE_SHARES_HIDDEN = "SHARED_IMAGE_SHARES_HIDDEN"
    IMAGE_OWNER_ONLY = "IMAGE_OWNER_ONLY"
    INSTANCE_OWNER_ONLY = "INSTANCE_OWNER_ONLY"
    ACCOUNT_SUSPENDED = "ACCOUNT_SUSPENDED"
    ACCOUNT_NOT_IN_REGION = "ACCOUNT_NOT_IN_REGION"
    ACCOUNT_ALREADY_EXISTS = "ACCOUNT_ALREADY_EXISTS"
    ACCOUNT_REGION_IN_USE = "ACCOUNT_REGION_IN_USE"
    IMAGE_NAME_TAKEN = "IMAGE_NAME_TAKEN"
    IMAGE_STATE_INVALID = "IMAGE_STATE_INVALID"
    IMAGE_BUSY = "IMAGE_BUSY"
    IMAGE_SHARED = "IMAGE_SHARED"
    IMAGE_OBSOLETE = "IMAGE_OBSOLETE"
    IMAGE_REGION_MISMATCH = "IMAGE_REGION_MISMATCH"
    IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE = "IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE"
    IMAGE_NOT_SHARED_WITH_CALLER = "IMAGE_NOT_SHARED_WITH_CALLER"
    REPLACEMENT_NOT_PUBLIC = "REPLACEMENT_NOT_PUBLIC"
    IMAGE_FORMAT_MISMATCH = "IMAGE_FORMAT_MISMATCH"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    IMPORT_URI_NOT_ALLOWED = "IMPORT_URI_NOT_ALLOWED"
    CUSTOM_IMAGE_QUOTA_EXCEEDED = "CUSTOM_IMAGE_QUOTA_EXCEEDED"
    COPY_TO_SAME_REGION = "COPY_TO_SAME_REGION"
    SHARE_WITH_SELF = "SHARE_WITH_SELF"
    SHARE_REGION_MISMATCH = "SHARE_REGION_MISMATCH"
    SHARE_QUOTA_EXCEEDED = "SHARE_QUOTA_EXCEEDED"
    INSTANCE_BUSY = "INSTANCE_BUSY"
    INSTANCE_STATE_INVALID = "INSTANCE_STATE_INVALID"
    INSTANCE_REGION_MISMATCH = "INSTANCE_REGION_MISMATCH"
    QUOTA_BELOW_USAGE = "QUOTA_BELOW_USAGE"
    OPERATION_RUNNING = "OPERATION_RUNNING"
    OPERATION_CANCELLED = "OPERATION_CANCELLED"
    OPERATION_FAILED = "OPERATION_FAILED"
    TRANSACTION_CONFLICT = "TRANSACTION_CONFLICT"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    METHOD_NOT_FOUND = "METHOD_NOT_FOUND"
    INTERNAL_ERROR = "INTERNAL_ERROR"
    TOO_MANY_CALLS = "TOO_MANY_CALLS"
    CALL_TIMED_OUT = "CALL_TIMED_OUT"
    SERVICE_STOPPING = "SERVICE_STOPPING"


class Entry(NamedTuple):
    """What every refusal with one reason has in common."""

    code: Code
    #: Message and remedy, with {keys} that the metadata fills; {key:none} reads "none" where the value is empty.
    message: str
    remedy: str
    #: The rule that refuses, where the check that refuses names no other.
    rule: str
    retry: Retry
    #: Keys of the metadata.
    keys: frozenset[str]


def _entry(code: Code, rule: str, message: str, remedy: str, *keys: str, retry: Retry = Retry.NOTHING) -> Entry:
    filled = {key for text in (message, remedy) for _, key, _, _ in Formatter().parse(text) if key}
    return Entry(code, message, remedy, rule, retry, frozenset(filled | {*keys}))


REFUSALS: dict[Reason, Entry] = {
    Reason.CREDENTIALS_MISSING: _entry(
        Code.UNAUTHENTICATED,
        "ALL-1",
        "the call carries no credentials",
        'Send the metadata "authorization: Bearer TOKEN", or call with a client certificate.',
    ),
    Reason.CREDENTIALS_INVALID: _entry(
        Code.UNAUTHENTICATED,
        "ALL-1",
        "the credentials are not valid",
        "Get a new token or certificate; the server's log says what is wrong with this one.",
    ),
    Reason.INVALID_REQUEST: _entry(
        Code.INVALID_ARGUMENT,
        "ALL-5",
        "the request is malformed: {problems}",
        "Correct the fields named; the comments of the protos give their bounds.",
    ),
    Reason.INVALID_FILTER: _entry(
        Code.INVALID_ARGUMENT,
        "SEL-3",
        "the filter is malformed: {problem}",
        "Correct the filter; the comment of the request's filter field lists fields and operators.",
        "field",
        "position",
    ),
    Reason.INVALID_ORDER_BY: _entry(
        Code.INVALID_ARGUMENT,
        "SEL-3",
        "the order is malformed: {problem}",
        "Correct the order; the comment of the request's order_by field lists the fields.",
        "field",
        "position",
    ),
    Reason.INVALID_PAGE_TOKEN: _entry(
        Code.INVALID_ARGUMENT,
        "SEL-3",
        "the page token is not valid here: {problem}",
        "Send next_page_token as it was given, with all other fields as they were, or start again without one.",
    ),
    Reason.REQUEST_ID_REUSED: _entry(
        Code.ALREADY_EXISTS,
        "ALL-2",
        "request_id {request_id} was used for {method} with other arguments",
        "Use a new request_id for a new request; repeat a request only as it was.",
    ),
    Reason.ETAG_MISMATCH: _entry(
        Code.ABORTED,
        "ALL-4",
        "{resource_id} changed since it was read: its etag is {current}, not {given}",
        "Read it again, decide again, and send the new etag.",
        retry=Retry.READ_AGAIN,
    ),
    Reason.OPERATOR_ROLE_REQUIRED: _entry(
        Code.PERMISSION_DENIED,
        "PUB-8",
        "{action} is for the operator only",
        "Ask the operator of this cloud to do it.",
    ),
    Reason.ACCOUNT_ROLE_REQUIRED: _entry(
        Code.PERMISSION_DENIED,
        "CUS-14",
        "{action} is for accounts: the operator owns no custom images and no instances",
        "Call with an account's credentials; public images are published with PublishImage.",
    ),
    Reason.ACTING_NOT_ALLOWED: _entry(
        Code.PERMISSION_DENIED,
        "ALL-1",
        'these credentials may not act for account "{account_id}"',
        'Name, in the metadata "cunho-account", an account that the credentials allow; '
        "only credentials of the service role act for others.",
    ),
    Reason.IMAGE_NOT_FOUND: _entry(
        Code.NOT_FOUND,
        "SEL-2",
        "image {image_id} does not exist or is not visible to you",
        "Check the id; ListImages shows the images you see. "
        "If another account owns it, ask that account to share it with you.",
    ),
    Reason.IMAGE_FAMILY_NOT_FOUND: _entry(
        Code.NOT_FOUND,
        "PUB-4",
        'no public image of family "{family}" can be launched in {region_id}',
        "Check the family and the architecture; ListImages with the filter kind = PUBLIC shows the families there are.",
    ),
    Reason.INSTANCE_NOT_FOUND: _entry(
        Code.NOT_FOUND,
        "INS-6",
        "instance {instance_id} does not exist or is not yours",
        "Check the id; ListInstances shows your instances.",
    ),
    Reason.OPERATION_NOT_FOUND: _entry(
        Code.NOT_FOUND,
        "INS-6",
        "{operation} does not exist or is not yours",
        "Check the name; ListOperations shows your operations.",
    ),
    Reason.ACCOUNT_NOT_FOUND: _entry(
        Code.NOT_FOUND,
        "SHR-10",
        "no such account: {account_ids}",
        "Check the account ids; the operator registers accounts.",
    ),
    Reason.REGION_NOT_FOUND: _entry(
        Code.INVALID_ARGUMENT,
        "INS-1",
        'no region "{region_id}"',
        "Check the region; ListRegions shows the regions.",
    ),
    Reason.ZONE_NOT_IN_REGION: _entry(
        Code.INVALID_ARGUMENT,
        "INS-1",
        'zone "{zone_id}" is not in {region_id}',
        "Choose one of its zones: {zones}.",
    ),
    Reason.INSTANCE_TYPE_NOT_FOUND: _entry(
        Code.INVALID_ARGUMENT,
        "INS-2",
        'no instance type "{instance_type}"',
        "Check the name; ListInstanceTypes shows the types.",
    ),
    Reason.PUBLIC_IMAGE_READ_ONLY: _entry(
        Code.PERMISSION_DENIED,
        "PUB-8",
        "image {image_id} is public: {action} is not possible on it",
        "Launch an instance from it and make a custom image of that with CreateImage.",
    ),
    Reason.SHARED_IMAGE_NOT_MODIFIABLE: _entry(
        Code.PERMISSION_DENIED,
        "SHR-3",
        "image {image_id} is only shared with you: you can launch instances from it, not change it by {action}",
        "Ask its owner, or launch an instance and make an image of your own with CreateImage.",
    ),
    Reason.SHARED_IMAGE_NOT_COPYABLE: _entry(
        Code.PERMISSION_DENIED,
        "SHR-4",
        "image {image_id} is only shared with you: you can launch instances from it, not copy it by {action}",
        "Ask its owner to copy it and share the copy, or launch an instance and "
        "make an image of your own with CreateImage.",
    ),
    Reason.SHARED_IMAGE_NOT_RESHAREABLE: _entry(
        Code.PERMISSION_DENIED,
        "SHR-5",
        "image {image_id} is only shared with you: you can launch instances from it, "
        "not decide by {action} who else has it",
        "Ask its owner to share it with the account; LeaveImageShare gives up your own share.",
    ),
    Reason.SHARED_IMAGE_NOT_DELETABLE: _entry(
        Code.PERMISSION_DENIED,
        "SHR-6",
        "image {image_id} is only shared with you: {action} is for its owner",
        "To be rid of it, call LeaveImageShare.",
    ),
    Reason.SHARED_IMAGE_SHARES_HIDDEN: _entry(
        Code.PERMISSION_DENIED,
        "SHR-12",
        "image {image_id} is only shared with you: {action} is for its owner",
        "Ask its owner whom it is shared with.",
    ),
    Reason.IMAGE_OWNER_ONLY: _entry(
        Code.PERMISSION_DENIED,
        "CUS-4",
        "image {image_id} is a custom image: {action} is for its owner",
        "Call with the credentials of the account that owns it.",
    ),
    Reason.INSTANCE_OWNER_ONLY: _entry(
        Code.PERMISSION_DENIED,
        "INS-6",
        "instance {instance_id} belongs to an account: {action} is for that account",
        "Call with the credentials of that account.",
    ),
    Reason.ACCOUNT_SUSPENDED: _entry(
        Code.FAILED_PRECONDITION,
        "CUS-13",
        "account {account_id} is suspended: {action} is not possible",
        "Settle the account with the operator; listing, unsharing and deleting stay possible.",
    ),
    Reason.ACCOUNT_NOT_IN_REGION: _entry(
        Code.FAILED_PRECONDITION,
        "CUS-14",
        "account {account_id} is not active in {region_id}",
        "Ask the operator to add the region to the account, or choose one that it is active in; GetAccount lists them.",
    ),
    Reason.ACCOUNT_ALREADY_EXISTS: _entry(
        Code.ALREADY_EXISTS,
        "ALL-5",
        "account {account_id} is registered already",
        "Choose another id, or change the account with UpdateAccount.",
    ),
    Reason.ACCOUNT_REGION_IN_USE: _entry(
        Code.FAILED_PRECONDITION,
        "SHR-9",
        "account {account_id} has or had images or instances, or has images shared with it, in {region_ids}",
        "Keep the regions in the list; to stop the account from making anything new, set its state to SUSPENDED.",
    ),
    Reason.IMAGE_NAME_TAKEN: _entry(
        Code.ALREADY_EXISTS,
        "SEL-4",
        'an image named "{name}" exists in {region_id}',
        "Choose another name, or rename or delete the other image.",
    ),
    Reason.IMAGE_STATE_INVALID: _entry(
        Code.FAILED_PRECONDITION,
        "SHR-10",
        "image {image_id} is {state}: {action} needs {allowed}",
        "Wait until it is {allowed}; if it is FAILED, delete it and make it again.",
    ),
    Reason.IMAGE_BUSY: _entry(
        Code.ABORTED,
        "CUS-11",
        "image {image_id} is in use: state {state}, copies being made from it: {copies}",
        "Wait for those operations or cancel them, then call again.",
        retry=Retry.CALL,
    ),
    Reason.IMAGE_SHARED: _entry(
        Code.FAILED_PRECONDITION,
        "CUS-11",
        "image {image_id} is shared with others, {account_count} in all: {account_ids}",
        "Unshare it from them first, or set force to do both in one step.",
    ),
    Reason.IMAGE_OBSOLETE: _entry(
        Code.FAILED_PRECONDITION,
        "PUB-4",
        "image {image_id} is obsolete: {action} is not possible from it",
        "Choose another image; its replacement: {replacement_image_id:none named}.",
    ),
    Reason.IMAGE_REGION_MISMATCH: _entry(
        Code.FAILED_PRECONDITION,
        "INS-1",
        "image {image_id} is in {image_region_id}, not in {region_id}",
        "Choose an image of {region_id}, launch in {image_region_id}, "
        "or have a custom image's owner copy it with CopyImage.",
    ),
    Reason.IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE: _entry(
        Code.FAILED_PRECONDITION,
        "INS-2",
        "instance type {instance_type} does not fit image {image_id}: {property} is {given}, needed {needed}",
        "Choose another type: ListInstanceTypes; or another image: ListImages with usable_with_instance_type.",
    ),
    Reason.IMAGE_NOT_SHARED_WITH_CALLER: _entry(
        Code.FAILED_PRECONDITION,
        "SHR-12",
        "image {image_id} is not shared with you: there is no share to leave",
        "Nothing to do; owners take images back with UnshareImage.",
    ),
    Reason.REPLACEMENT_NOT_PUBLIC: _entry(
        Code.FAILED_PRECONDITION,
        "PUB-4",
        "image {image_id} is public, and custom image {replacement_image_id} is not for everybody who uses it",
        "Name a public image of the region, or none; PublishImage publishes one.",
    ),
    Reason.IMAGE_FORMAT_MISMATCH: _entry(
        Code.FAILED_PRECONDITION,
        "CUS-10",
        "the file's name says {found}, the request says {format}",
        "Declare the file's real format.",
    ),
    Reason.IMAGE_TOO_LARGE: _entry(
        Code.FAILED_PRECONDITION,
        "CUS-10",
        "{field} is {size_bytes} bytes, at most {limit_bytes} are allowed",
        "Shrink the image.",
    ),
    Reason.IMPORT_URI_NOT_ALLOWED: _entry(
        Code.INVALID_ARGUMENT,
        "CUS-10",
        "the URI cannot be imported from: {problem}",
        "Put the file on an allowed host ({allowed:none}) and name it by https.",
    ),
    Reason.CUSTOM_IMAGE_QUOTA_EXCEEDED: _entry(
        Code.RESOURCE_EXHAUSTED,
        "CUS-5",
        "account {account_id} has {usage} of {limit} custom images in {region_id}",
        "Delete a custom image in {region_id}, use another region, or ask the operator for a higher limit.",
    ),
    Reason.COPY_TO_SAME_REGION: _entry(
        Code.INVALID_ARGUMENT,
        "CUS-12",
        "image {image_id} is in {region_id} already",
        "Name another region.",
    ),
    Reason.SHARE_WITH_SELF: _entry(
        Code.INVALID_ARGUMENT,
        "SHR-10",
        "account {account_id} is the one that shares",
        "Leave it out of the list.",
    ),
    Reason.SHARE_REGION_MISMATCH: _entry(
        Code.FAILED_PRECONDITION,
        "SHR-9",
        "accounts not active in {region_id}: {account_ids}",
        "Leave them out, or copy the image to a region of theirs with CopyImage and share the copy.",
    ),
    Reason.SHARE_QUOTA_EXCEEDED: _entry(
        Code.RESOURCE_EXHAUSTED,
        "SHR-8",
        "image {image_id} may be shared with {limit} accounts: {usage} that keep it and {requested} more do not fit",
        "Name fewer accounts, unshare it from others first, or ask the operator for a higher limit.",
    ),
    Reason.INSTANCE_BUSY: _entry(
        Code.ABORTED,
        "CUS-8",
        "instance {instance_id} is {state}: {operation} is in progress",
        "Wait for it with WaitOperation, then call again.",
        retry=Retry.CALL,
    ),
    Reason.INSTANCE_STATE_INVALID: _entry(
        Code.FAILED_PRECONDITION,
        "INS-5",
        "instance {instance_id} is {state}: {action} needs {allowed}",
        "Bring it to {allowed} first; one that is FAILED can only be deleted.",
    ),
    Reason.INSTANCE_REGION_MISMATCH: _entry(
        Code.FAILED_PRECONDITION,
        "CUS-8",
        "instance {instance_id} is in {instance_region_id}, not in {region_id}",
        "Name {instance_region_id}; to have the image elsewhere, copy it afterwards with CopyImage.",
    ),
    Reason.QUOTA_BELOW_USAGE: _entry(
        Code.FAILED_PRECONDITION,
        "CUS-5",
        "{quota_id}: {usage} are in use, more than the new limit of {limit}",
        "Set at least {usage}, or have some freed first.",
    ),
    Reason.OPERATION_RUNNING: _entry(
        Code.FAILED_PRECONDITION,
        "INS-5",
        "{operation} has not ended",
        "Wait for it with WaitOperation or stop it with CancelOperation, then delete it.",
    ),
    Reason.OPERATION_CANCELLED: _entry(
        Code.CANCELLED,
        "INS-5",
        "{operation} was cancelled and what it had begun is undone",
        "Nothing to do; call again to do it after all.",
    ),
    Reason.OPERATION_FAILED: _entry(
        Code.INTERNAL,
        "INS-5",
        "a step of {operation} failed {attempts} times and was given up; what it had begun is undone",
        "Delete what is FAILED now, if anything, and call again later; "
        "if it fails again, give the operation's name to the operator.",
        retry=Retry.CALL,
    ),
    Reason.TRANSACTION_CONFLICT: _entry(
        Code.ABORTED,
        "ALL-4",
        "other calls kept changing the same things",
        "Call again in a moment.",
        retry=Retry.CALL,
    ),
    Reason.DATABASE_UNAVAILABLE: _entry(
        Code.UNAVAILABLE,
        "ALL-1",
        "the service cannot reach its database",
        "Call again in a moment.",
        retry=Retry.CALL,
    ),
    Reason.METHOD_NOT_FOUND: _entry(
        Code.UNIMPLEMENTED,
        "ALL-5",
        "there is no method {method}",
        "Check the name; server reflection lists services and methods.",
    ),
    Reason.INTERNAL_ERROR: _entry(
        Code.INTERNAL,
        "ALL-1",
        "an internal error occurred; incident {incident_id}",
        "Give the incident id to the operator: it finds the cause in the server's log.",
    ),
    Reason.TOO_MANY_CALLS: _entry(
        Code.RESOURCE_EXHAUSTED,
        "ALL-7",
        "these are too many calls for {scope}: the limit is {limit} {unit}",
        "Call again in a moment, with fewer calls; the operator sets the limit with {setting}.",
        retry=Retry.CALL,
    ),
    Reason.CALL_TIMED_OUT: _entry(
        Code.DEADLINE_EXCEEDED,
        "ALL-7",
        "the call was not answered within {seconds} s, the time that it had",
        "Call again, of a mutation with the same request_id, so that nothing is done twice.",
        retry=Retry.CALL,
    ),
    Reason.SERVICE_STOPPING: _entry(
        Code.UNAVAILABLE,
        "ALL-7",
        "the process that was called is stopping and takes no more calls",
        "Call again in a moment: another process answers, or this one once it is back.",
        retry=Retry.CALL,
    ),
}


class Violation(NamedTuple):
    """One field of a request that is malformed."""

    #: Path of the field, for example "destinations[2].region_id".
    field: str
    problem: str


class Refusal(Exception):
    """A rule said no. Carries everything that the caller may learn about why.

    Args:
        rule: id of the rule that refuses. Default: the reason's own.
        violations: the malformed fields, for google.rpc.BadRequest.
        metadata: exactly the reason's keys; sequences are joined by commas.
    """

    def __init__(
        self, reason: Reason, /, *, rule: str = "", violations: tuple[Violation, ...] = (), **metadata: object
    ) -> None:
        entry = REFUSALS[reason]
        if metadata.keys() != entry.keys:
            raise TypeError(f"{reason} takes {sorted(entry.keys)}, got {sorted(metadata)}")
        self.reason = reason
        self.code = entry.code
        self.retry = entry.retry
        self.rule = rule or entry.rule
        self.violations = violations
        self.metadata: Mapping[str, str] = {key: _text(value) for key, value in metadata.items()}
        words = {key: _Word(value) for key, value in self.metadata.items()}
        self.remedy = entry.remedy.format_map(words)
        super().__init__(entry.message.format_map(words))


class _Word(str):
    """A value in a sentence, whose format says what is read where it is empty."""

    __slots__ = ()

    def __format__(self, otherwise: str) -> str:
        return str(self) or otherwise


#: What one answer names at most, since answers to refused calls travel in HTTP/2 headers, which peers limit to 8 KiB.
_NAMED_ITEMS, _PROBLEM_LENGTH, _NAMED_PROBLEMS_SIZE_BYTES, _VIOLATIONS_SIZE_BYTES = 10, 240, 700, 3000

#: What a violation takes in an answer besides its text: its own reason, and the tags and lengths of protobuf.
_VIOLATION_SIZE_BYTES = 28


def malformed(violations: list[Violation]) -> Refusal:
    """INVALID_REQUEST, naming every malformed field at once. Source: ALL-5."""
    short = [Violation(field, _shortened(problem)) for field, problem in violations]
    named = _within(short, _VIOLATIONS_SIZE_BYTES)
    listed = [f"{field}: {problem}" for field, problem in _within(short, _NAMED_PROBLEMS_SIZE_BYTES)]
    return Refusal(Reason.INVALID_REQUEST, violations=tuple(named), problems="; ".join(listed))


def _within(violations: list[Violation], size_bytes: int) -> list[Violation]:
    """The first violations, of that size together; if not all, a last one that counts the others."""
    for index, (field, problem) in enumerate(violations):
        size_bytes -= len(field.encode()) + len(problem.encode()) + _VIOLATION_SIZE_BYTES
        if size_bytes < 0 and index:
            return [*violations[:index], Violation("...", f"{len(violations) - index} more")]
    return violations


def _shortened(text: str) -> str:
    return text if len(text) <= _PROBLEM_LENGTH else f"{text[:_PROBLEM_LENGTH]}..."


def _text(value: object) -> str:
    if not isinstance(value, (list, tuple)):
        return str(value)
    listed = ", ".join(map(str, value[:_NAMED_ITEMS]))
    return f"{listed} and {len(value) - _NAMED_ITEMS} more" if len(value) > _NAMED_ITEMS else listed
