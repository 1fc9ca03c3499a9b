"""The values that rules speak about: who calls, what is stored, and the facts an action is judged by.

Images, instances and operations are rows as stored: their fields are the columns, in the order of the tables, so that
storage makes them without a mapping in between. No behaviour here beyond what a value is.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple


class Role(StrEnum):
    """What credentials entitle to. A service acts as the account that it names."""

    ACCOUNT = "account"
    OPERATOR = "operator"


class Kind(StrEnum):
    """What an image is to a caller. Source: SEL-2."""

    PUBLIC = "PUBLIC"
    CUSTOM = "CUSTOM"
    SHARED = "SHARED"


class Trust(StrEnum):
    """Who answers for an image's contents. Source: PUB-5, SHR-7."""

    PROVIDER = "PROVIDER"
    OWN = "OWN"
    UNVERIFIED = "UNVERIFIED"


class AccountState(StrEnum):
    """Where an account stands."""

    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"


class Origin(StrEnum):
    """How an image came to be."""

    PUBLISHED = "PUBLISHED"
    INSTANCE = "INSTANCE"
    IMPORTED = "IMPORTED"
    COPIED = "COPIED"


class ImageState(StrEnum):
    """Where an image is in its life."""

    CREATING = "CREATING"
    IMPORTING = "IMPORTING"
    COPYING = "COPYING"
    AVAILABLE = "AVAILABLE"
    FAILED = "FAILED"
    #: Not used: an image is deleted at once.
    DELETING = "DELETING"
    DELETED = "DELETED"


#: States of an image that is being made.
BEING_MADE = frozenset({ImageState.CREATING, ImageState.IMPORTING, ImageState.COPYING})


class DeprecationState(StrEnum):
    """How far an image is retired. Source: PUB-4."""

    CURRENT = "CURRENT"
    DEPRECATED = "DEPRECATED"
    OBSOLETE = "OBSOLETE"


class InstanceState(StrEnum):
    """Where an instance is in its life. Source: INS-5."""

    PROVISIONING = "PROVISIONING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    REBOOTING = "REBOOTING"
    REINSTALLING = "REINSTALLING"
    IMAGING = "IMAGING"
    FAILED = "FAILED"
    DELETING = "DELETING"
    DELETED = "DELETED"


class OperationState(StrEnum):
    """Where an operation is in its life."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Caller(NamedTuple):
    """Whoever sent the call, from verified credentials. Source: ALL-1."""

    #: The account that the call is made for; "" if the role is OPERATOR, so that the operator owns nothing.
    account_id: str
    role: Role
    #: Who sent it: the account, the operator, or the service that acts for the account.
    actor: str


class Account(NamedTuple):
    """An account as stored, with the regions that it is active in."""

    account_id: str
    display_name: str
    state: str
    version: int
    create_time: datetime
    update_time: datetime
    region_ids: Sequence[str]


class Region(NamedTuple):
    """A region as stored, with its zones and prices. Nanos are 1e-9 of the currency's unit."""

    region_id: str
    display_name: str
    jurisdiction: str
    currency: str
    image_storage_nanos: int
    image_storage_free_bytes: int
    windows_license_nanos: int
    zone_ids: Sequence[str]


class InstanceType(NamedTuple):
    """An instance type as stored."""

    instance_type: str
    architecture: str
    vcpu_count: int
    memory_bytes: int
    disk_bytes: int


class Image(NamedTuple):
    """An image as stored, with its region's prices and whether it is shared with the caller."""

    image_id: str
    name: str
    description: str
    region_id: str
    #: None marks a public image.
    owner_account_id: str | None
    origin: str
    state: str
    failure_reason: str
    failure_message: str
    os_family: str
    os_platform: str
    os_version: str
    architecture: str
    size_bytes: int
    min_disk_bytes: int
    min_memory_bytes: int
    family: str
    labels: Mapping[str, str]
    deprecation_state: str
    replacement_image_id: str
    deprecation_message: str
    content_uri: str
    checksum_algorithm: str
    checksum_value: str
    source_image_id: str | None
    source_region_id: str
    source_instance_id: str
    source_uri: str
    #: Owner of the source of a copy: the copy's own; None for images that are no copies.
    copy_owner_account_id: str | None
    software: Sequence[Mapping[str, str]]
    share_count: int
    share_limit: int
    support_kind: str
    support_contact_uri: str
    support_note: str
    cloud_init: bool
    boot_mode: str
    quote: Mapping[str, Any] | None
    version: int
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    # From the region and the shares:
    jurisdiction: str
    currency: str
    image_storage_nanos: int
    windows_license_nanos: int
    shared_with_caller: bool


class JudgedImage(NamedTuple):
    """An image as the rules judge it, who look at nothing else, and as its kept message shows it."""

    image_id: str
    region_id: str
    owner_account_id: str | None
    state: str
    architecture: str
    min_disk_bytes: int
    min_memory_bytes: int
    deprecation_state: str
    replacement_image_id: str
    version: int
    share_count: int
    share_limit: int
    # As in ShownImage:
    message: bytes | None
    os_family: str
    jurisdiction: str
    currency: str
    image_storage_nanos: int
    windows_license_nanos: int
    shared_with_caller: bool


class ShownImage(NamedTuple):
    """An image as reads show it: its message as it is kept, and the values that the rest of the message comes from."""

    image_id: str
    version: int
    #: None if none is kept.
    message: bytes | None
    owner_account_id: str | None
    os_family: str
    share_count: int
    share_limit: int
    jurisdiction: str
    currency: str
    image_storage_nanos: int
    windows_license_nanos: int
    shared_with_caller: bool
    #: The values of a list's keys, where it is on a page.
    cursor: Sequence[Any] = ()


class Instance(NamedTuple):
    """An instance as stored, with its image as it was at launch."""

    instance_id: str
    name: str
    description: str
    region_id: str
    zone_id: str
    account_id: str
    instance_type: str
    state: str
    failure: str
    labels: Mapping[str, str]
    image_id: str
    launch_name: str
    launch_owner_account_id: str | None
    launch_kind: str
    launch_trust: str
    launch_checksum_algorithm: str
    launch_checksum_value: str
    launch_content_uri: str
    launch_size_bytes: int
    launch_min_disk_bytes: int
    launch_min_memory_bytes: int
    launch_os_family: str
    launch_os_platform: str
    launch_os_version: str
    launch_architecture: str
    launch_boot_mode: str
    launch_cloud_init: bool
    #: The operation in progress.
    operation_id: str | None
    version: int
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    # From the image and its shares:
    still_available: bool


class Operation(NamedTuple):
    """An operation as stored. Steps, warnings and quotes are plain JSON values; response and error are opaque bytes."""

    operation_id: str
    account_id: str
    created_by: str
    method: str
    request_id: str
    region_id: str
    target_ids: Sequence[str]
    #: What the work needs to know beyond its targets.
    input: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, Any]]
    quotes: Sequence[Mapping[str, Any]]
    state: str
    response: bytes | None
    error: bytes | None
    cancel_requested: bool
    #: Counts the leases; only the holder of the newest may write.
    epoch: int
    attempts: int
    lease_until: datetime | None
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None


class Recipient(NamedTuple):
    """An account that an image would be shared with."""

    account_id: str
    known: bool
    in_region: bool
    #: Since when the image is shared with it; None if it is not.
    share_time: datetime | None

    @property
    def shared(self) -> bool:
        """Whether the image is shared with it already."""
        return self.share_time is not None


class Place(NamedTuple):
    """Where a new custom image of the caller's would go: a region, a name there, and the account's quota there."""

    region_id: str
    #: False if the account is not active there.
    active: bool
    images_used: int
    images_limit: int
    #: Bytes of custom images that the account stores there.
    stored_bytes: int
    #: None if the request names none.
    name: str | None
    name_taken: bool


class Upload(NamedTuple):
    """What an import names."""

    uri: str
    format: str
    size_bytes: int
    min_disk_bytes: int
    #: Hosts that the operator allows; "*.example.org" allows every host below example.org.
    allowed_hosts: Sequence[str]


class Limit(NamedTuple):
    """A quota's limit to set, and what is used of it."""

    quota_id: str
    limit: int
    usage: int


class Facts(NamedTuple):
    """Everything that the checks of one action may look at. None: not known, since the request does not name it."""

    action: str
    caller: Caller
    #: The account that the request names; "" if it is about the caller's.
    account_id: str = ""
    #: That account as stored; None if it is not registered.
    account: Account | None = None
    image_id: str = ""
    image: Image | JudgedImage | None = None
    #: The image where it is only shown.
    shown_image: ShownImage | None = None
    instance_id: str = ""
    instance: Instance | None = None
    #: The etag that the request gives; "" if none.
    etag: str = ""
    region_id: str | None = None
    region: Region | None = None
    zone_id: str | None = None
    instance_type_id: str | None = None
    instance_type: InstanceType | None = None
    recipients: tuple[Recipient, ...] | None = None
    place: Place | None = None
    upload: Upload | None = None
    family: str = ""
    replacement_image_id: str = ""
    replacement: Image | None = None
    force: bool = False
    #: Copies being made from the image.
    copies: int = 0
    #: Some of the accounts that the image is shared with.
    shared_with: Sequence[str] = ()
    limit: Limit | None = None
    #: Regions that the request names and that do not exist.
    unknown_region_ids: Sequence[str] = ()
    #: Regions that the account would leave and where it still has something.
    region_ids_in_use: Sequence[str] = ()

    @property
    def added(self) -> list[Recipient]:
        """The recipients that do not have the image yet."""
        return [recipient for recipient in self.recipients or () if not recipient.shared]


def etag(version: int) -> str:
    """The etag of a resource in its `version`."""
    return f"v{version}"
