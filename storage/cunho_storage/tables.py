"""Peewee models: the only place that names tables and columns.

The models compose statements; they are never loaded, saved or bound to a database. The columns of `account`, `image`,
`instance`, `operation` and `instance_type` are the fields of the values in `cunho_rules.model`, in the same order. The
schema itself is made by the migrations; a test holds it equal to these models.
"""
# pyright: reportIncompatibleVariableOverride=false

from collections.abc import Iterable
from typing import Any

from peewee import (
    SQL,
    BigIntegerField,
    BlobField,
    BooleanField,
    Check,
    CompositeKey,
    Field,
    IntegerField,
    Model,
    TextField,
)

from cunho_rules.model import AccountState, DeprecationState, ImageState, InstanceState, OperationState, Origin


class TimeField(Field):
    """A point in time."""

    field_type = "TIMESTAMPTZ"


class JsonField(Field):
    """A JSON value."""

    field_type = "JSONB"


def _text(**options: Any) -> TextField:
    """Text that compares byte by byte, whatever the locale of the database is, so that pages and prefixes agree."""
    return TextField(collation='"C"', **options)


def _one_of(column: str, values: Iterable[str]) -> str:
    quoted = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({quoted})"


def _unique(name: str, columns: str) -> SQL:
    return SQL(f"CONSTRAINT {name} UNIQUE ({columns})")


def _foreign(name: str, columns: str, target: str) -> SQL:
    return SQL(f"CONSTRAINT {name} FOREIGN KEY ({columns}) REFERENCES {target}")


def _index(name: str, on: str, *, unique: bool = False, where: str = "") -> SQL:
    return SQL(f"CREATE {'UNIQUE ' if unique else ''}INDEX {name} ON {on}{f' WHERE {where}' if where else ''}")


class RegionRow(Model):
    """A region with its prices."""

    region_id = _text(primary_key=True)
    display_name = _text()
    jurisdiction = _text()
    currency = _text()
    image_storage_nanos = BigIntegerField()
    image_storage_free_bytes = BigIntegerField()
    windows_license_nanos = BigIntegerField()

    class Meta:
        table_name = "region"
        constraints = (
            Check(_one_of("jurisdiction", ("MAINLAND_CHINA", "INTERNATIONAL")), "region_jurisdiction"),
            Check("image_storage_nanos >= 0 AND windows_license_nanos >= 0", "region_prices"),
        )


class ZoneRow(Model):
    """A zone of a region."""

    zone_id = _text(primary_key=True)
    region_id = _text()

    class Meta:
        table_name = "zone"
        constraints = (
            _unique("zone_of_region", "zone_id, region_id"),
            _foreign("zone_region", "region_id", "region"),
        )


class InstanceTypeRow(Model):
    """An instance type."""

    instance_type = _text(primary_key=True)
    architecture = _text()
    vcpu_count = IntegerField()
    memory_bytes = BigIntegerField()
    disk_bytes = BigIntegerField()

    class Meta:
        table_name = "instance_type"


class AccountRow(Model):
    """An account."""

    account_id = _text(primary_key=True)
    display_name = _text()
    state = _text()
    version = BigIntegerField()
    create_time = TimeField()
    update_time = TimeField()

    class Meta:
        table_name = "account"
        constraints = (Check(_one_of("state", AccountState), "account_state"),)


class AccountRegionRow(Model):
    """A region that an account is active in, with the counter of its custom images: the row that creators lock."""

    account_id = _text()
    region_id = _text()
    images_used = IntegerField()
    images_limit = IntegerField()

    class Meta:
        table_name = "account_region"
        primary_key = CompositeKey("account_id", "region_id")
        constraints = (
            Check("images_used >= 0 AND images_used <= images_limit", "account_region_images"),
            _foreign("account_region_account", "account_id", "account"),
            _foreign("account_region_region", "region_id", "region"),
        )


class ImageRow(Model):
    """An image. Deleted ones stay, so that no id is used twice."""

    image_id = _text(primary_key=True)
    name = _text()
    description = _text()
    region_id = _text()
    owner_account_id = _text(null=True)
    origin = _text()
    state = _text()
    failure_reason = _text()
    failure_message = _text()
    os_family = _text()
    os_platform = _text()
    os_version = _text()
    architecture = _text()
    size_bytes = BigIntegerField()
    min_disk_bytes = BigIntegerField()
    min_memory_bytes = BigIntegerField()
    family = _text()
    labels = JsonField()
    deprecation_state = _text()
    replacement_image_id = _text()
    deprecation_message = _text()
    content_uri = _text()
    checksum_algorithm = _text()
    checksum_value = _text()
    source_image_id = _text(null=True)
    source_region_id = _text()
    source_instance_id = _text()
    source_uri = _text()
    copy_owner_account_id = _text(null=True)
    software = JsonField()
    share_count = IntegerField()
    share_limit = IntegerField()
    support_kind = _text()
    support_contact_uri = _text()
    support_note = _text()
    cloud_init = BooleanField()
    boot_mode = _text()
    quote = JsonField(null=True)
    version = BigIntegerField()
    create_time = TimeField()
    update_time = TimeField()
    delete_time = TimeField(null=True)
    #: Its message, of a version that the bytes name; NULL until somebody reads it. No part of the value.
    message = BlobField(null=True)

    class Meta:
        table_name = "image"
        constraints = (
            Check(_one_of("origin", Origin), "image_origin"),
            Check(_one_of("state", ImageState), "image_state"),
            Check(_one_of("deprecation_state", DeprecationState), "image_deprecation_state"),
            # The operator's images, and only those, have no owner.
            Check("(origin = 'PUBLISHED') = (owner_account_id IS NULL)", "image_public_has_no_owner"),
            Check("share_count >= 0 AND share_count <= share_limit", "image_shares"),
            Check(
                "share_count = 0 OR (owner_account_id IS NOT NULL AND state = 'AVAILABLE')", "image_shared_is_available"
            ),
            Check("(state = 'DELETED') = (delete_time IS NOT NULL)", "image_delete_time"),
            # Only one's own images are copied; without the first half a NULL would slip through the rest.
            Check(
                "(origin = 'COPIED') = (copy_owner_account_id IS NOT NULL) AND (copy_owner_account_id IS NULL"
                " OR (copy_owner_account_id = owner_account_id AND source_image_id IS NOT NULL))",
                "image_copy_of_own",
            ),
            _unique("image_of_owner", "image_id, owner_account_id"),
            _unique("image_of_owner_in_region", "image_id, owner_account_id, region_id"),
            _foreign("image_region", "region_id", "region"),
            _foreign("image_owner", "owner_account_id, region_id", "account_region (account_id, region_id)"),
            _foreign("image_copy", "source_image_id, copy_owner_account_id", "image (image_id, owner_account_id)"),
        )
        indexes = (
            _index(
                "image_name_of_owner",
                "image (owner_account_id, region_id, name)",
                unique=True,
                where="state <> 'DELETED' AND owner_account_id IS NOT NULL",
            ),
            _index(
                "image_name_public",
                "image (region_id, name)",
                unique=True,
                where="state <> 'DELETED' AND owner_account_id IS NULL",
            ),
            _index(
                "image_newest_of_owner",
                "image (owner_account_id, region_id, create_time, image_id)",
                where="state <> 'DELETED'",
            ),
            _index(
                "image_newest_public",
                "image (region_id, create_time, image_id)",
                where="state <> 'DELETED' AND owner_account_id IS NULL",
            ),
            _index(
                "image_newest_custom",
                "image (region_id, create_time, image_id)",
                where="state <> 'DELETED' AND owner_account_id IS NOT NULL",
            ),
            _index(
                "image_name_custom",
                "image (region_id, name, image_id)",
                where="state <> 'DELETED' AND owner_account_id IS NOT NULL",
            ),
            _index(
                "image_family",
                "image (region_id, family, create_time)",
                where="state = 'AVAILABLE' AND owner_account_id IS NULL",
            ),
            _index("image_copies", "image (source_image_id)", where="state = 'COPYING'"),
            # What is looked up when an account leaves a region: deleted images name it too.
            _index("image_of_account", "image (owner_account_id, region_id)"),
        )


IMAGE_COLUMNS: tuple[Field, ...] = tuple(field for field in ImageRow._meta.sorted_fields if field.name != "message")


class ImageShareRow(Model):
    """One account that an image is shared with."""

    image_id = _text()
    recipient_account_id = _text()
    owner_account_id = _text()
    region_id = _text()
    granted_by = _text()
    create_time = TimeField()

    class Meta:
        table_name = "image_share"
        primary_key = CompositeKey("image_id", "recipient_account_id")
        constraints = (
            Check("recipient_account_id <> owner_account_id", "image_share_not_with_owner"),
            Check("granted_by = owner_account_id", "image_share_by_owner"),
            _foreign(
                "image_share_image",
                "image_id, owner_account_id, region_id",
                "image (image_id, owner_account_id, region_id)",
            ),
            _foreign(
                "image_share_recipient", "recipient_account_id, region_id", "account_region (account_id, region_id)"
            ),
        )
        indexes = (_index("image_share_received", "image_share (recipient_account_id, region_id, image_id)"),)


class OperationRow(Model):
    """An operation; the row is the job that workers lease."""

    operation_id = _text(primary_key=True)
    account_id = _text()
    created_by = _text()
    method = _text()
    request_id = _text()
    region_id = _text()
    target_ids = JsonField()
    input = JsonField()
    steps = JsonField()
    warnings = JsonField()
    quotes = JsonField()
    state = _text()
    response = BlobField(null=True)
    error = BlobField(null=True)
    cancel_requested = BooleanField()
    epoch = BigIntegerField()
    attempts = IntegerField()
    lease_until = TimeField(null=True)
    create_time = TimeField()
    start_time = TimeField(null=True)
    end_time = TimeField(null=True)

    class Meta:
        table_name = "operation"
        constraints = (
            Check(_one_of("state", OperationState), "operation_state"),
            Check("(state IN ('PENDING', 'RUNNING')) = (end_time IS NULL)", "operation_end_time"),
            Check("(state = 'SUCCEEDED') = (response IS NOT NULL)", "operation_response"),
            Check("(state IN ('FAILED', 'CANCELLED')) = (error IS NOT NULL)", "operation_error"),
        )
        indexes = (
            _index("operation_newest_of_account", "operation (account_id, create_time, operation_id)"),
            _index("operation_newest", "operation (create_time, operation_id)"),
            _index("operation_claimable", "operation (create_time)", where="end_time IS NULL"),
            _index("operation_leased", "operation (lease_until)", where="lease_until IS NOT NULL"),
        )


class InstanceRow(Model):
    """An instance. Deleted ones stay, so that no id is used twice."""

    instance_id = _text(primary_key=True)
    name = _text()
    description = _text()
    region_id = _text()
    zone_id = _text()
    account_id = _text()
    instance_type = _text()
    state = _text()
    failure = _text()
    labels = JsonField()
    image_id = _text()
    launch_name = _text()
    launch_owner_account_id = _text(null=True)
    launch_kind = _text()
    launch_trust = _text()
    launch_checksum_algorithm = _text()
    launch_checksum_value = _text()
    launch_content_uri = _text()
    launch_size_bytes = BigIntegerField()
    launch_min_disk_bytes = BigIntegerField()
    launch_min_memory_bytes = BigIntegerField()
    launch_os_family = _text()
    launch_os_platform = _text()
    launch_os_version = _text()
    launch_architecture = _text()
    launch_boot_mode = _text()
    launch_cloud_init = BooleanField()
    operation_id = _text(null=True)
    version = BigIntegerField()
    create_time = TimeField()
    update_time = TimeField()
    delete_time = TimeField(null=True)

    class Meta:
        table_name = "instance"
        constraints = (
            Check(_one_of("state", InstanceState), "instance_state"),
            Check("(state = 'DELETED') = (delete_time IS NOT NULL)", "instance_delete_time"),
            # Whoever moves an instance is the one operation that it names.
            Check(
                "(operation_id IS NULL) = (state IN ('RUNNING', 'STOPPED', 'FAILED', 'DELETED'))",
                "instance_operation_moves",
            ),
            _foreign("instance_account", "account_id, region_id", "account_region (account_id, region_id)"),
            _foreign("instance_zone", "zone_id, region_id", "zone (zone_id, region_id)"),
            _foreign("instance_type_known", "instance_type", "instance_type"),
            _foreign("instance_image", "image_id", "image"),
            _foreign("instance_operation", "operation_id", "operation"),
        )
        indexes = (
            _index(
                "instance_newest_of_account",
                "instance (account_id, region_id, create_time, instance_id)",
                where="state <> 'DELETED'",
            ),
            _index("instance_newest", "instance (region_id, create_time, instance_id)", where="state <> 'DELETED'"),
            _index(
                "instance_name_of_account",
                "instance (account_id, region_id, name, instance_id)",
                where="state <> 'DELETED'",
            ),
            _index("instance_name", "instance (region_id, name, instance_id)", where="state <> 'DELETED'"),
            _index("instance_of_image", "instance (image_id, account_id)", where="state <> 'DELETED'"),
            # What is looked up when an account leaves a region, and when an operation is deleted.
            _index("instance_of_account", "instance (account_id, region_id)"),
            _index("instance_of_operation", "instance (operation_id)", where="operation_id IS NOT NULL"),
        )


class RequestRow(Model):
    """The answer given to a request id."""

    account_id = _text()
    method = _text()
    request_id = _text()
    fingerprint = BlobField()
    answer = BlobField(null=True)
    create_time = TimeField()

    class Meta:
        table_name = "request_log"
        primary_key = CompositeKey("account_id", "method", "request_id")
        indexes = (_index("request_log_age", "request_log (create_time)"),)


class SecretRow(Model):
    """A secret that the servers of one database share."""

    name = _text(primary_key=True)
    value = BlobField()

    class Meta:
        table_name = "secret"


#: Every table, those that others refer to first.
TABLES: tuple[type[Model], ...] = (
    RegionRow,
    ZoneRow,
    InstanceTypeRow,
    AccountRow,
    AccountRegionRow,
    ImageRow,
    ImageShareRow,
    OperationRow,
    InstanceRow,
    RequestRow,
    SecretRow,
)
