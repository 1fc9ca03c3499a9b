"""New images: the values of their rows, the places they take, and the operations that make them.

The rules have been asked before; nothing is refused here but destinations of a copy, each by itself.
"""

from collections.abc import Sequence
from typing import Any

from google.longrunning.operations_pb2 import Operation

from cunho import v1 as pb
from cunho_rules import pricing
from cunho_rules.actions import COPY_IMAGE
from cunho_rules.limits import ACCOUNTS_PER_IMAGE
from cunho_rules.model import DeprecationState, Facts, Image, ImageState, InstanceState, Origin
from cunho_rules.pricing import Quote
from cunho_rules.refusals import Code, Reason
from cunho_server import messages
from cunho_server.servicer import Mutation
from cunho_server.work import step
from cunho_storage import accounts, images, instances
from cunho_storage.database import Conflict
from cunho_storage.facts_of import Software

#: What a new image is where nothing else is said.
_NEW: dict[str, Any] = {
    "description": "",
    "owner_account_id": None,
    "failure_reason": "",
    "failure_message": "",
    "min_memory_bytes": 0,
    "family": "",
    "labels": {},
    "deprecation_state": DeprecationState.CURRENT,
    "replacement_image_id": "",
    "deprecation_message": "",
    "checksum_algorithm": "",
    "checksum_value": "",
    "source_image_id": None,
    "source_region_id": "",
    "source_instance_id": "",
    "source_uri": "",
    "copy_owner_account_id": None,
    "software": [],
    "share_count": 0,
    "share_limit": ACCOUNTS_PER_IMAGE,
    "support_kind": "",
    "support_contact_uri": "",
    "support_note": "",
    "cloud_init": False,
    "boot_mode": "",
    "quote": None,
    "version": 1,
    "delete_time": None,
}


async def create(mutation: Mutation, request: pb.CreateImageRequest, facts: Facts, software: Software) -> Operation:
    """The operation that makes an image of the caller's from an instance with software. Source: CUS-1, CUS-9."""
    instance, image_id, operation_id = facts.instance, mutation.new_id("img"), mutation.new_id("op")
    assert instance is not None
    quote = _quote(facts, instance.launch_size_bytes)
    values = {
        "origin": Origin.INSTANCE,
        "state": ImageState.CREATING,
        "os_family": instance.launch_os_family,
        "os_platform": instance.launch_os_platform,
        "os_version": instance.launch_os_version,
        "architecture": instance.launch_architecture,
        "size_bytes": instance.launch_size_bytes,
        "min_disk_bytes": instance.launch_min_disk_bytes,
        "min_memory_bytes": instance.launch_min_memory_bytes,
        "content_uri": instance.launch_content_uri,
        "checksum_algorithm": instance.launch_checksum_algorithm,
        "checksum_value": instance.launch_checksum_value,
        "source_image_id": instance.image_id,
        "source_region_id": instance.region_id,
        "source_instance_id": instance.instance_id,
        "software": software,
        "cloud_init": instance.launch_cloud_init,
        "boot_mode": instance.launch_boot_mode,
    }
    await _add(mutation, image_id, facts, quote, _described(request) | values)
    stops = (
        messages.CONSISTENCY.name(request.consistency) != "CRASH_CONSISTENT" and instance.state == InstanceState.RUNNING
    )
    names = ("stop", "capture", "start") if stops else ("capture",)
    return await mutation.begin(
        operation_id,
        method="CreateImage",
        region_id=request.region_id,
        target_ids=[image_id],
        steps=[
            step(name, request.region_id, image_id if name == "capture" else instance.instance_id) for name in names
        ],
        input={"instance_id": instance.instance_id, "instance_state": instance.state},
        quotes=[quote],
        first=instances.moving(instance, InstanceState.IMAGING, operation_id),
    )


async def import_(mutation: Mutation, request: pb.ImportImageRequest, facts: Facts) -> Operation:
    """The operation that makes an image of the caller's from what a URI names. Source: CUS-1, CUS-10."""
    image_id, operation_id = mutation.new_id("img"), mutation.new_id("op")
    quote = _quote(facts, request.size_bytes)
    values = {
        "origin": Origin.IMPORTED,
        "state": ImageState.IMPORTING,
        "content_uri": request.uri,
        "checksum_algorithm": messages.ALGORITHM.name(request.expected_checksum.algorithm),
        "checksum_value": request.expected_checksum.value,
        "source_uri": request.uri,
    }
    await _add(mutation, image_id, facts, quote, _described(request) | _machine(request) | values)
    return await mutation.begin(
        operation_id,
        method="ImportImage",
        region_id=request.region_id,
        target_ids=[image_id],
        steps=[step("import", request.region_id, image_id)],
        quotes=[quote],
    )


async def copy(mutation: Mutation, request: pb.CopyImageRequest, destinations: Sequence[Facts]) -> Operation:
    """The operation that copies an image of the caller's to the destinations that do not refuse.

    Refuses: whatever is wrong with the call itself, and the first refusal if every destination refuses.
    Source: CUS-7, CUS-12.
    """
    refusals = [COPY_IMAGE.refusal(facts) for facts in destinations]
    malformed = [each for each in refusals if each and each.code is Code.INVALID_ARGUMENT]
    # A region that is none is wrong whatever the image is, so it comes before the image's own region: ALL-6.
    first = min(malformed, key=lambda each: each.reason is Reason.COPY_TO_SAME_REGION, default=refusals[0])
    if first is not None and (first.code is Code.INVALID_ARGUMENT or all(refusals)):
        raise first
    operation_id = mutation.new_id("op")
    steps, quotes = [], []
    for facts, refusal in zip(destinations, refusals, strict=True):
        assert facts.region_id is not None
        if refusal is not None:
            steps.append(step("copy", facts.region_id, refusal=refusal))
            continue
        image_id = mutation.new_id("img")
        quotes.append(quote := _quote(facts, _source(facts).size_bytes))
        await _add(mutation, image_id, facts, quote, _copied(_source(facts), copy_labels=request.copy_labels))
        steps.append(step("copy", facts.region_id, image_id))
    return await mutation.begin(
        operation_id,
        method="CopyImage",
        region_id=_source(destinations[0]).region_id,
        target_ids=[each["target_id"] for each in steps if each["target_id"]],
        steps=steps,
        input={"source_image_id": request.image_id},
        quotes=quotes,
    )


def public(image_id: str, request: pb.PublishImageRequest) -> dict[str, Any]:
    """The values of a public image. Source: PUB-2, PUB-5, PUB-7."""
    return (
        _NEW
        | _described(request)
        | _machine(request)
        | {
            "image_id": image_id,
            "name": request.name,
            "region_id": request.region_id,
            "origin": Origin.PUBLISHED,
            "state": ImageState.AVAILABLE,
            "min_memory_bytes": request.min_memory_bytes,
            "content_uri": request.content.uri,
            "checksum_algorithm": messages.ALGORITHM.name(request.content.checksum.algorithm),
            "checksum_value": request.content.checksum.value,
            "software": [{"name": each.name, "version": each.version} for each in request.software],
            "support_kind": messages.SUPPORT_KIND.name(request.support.kind),
            "support_contact_uri": request.support.contact_uri,
            "support_note": request.support.note,
        }
    )


def _described(request: Any) -> dict[str, Any]:
    return {"description": request.description, "family": request.family, "labels": dict(request.labels)}


def _machine(request: pb.ImportImageRequest | pb.PublishImageRequest) -> dict[str, Any]:
    architecture = messages.ARCHITECTURE.name(request.architecture)
    return {
        "os_family": messages.OS_FAMILY.name(request.os.family),
        "os_platform": request.os.platform,
        "os_version": request.os.version,
        "architecture": architecture,
        "size_bytes": request.size_bytes,
        "min_disk_bytes": request.min_disk_bytes,
        "cloud_init": request.cloud_init,
        "boot_mode": messages.BOOT_MODE.name(request.boot_mode) or ("BIOS" if architecture == "I386" else "UEFI"),
    }


#: What a copy has from its source.
_COPIED = (
    "description os_family os_platform os_version architecture size_bytes min_disk_bytes min_memory_bytes family"
    " content_uri checksum_algorithm checksum_value software cloud_init boot_mode"
).split()


def _copied(source: Image, *, copy_labels: bool) -> dict[str, Any]:
    return {name: getattr(source, name) for name in _COPIED} | {
        "origin": Origin.COPIED,
        "state": ImageState.COPYING,
        "labels": source.labels if copy_labels else {},
        "source_image_id": source.image_id,
        "source_region_id": source.region_id,
        "copy_owner_account_id": source.owner_account_id,
    }


def _source(facts: Facts) -> Image:
    assert isinstance(facts.image, Image)
    return facts.image


def _quote(facts: Facts, size_bytes: int) -> Quote:
    assert facts.region is not None
    assert facts.place is not None
    return pricing.quote(facts.region, size_bytes, facts.place.stored_bytes)


async def _add(mutation: Mutation, image_id: str, facts: Facts, quote: Quote, values: dict[str, Any]) -> None:
    """Adds a custom image of the caller's and counts it in the quota."""
    place, caller = facts.place, mutation.caller
    assert place is not None
    if not await accounts.take_place(mutation.connection, caller.account_id, place.region_id):
        raise Conflict("place")
    fixed = {
        "image_id": image_id,
        "name": place.name,
        "region_id": place.region_id,
        "owner_account_id": caller.account_id,
        "quote": quote._asdict(),
    }
    await images.add(mutation.connection, _NEW | values | fixed)
