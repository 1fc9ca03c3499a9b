"""What is shown of each message: the columns of its table, the lines of its details. Sends and prints nothing."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.any_pb2 import Any as PackedMessage
from google.protobuf.message import Message

from cunho import Operation, Refused, v1
from cunho.cli import refusals
from cunho.cli.flags import word_of
from cunho.cli.printing import Cell, Column, Details, Row, Shown, Table, age, as_json, joined, moment, money, size

_STYLES = {
    "green": "AVAILABLE RUNNING SUCCEEDED PASSED",
    "red": "FAILED DENIED OBSOLETE",
    "yellow": "CREATING IMPORTING COPYING DELETING PROVISIONING STARTING STOPPING REBOOTING REINSTALLING IMAGING "
    "DEPRECATED UNVERIFIED",
    "dim": "STOPPED DELETED CANCELLED PENDING NOT_EVALUATED",
}
_STYLE_OF = {word: style for style, words in _STYLES.items() for word in words.split()}


def _state(enum: Any, value: int) -> Cell:
    """The name of a state, in its colour."""
    word = word_of(enum, value)
    return Cell(word, _STYLE_OF.get(word, ""))


# --- images


def _os(os: v1.OperatingSystem) -> str:
    return joined((os.platform, os.version), " ")


def _image_state(image: v1.Image) -> Cell:
    retired = image.deprecation.state in (v1.Deprecation.STATE_DEPRECATED, v1.Deprecation.STATE_OBSOLETE)
    if retired and image.state == v1.Image.STATE_AVAILABLE:
        return _state(v1.Deprecation.State, image.deprecation.state)
    return _state(v1.Image.State, image.state)


_IMAGES = (
    Column("ID", lambda image: image.image_id, "whole"),
    Column("NAME", lambda image: image.name),
    Column("OS", lambda image: _os(image.os)),
    Column("ARCH", lambda image: word_of(v1.Architecture, image.architecture).lower(), "whole"),
    Column("REGION", lambda image: image.region_id, "whole"),
    Column("STATE", _image_state, "whole"),
    Column("KIND", lambda image: word_of(v1.ImageKind, image.kind), "whole"),
    Column("SIZE", lambda image: size(image.size_bytes), "whole"),
    Column("AGE", lambda image: age(image.create_time), "whole"),
)


def images(found: Iterable[v1.Image]) -> Table:
    """Images, each in a row."""
    return Table(list(found), _IMAGES, empty="no images")


def image(found: v1.Image) -> Row:
    """One image, in a row."""
    return Row([found], _IMAGES)


def image_details(image: v1.Image) -> Details:
    """Everything about one image."""
    return Details(image, [*_identity(image), *_contents(image), *_terms(image), *_history(image)])


def _identity(image: v1.Image) -> list[tuple[str, Cell | str]]:
    failure = f"{image.failure.reason}: {image.failure.message}" if image.failure.reason else ""
    return [
        ("id", image.image_id),
        ("name", image.name),
        ("description", image.description),
        ("region", image.region_id),
        ("kind", word_of(v1.ImageKind, image.kind)),
        ("owner", image.owner_account_id),
        ("state", _state(v1.Image.State, image.state)),
        ("failure", Cell(failure, "red")),
        ("trust", _state(v1.Image.Trust, image.trust)),
        ("retired", _deprecation(image.deprecation)),
    ]


def _contents(image: v1.Image) -> list[tuple[str, Cell | str]]:
    family = word_of(v1.OsFamily, image.os.family)
    checksum = image.content.checksum
    return [
        ("os", f"{_os(image.os)} ({family})"),
        ("architecture", word_of(v1.Architecture, image.architecture)),
        ("boots by", word_of(v1.BootMode, image.boot_mode)),
        ("cloud-init", "yes" if image.cloud_init else "no"),
        ("size", _exact(image.size_bytes)),
        ("smallest disk", _exact(image.min_disk_bytes)),
        ("smallest memory", _exact(image.min_memory_bytes)),
        ("software", joined(f"{software.name} {software.version}" for software in image.software)),
        ("family", image.family),
        ("labels", _labels(image)),
        ("contents", image.content.uri),
        (
            "checksum",
            f"{word_of(v1.Checksum.Algorithm, checksum.algorithm)} {checksum.value}" if checksum.value else "",
        ),
    ]


def _terms(image: v1.Image) -> list[tuple[str, Cell | str]]:
    pricing, support = image.pricing, image.support
    fee = f"{money(pricing.license_fee_per_hour)} per running hour" if pricing.HasField("license_fee_per_hour") else ""
    shared = f"{image.sharing.account_count} of {image.sharing.account_limit} accounts"
    return [
        ("price", pricing.note),
        ("licence", fee),
        ("storage", _quote(image.quote) if image.HasField("quote") else ""),
        ("shared with", shared if image.HasField("sharing") else ""),
        ("support", joined((support.contact_uri, support.note))),
    ]


def _history(image: v1.Image) -> list[tuple[str, Cell | str]]:
    source = image.source
    return [
        ("origin", word_of(v1.Image.Origin, image.origin)),
        ("made from", joined((source.instance_id, source.image_id, source.region_id, source.uri))),
        ("created", moment(image.create_time)),
        ("updated", moment(image.update_time)),
        ("deleted", moment(image.delete_time)),
        ("etag", image.etag),
    ]


def _deprecation(deprecation: v1.Deprecation) -> Cell:
    if deprecation.state not in (v1.Deprecation.STATE_DEPRECATED, v1.Deprecation.STATE_OBSOLETE):
        return Cell("")
    instead = f"use {deprecation.replacement_image_id}" if deprecation.replacement_image_id else ""
    state = _state(v1.Deprecation.State, deprecation.state)
    return Cell(joined((state.text, instead, deprecation.message)), state.style)


def _exact(size_bytes: int) -> str:
    return f"{size(size_bytes)} ({size_bytes} bytes)" if size_bytes else ""


def _labels(labelled: v1.Image | v1.Instance) -> str:
    return joined(f"{key}={value}" for key, value in sorted(labelled.labels.items()))


def shares(found: Iterable[v1.ImageShare]) -> Table:
    """Shares, each in a row."""
    columns = (
        Column("ACCOUNT", lambda share: share.account_id, "whole"),
        Column("IMAGE", lambda share: share.image_id, "whole"),
        Column("SINCE", lambda share: moment(share.create_time)),
    )
    return Table(list(found), columns, empty="shared with nobody")


# --- instances


_INSTANCES = (
    Column("ID", lambda instance: instance.instance_id, "whole"),
    Column("NAME", lambda instance: instance.name),
    Column("ZONE", lambda instance: instance.zone_id),
    Column("TYPE", lambda instance: instance.instance_type),
    Column("IMAGE", lambda instance: instance.image_id, "whole"),
    Column("STATE", lambda instance: _state(v1.Instance.State, instance.state)),
    Column("AGE", lambda instance: age(instance.create_time)),
)


def instances(found: Iterable[v1.Instance]) -> Table:
    """Instances, each in a row."""
    return Table(list(found), _INSTANCES, empty="no instances")


def instance(found: v1.Instance) -> Row:
    """One instance, in a row."""
    return Row([found], _INSTANCES)


def instance_details(instance: v1.Instance) -> Details:
    """Everything about one instance."""
    launch = instance.launch_image
    usable = "is still there to launch from" if launch.still_available else "is no longer there to launch from"
    return Details(
        instance,
        [
            ("id", instance.instance_id),
            ("name", instance.name),
            ("description", instance.description),
            ("account", instance.account_id),
            ("region", instance.region_id),
            ("zone", instance.zone_id),
            ("type", instance.instance_type),
            ("state", _state(v1.Instance.State, instance.state)),
            ("failure", Cell(instance.failure, "red")),
            ("operation", instance.operation),
            ("image", f"{instance.image_id} {launch.name}, which {usable}"),
            ("os", joined((_os(launch.os), word_of(v1.Architecture, launch.architecture)), " ")),
            ("trust at launch", _state(v1.Image.Trust, launch.trust)),
            ("labels", _labels(instance)),
            ("created", moment(instance.create_time)),
            ("updated", moment(instance.update_time)),
            ("deleted", moment(instance.delete_time)),
            ("etag", instance.etag),
        ],
    )


# --- regions, instance types, quotas, prices


def regions(found: Iterable[v1.Region]) -> Table:
    """Regions, each in a row."""
    columns = (
        Column("REGION", lambda region: region.region_id, "whole"),
        Column("NAME", lambda region: region.display_name),
        Column("STORAGE/GIB/MONTH", lambda region: money(region.prices.image_storage_per_gib_month)),
        Column("FREE", lambda region: size(region.prices.image_storage_free_bytes)),
        Column("WINDOWS/HOUR", lambda region: money(region.prices.windows_license_per_hour)),
        Column("ZONES", lambda region: joined((zone.zone_id for zone in region.zones), " "), "wrapped"),
    )
    return Table(list(found), columns, empty="no regions")


def instance_types(found: Iterable[v1.InstanceType]) -> Table:
    """Instance types, each in a row."""
    columns = (
        Column("TYPE", lambda each: each.instance_type, "whole"),
        Column("ARCH", lambda each: word_of(v1.Architecture, each.architecture).lower()),
        Column("VCPUS", lambda each: str(each.vcpu_count)),
        Column("MEMORY", lambda each: size(each.memory_bytes)),
        Column("DISK", lambda each: size(each.disk_bytes)),
    )
    return Table(list(found), columns, empty="no instance types")


def quotas(found: Iterable[v1.Quota]) -> Table:
    """Quotas, each in a row, with a bar of what is used."""
    columns = (
        Column("QUOTA", lambda quota: word_of(v1.QuotaId, quota.quota_id)),
        Column("OF", lambda quota: quota.image_id or quota.region_id, "whole"),
        Column("USED", lambda quota: str(quota.usage)),
        Column("BEING MADE", lambda quota: str(quota.reserved)),
        Column("LIMIT", lambda quota: f"{quota.limit}{' (default)' if quota.is_default else ''}"),
        Column("", _bar, "whole"),
    )
    return Table(list(found), columns, empty="no quotas")


def _bar(quota: v1.Quota) -> Cell:
    used = quota.usage + quota.reserved
    share = min(1.0, used / quota.limit) if quota.limit else 1.0
    style = "red" if share == 1 else "yellow" if share >= 0.8 else "green"
    filled = round(share * 20) or bool(used)
    return Cell("█" * filled + "░" * (20 - filled), style)


def quotes(found: Iterable[v1.PriceQuote]) -> Table:
    """Prices of images that would be made, each in a row."""
    columns = (
        Column("REGION", lambda quote: quote.region_id, "whole"),
        Column("SIZE", lambda quote: size(quote.size_bytes)),
        Column("FREE", lambda quote: size(quote.free_allowance_bytes)),
        Column("PER GIB AND MONTH", lambda quote: money(quote.storage_per_gib_month)),
        Column("A MONTH", lambda quote: Cell(money(quote.monthly_total), "bold")),
        Column("TRANSFER", lambda quote: money(quote.transfer)),
    )
    return Table(list(found), columns)


def _quote(quote: v1.PriceQuote) -> str:
    free = f", {size(quote.free_allowance_bytes)} of it free" if quote.free_allowance_bytes else ""
    per_gib = f"{size(quote.size_bytes)} at {money(quote.storage_per_gib_month)} per GiB{free}"
    return f"{money(quote.monthly_total)} a month ({per_gib})"


# --- operations


def _operation_json(operation: Operation[Any]) -> dict[str, object]:
    """An operation with what it made, or why it failed, as soon as it has ended."""
    known = {"name": operation.name, "done": operation.done, "metadata": as_json(operation.metadata)}
    if not operation.done:
        return known
    try:
        return {**known, "response": as_json(operation.result())}
    except Refused as refused:
        return {**known, "error": refusals.as_object(refused)}


def operations(found: Iterable[Operation[Any]]) -> Table:
    """Operations, each in a row."""
    columns = (
        Column("OPERATION", lambda each: each.name.removeprefix("operations/"), "whole"),
        Column("METHOD", lambda each: each.metadata.method),
        Column("STATE", _operation_state),
        Column("STEPS", lambda each: f"{each.metadata.progress_percent} %"),
        Column("TARGETS", lambda each: joined(each.metadata.target_ids, " ")),
        Column("AGE", lambda each: age(each.metadata.create_time)),
    )
    return Table(list(found), columns, empty="no operations", to_json=_operation_json)


def operation_details(operation: Operation[Any]) -> Details:
    """Everything about one operation, its steps below."""
    metadata = operation.metadata
    failure = _failure(operation)
    steps = Table(
        metadata.steps,
        (
            Column("STEP", lambda step: step.name),
            Column("REGION", lambda step: step.region_id),
            Column("TARGET", lambda step: step.target_id, "whole"),
            Column("STATE", lambda step: _state(v1.OperationMetadata.Step.State, step.state)),
            Column("ERROR", lambda step: step.error.message, "wrapped"),
        ),
    )
    return Details(
        operation,
        [
            ("name", operation.name),
            ("method", metadata.method),
            ("state", _operation_state(operation)),
            ("failure", Cell(str(failure) if failure else "", "red")),
            ("progress", f"{metadata.progress_percent} %"),
            ("account", metadata.account_id),
            ("called by", metadata.created_by),
            ("targets", joined(metadata.target_ids)),
            ("warnings", joined((warning.message for warning in metadata.warnings), "; ")),
            ("requested", moment(metadata.create_time)),
            ("begun", moment(metadata.start_time)),
            ("ended", moment(metadata.end_time)),
        ],
        (steps, quotes(metadata.quotes)),
        _operation_json,
    )


def _operation_state(operation: Operation[Any]) -> Cell:
    if not operation.done:
        begun = operation.metadata.HasField("start_time")
        word = "CANCELLING" if operation.metadata.cancel_requested else "RUNNING" if begun else "PENDING"
        return Cell(word, "yellow")
    failure = _failure(operation)
    if not failure:
        return Cell("SUCCEEDED", "green")
    return Cell("CANCELLED", "dim") if failure.code.name == "CANCELLED" else Cell("FAILED", "red")


def _failure(operation: Operation[Any]) -> Refused | None:
    """Why an operation failed; none if it did not, or has not ended."""
    try:
        if operation.done:
            operation.result()
    except Refused as refused:
        return refused
    return None


def step_text(step: v1.OperationMetadata.Step) -> str:
    """A step in a line."""
    state = word_of(v1.OperationMetadata.Step.State, step.state)
    return joined((step.name, step.region_id, step.target_id, state.lower()), " ")


def result_view(result: Message) -> Shown:
    """What an operation made, each in a row."""
    if isinstance(result, v1.CopyImageResponse):
        return images(each.image for each in result.results if each.HasField("image"))
    if isinstance(result, v1.CreateInstanceResponse):
        return instances(result.instances)
    if isinstance(result, v1.Instance):
        return instance(result)
    if isinstance(result, v1.Image):
        return image(result)
    assert isinstance(result, PackedMessage)
    return Details(result, [("made", result.type_url)])


def refusals_within(result: Message) -> list[Refused]:
    """Why parts of what an operation should have made are not there."""
    if not isinstance(result, v1.CopyImageResponse):
        return []
    return [Refused.from_status(each.error) for each in result.results if each.HasField("error")]


def unshared(answer: v1.UnshareImageResponse) -> Table:
    """The accounts that lost an image, each in a row."""
    return Table(
        list(answer.account_ids), (Column("TAKEN BACK FROM", str, "whole"),), empty="was shared with none of them",
        to_json=str,
    )  # fmt: skip
