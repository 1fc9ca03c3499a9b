"""Stored values as messages, and parts of requests as values. No rule beyond asking the rules what a caller may see."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2
from google.type import money_pb2

from cunho import v1 as pb
from cunho_rules import images as image_rules
from cunho_rules.checks import Action, Outcome, Verdict
from cunho_rules.model import (
    Account,
    Caller,
    Facts,
    Image,
    Instance,
    InstanceState,
    InstanceType,
    Kind,
    Operation,
    OperationState,
    Origin,
    Region,
    Role,
    etag,
)
from cunho_rules.pricing import Quote, license_nanos_per_hour
from cunho_rules.refusals import Reason, Refusal
from cunho_rules.warnings import Warning
from cunho_server import status


class EnumNames:
    """An enum of the protos, by the short names that are stored: AVAILABLE for STATE_AVAILABLE."""

    def __init__(self, enum: Any, prefix: str) -> None:
        self._numbers: dict[str, Any] = {name.removeprefix(prefix): number for name, number in enum.items()}
        self._names: dict[int, str] = {number: name for name, number in self._numbers.items()}

    def number(self, name: str) -> Any:
        """The number of a stored name; 0 of ""."""
        return self._numbers[name] if name else 0

    def name(self, number: int) -> str:
        """The name to store; "" of UNSPECIFIED."""
        return self._names[number] if number else ""


ARCHITECTURE = EnumNames(pb.Architecture, "ARCHITECTURE_")
OS_FAMILY = EnumNames(pb.OsFamily, "OS_FAMILY_")
BOOT_MODE = EnumNames(pb.BootMode, "BOOT_MODE_")
KIND = EnumNames(pb.ImageKind, "IMAGE_KIND_")
IMAGE_STATE = EnumNames(pb.Image.State, "STATE_")
ORIGIN = EnumNames(pb.Image.Origin, "ORIGIN_")
TRUST = EnumNames(pb.Image.Trust, "TRUST_")
DEPRECATION_STATE = EnumNames(pb.Deprecation.State, "STATE_")
ALGORITHM = EnumNames(pb.Checksum.Algorithm, "ALGORITHM_")
SUPPORT_KIND = EnumNames(pb.Support.Kind, "KIND_")
FORMAT = EnumNames(pb.ImportImageRequest.Format, "FORMAT_")
CONSISTENCY = EnumNames(pb.CreateImageRequest.Consistency, "CONSISTENCY_")
INSTANCE_STATE = EnumNames(pb.Instance.State, "STATE_")
ACCOUNT_STATE = EnumNames(pb.Account.State, "STATE_")
JURISDICTION = EnumNames(pb.Region.Jurisdiction, "JURISDICTION_")
STEP_STATE = EnumNames(pb.OperationMetadata.Step.State, "STATE_")
OUTCOME = EnumNames(pb.RuleOutcome.Outcome, "OUTCOME_")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(time: datetime | None) -> Timestamp | None:
    """The time as a message; None stays None."""
    if time is None:
        return None
    since = time - _EPOCH  # Timestamp.FromDatetime takes six times as long
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


def money(currency: str, nanos: int) -> money_pb2.Money:
    """An amount of nanos as a message."""
    return money_pb2.Money(currency_code=currency, units=nanos // 10**9, nanos=nanos % 10**9)


# --- images


def image(caller: Caller, image: Image) -> pb.Image:
    """The image as the caller may see it. Source: SEL-2, SHR-7, SHR-12, PUB-6."""
    kind = image_rules.kind(caller, image)
    assert kind is not None, "only visible images are shown"
    message = image_for_all(image)
    if kind is Kind.CUSTOM:
        message.MergeFrom(image_for_owner(image))
        message.MergeFrom(image_sharing(image.share_count, image.share_limit))
    if caller.role is Role.OPERATOR:
        message.content.uri = image.content_uri
    message.MergeFrom(
        image_of_kind(
            kind,
            image.os_family,
            image.jurisdiction,
            image.currency,
            image.image_storage_nanos,
            image.windows_license_nanos,
        )
    )
    return message


def image_for_all(image: Image) -> pb.Image:
    """What everybody who sees the image sees of it, in this version of it."""
    message = pb.Image(
        image_id=image.image_id,
        name=image.name,
        description=image.description,
        region_id=image.region_id,
        owner_account_id=image.owner_account_id or "",
        origin=ORIGIN.number(image.origin),
        state=IMAGE_STATE.number(image.state),
        os=pb.OperatingSystem(
            family=OS_FAMILY.number(image.os_family), platform=image.os_platform, version=image.os_version
        ),
        architecture=ARCHITECTURE.number(image.architecture),
        size_bytes=image.size_bytes,
        min_disk_bytes=image.min_disk_bytes,
        min_memory_bytes=image.min_memory_bytes,
        family=image.family,
        labels=image.labels,
        deprecation=pb.Deprecation(
            state=DEPRECATION_STATE.number(image.deprecation_state),
            replacement_image_id=image.replacement_image_id,
            message=image.deprecation_message,
        ),
        content=pb.ImageContent(
            uri=image.content_uri if image.owner_account_id is None else "",
            checksum=checksum(image.checksum_algorithm, image.checksum_value),
        ),
        software=[pb.Software(name=each["name"], version=each["version"]) for each in image.software],
        create_time=timestamp(image.create_time),
        update_time=timestamp(image.update_time),
        delete_time=timestamp(image.delete_time),
        cloud_init=image.cloud_init,
        boot_mode=BOOT_MODE.number(image.boot_mode),
        etag=etag(image.version),
    )
    if image.support_kind:
        message.support.kind = SUPPORT_KIND.number(image.support_kind)
        message.support.contact_uri, message.support.note = image.support_contact_uri, image.support_note
    if image.failure_reason:
        message.failure.reason, message.failure.message = image.failure_reason, image.failure_message
    return message


def image_for_owner(image: Image) -> pb.Image:
    """What the owner sees besides, in this version of the image."""
    message = pb.Image(
        source=pb.ImageSource(
            image_id=image.source_image_id or "",
            region_id=image.source_region_id,
            instance_id=image.source_instance_id,
            uri=image.source_uri,
        ),
        quote=quote(Quote(**image.quote)) if image.quote else None,
    )
    # What an account captured may be from an image that was shared with it: its URI is that image's.
    if image.origin == Origin.IMPORTED:
        message.content.uri = image.content_uri
    return message


def image_sharing(account_count: int, account_limit: int) -> pb.Image:
    """What the owner sees of the image's shares, which are no part of its version."""
    return pb.Image(sharing=pb.Sharing(account_count=account_count, account_limit=account_limit))


def image_of_kind(
    kind: Kind,
    os_family: str,
    jurisdiction: str,
    currency: str,
    image_storage_nanos: int,
    windows_license_nanos: int,
) -> pb.Image:
    """What depends on what the image is to the caller, and on the prices of its region."""
    public = kind is Kind.PUBLIC
    fee = license_nanos_per_hour(
        public=public,
        os_family=os_family,
        jurisdiction=jurisdiction,
        windows_license_nanos=windows_license_nanos,
    )
    if fee:
        pricing = pb.ImagePricing(
            license_fee_per_hour=money(currency, fee), note="Licence fee per running hour of each instance."
        )
    elif public:
        pricing = pb.ImagePricing(free=True, note="Free of charge.")
    else:
        storage = money(currency, image_storage_nanos)
        pricing = pb.ImagePricing(
            free=True, storage_per_gib_month=storage, note="Free to run; its owner pays for storage."
        )
    return pb.Image(kind=KIND.number(kind), trust=TRUST.number(image_rules.trust(kind)), pricing=pricing)


def checksum(algorithm: str, value: str) -> pb.Checksum | None:
    """The checksum as a message; None if there is none."""
    return pb.Checksum(algorithm=ALGORITHM.number(algorithm), value=value) if value else None


def quote(quote: Quote) -> pb.PriceQuote:
    """The quote as a message. Source: CUS-6, CUS-7."""
    return pb.PriceQuote(
        region_id=quote.region_id,
        size_bytes=quote.size_bytes,
        storage_per_gib_month=money(quote.currency, quote.storage_nanos_per_gib_month),
        free_allowance_bytes=quote.free_bytes,
        monthly_total=money(quote.currency, quote.monthly_nanos),
        transfer=money(quote.currency, 0),
    )


# --- instances


def instance(instance: Instance) -> pb.Instance:
    """The instance as a message."""
    return pb.Instance(
        instance_id=instance.instance_id,
        name=instance.name,
        description=instance.description,
        region_id=instance.region_id,
        zone_id=instance.zone_id,
        account_id=instance.account_id,
        instance_type=instance.instance_type,
        image_id=instance.image_id,
        launch_image=pb.LaunchImage(
            image_id=instance.image_id,
            name=instance.launch_name,
            owner_account_id=instance.launch_owner_account_id or "",
            kind=KIND.number(instance.launch_kind),
            trust=TRUST.number(instance.launch_trust),
            checksum=checksum(instance.launch_checksum_algorithm, instance.launch_checksum_value),
            still_available=instance.still_available,
            os=pb.OperatingSystem(
                family=OS_FAMILY.number(instance.launch_os_family),
                platform=instance.launch_os_platform,
                version=instance.launch_os_version,
            ),
            architecture=ARCHITECTURE.number(instance.launch_architecture),
        ),
        state=INSTANCE_STATE.number(instance.state),
        failure=instance.failure if instance.state == InstanceState.FAILED else "",
        labels=instance.labels,
        create_time=timestamp(instance.create_time),
        update_time=timestamp(instance.update_time),
        delete_time=timestamp(instance.delete_time),
        operation=operation_name(instance.operation_id),
        etag=etag(instance.version),
    )


def instance_type(instance_type: InstanceType) -> pb.InstanceType:
    """The instance type as a message."""
    return pb.InstanceType(
        instance_type=instance_type.instance_type,
        architecture=ARCHITECTURE.number(instance_type.architecture),
        vcpu_count=instance_type.vcpu_count,
        memory_bytes=instance_type.memory_bytes,
        disk_bytes=instance_type.disk_bytes,
    )


# --- operations


def operation_name(operation_id: str | None) -> str:
    """The name of the operation with that id; "" if there is none."""
    return f"operations/{operation_id}" if operation_id else ""


def operation(operation: Operation) -> operations_pb2.Operation:
    """The operation as a message, with its metadata and, once it has ended, its response or its error."""
    message = operations_pb2.Operation(name=operation_name(operation.operation_id), done=operation.end_time is not None)
    message.metadata.Pack(_metadata(operation))
    if operation.response is not None:
        message.response.ParseFromString(operation.response)
    if operation.error is not None:
        message.error.CopyFrom(status_pb2.Status.FromString(operation.error))
    return message


def _metadata(operation: Operation) -> pb.OperationMetadata:
    told = steps(operation)
    ended = sum(step["state"] not in ("PENDING", "RUNNING") for step in told)
    done = operation.end_time is not None
    return pb.OperationMetadata(
        method=operation.method,
        target_ids=operation.target_ids,
        account_id=operation.account_id,
        created_by=operation.created_by,
        request_id=operation.request_id,
        create_time=timestamp(operation.create_time),
        start_time=timestamp(operation.start_time),
        end_time=timestamp(operation.end_time),
        progress_percent=100 if done else 100 * ended // len(told),
        steps=_steps(told, operation.state),
        cancel_requested=operation.cancel_requested,
        warnings=[pb.Warning(**each) for each in operation.warnings],
        quotes=[quote(Quote(**each)) for each in operation.quotes],
    )


def steps(operation: Operation) -> list[dict[str, Any]]:
    """The steps as they are; see `step_to_store`."""
    return [
        {**step, "state": "FAILED"} if step["state"] == "PENDING" and step["error"] else {**step}
        for step in operation.steps
    ]


def step_to_store(step: Mapping[str, Any]) -> dict[str, Any]:
    """The step as it is stored before the operation ends: if its work failed, it is PENDING and has its error.

    Servers of 0.1.0, which may take the operation over, ask for it again then; of one that has FAILED they would finish
    the image. One that was taken back is PENDING as well: it is not done, and the operation is not at its end.
    """
    passing = step["state"] == "CANCELLED" or (step["state"] == "FAILED" and step["target_id"])
    return {**step, "state": "PENDING"} if passing else {**step}


def _steps(steps: Iterable[Mapping[str, Any]], state: str) -> Iterator[pb.OperationMetadata.Step]:
    """The steps. They are done in turn: while somebody does them, the first that is PENDING is under way."""
    under_way = "RUNNING" if state == OperationState.RUNNING else "PENDING"
    for step in steps:
        if step["state"] == "PENDING":
            step, under_way = {**step, "state": under_way}, "PENDING"
        yield _step(step)


def _step(step: Mapping[str, Any]) -> pb.OperationMetadata.Step:
    return pb.OperationMetadata.Step(
        name=step["name"],
        region_id=step["region_id"],
        target_id=step["target_id"],
        state=STEP_STATE.number(step["state"]),
        error=status.status(refusal_of(step["error"])) if step["state"] == "FAILED" else None,
    )


def refusal_as_json(refusal: Refusal) -> dict[str, Any]:
    """The refusal as a JSON value, for keeping."""
    return {"reason": refusal.reason, "rule": refusal.rule, "metadata": dict(refusal.metadata)}


def refusal_of(kept: Mapping[str, Any]) -> Refusal:
    """The refusal that was kept."""
    return Refusal(Reason(kept["reason"]), rule=kept["rule"], **kept["metadata"])


def warning(warning: Warning) -> pb.Warning:
    """The warning as a message."""
    return pb.Warning(reason=warning.reason, message=warning.message, metadata=warning.metadata)


# --- decisions


def decision(action: Action, facts: Facts, warnings: Iterable[Warning]) -> pb.Decision:
    """What every check of the action says of the facts."""
    outcomes = [_outcome(outcome) for outcome in action.outcomes(facts)]
    denied = any(outcome.outcome == pb.RuleOutcome.OUTCOME_DENIED for outcome in outcomes)
    return pb.Decision(
        action=action.name,
        allowed=not denied,
        outcomes=outcomes,
        warnings=[] if denied else map(warning, warnings),
    )


def _outcome(outcome: Outcome) -> pb.RuleOutcome:
    message = pb.RuleOutcome(
        rule=outcome.check.rule, demand=outcome.check.demand, outcome=OUTCOME.number(outcome.verdict)
    )
    if outcome.verdict is Verdict.DENIED and outcome.refusal is not None:
        message.reason, message.message = outcome.refusal.reason, str(outcome.refusal)
        message.remedy = outcome.refusal.remedy
        message.metadata.update(outcome.refusal.metadata)
    return message


# --- accounts and regions


def account(account: Account) -> pb.Account:
    """The account as a message."""
    return pb.Account(
        account_id=account.account_id,
        display_name=account.display_name,
        region_ids=account.region_ids,
        state=ACCOUNT_STATE.number(account.state),
        create_time=timestamp(account.create_time),
        update_time=timestamp(account.update_time),
        etag=etag(account.version),
    )


def region(region: Region) -> pb.Region:
    """The region as a message."""
    return pb.Region(
        region_id=region.region_id,
        display_name=region.display_name,
        zones=[pb.Zone(zone_id=zone_id) for zone_id in region.zone_ids],
        jurisdiction=JURISDICTION.number(region.jurisdiction),
        prices=pb.PriceTable(
            image_storage_per_gib_month=money(region.currency, region.image_storage_nanos),
            image_storage_free_bytes=region.image_storage_free_bytes,
            windows_license_per_hour=money(region.currency, region.windows_license_nanos),
        ),
    )
