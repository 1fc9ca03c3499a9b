"""The checks about images, and what an image is to a caller.

Each check returns the refusal, or None. Checks of a later stage than VISIBILITY may rely on the image being there.
"""

from cunho_rules.checks import Stage, check
from cunho_rules.imports import IMPORTABLE_ENDINGS, uri_problem
from cunho_rules.limits import IMPORT_DISK_BYTES, IMPORT_SIZE_BYTES
from cunho_rules.model import (
    BEING_MADE,
    Caller,
    DeprecationState,
    Facts,
    Image,
    ImageState,
    InstanceType,
    JudgedImage,
    Kind,
    Role,
    ShownImage,
    Trust,
    etag,
)
from cunho_rules.refusals import Reason, Refusal

# --- what an image is to a caller


def kind(caller: Caller, image: Image | JudgedImage | ShownImage) -> Kind | None:
    """What the image is to the caller; None if the caller does not see it. Source: SEL-2, CUS-2."""
    if image.owner_account_id is None:
        return Kind.PUBLIC
    if caller.role is Role.OPERATOR or image.owner_account_id == caller.account_id:
        return Kind.CUSTOM
    return Kind.SHARED if image.shared_with_caller else None


def trust(kind: Kind) -> Trust:
    """Who answers for the contents of an image of that kind. Source: PUB-5, SHR-7."""
    return _TRUST[kind]


_TRUST = {Kind.PUBLIC: Trust.PROVIDER, Kind.CUSTOM: Trust.OWN, Kind.SHARED: Trust.UNVERIFIED}


def fits(image: Image | JudgedImage, instance_type: InstanceType) -> tuple[str, str, str] | None:
    """None if instances of the type can run the image, else what does not fit, what is needed, what is given.

    Source: INS-2.
    """
    if instance_type.architecture not in runs_on(image.architecture):
        return "architecture", image.architecture, instance_type.architecture
    if instance_type.memory_bytes < image.min_memory_bytes:
        return "memory_bytes", str(image.min_memory_bytes), str(instance_type.memory_bytes)
    if instance_type.disk_bytes < image.min_disk_bytes:
        return "disk_bytes", str(image.min_disk_bytes), str(instance_type.disk_bytes)
    return None


def runs_on(architecture: str) -> tuple[str, ...]:
    """The architectures of instance types that run images of `architecture`. Source: INS-2."""
    return ("I386", "X86_64") if architecture == "I386" else (architecture,)


def runnable(architecture: str) -> tuple[str, ...]:
    """The architectures of images that run on instance types of `architecture`; the inverse of `runs_on`."""
    return ("I386", "X86_64") if architecture == "X86_64" else (architecture,)


# --- visibility


@check("SEL-2", Stage.VISIBILITY)
def image_visible(facts: Facts) -> Refusal | None:
    """The image exists and is visible to the caller."""
    image = facts.image or facts.shown_image
    if image is None or kind(facts.caller, image) is None:
        return Refusal(Reason.IMAGE_NOT_FOUND, image_id=facts.image_id)
    return None


@check("PUB-4", Stage.VISIBILITY)
def family_resolves(facts: Facts) -> Refusal | None:
    """The family has a public image in the region that can be launched."""
    if facts.image is None:
        return Refusal(Reason.IMAGE_FAMILY_NOT_FOUND, family=facts.family, region_id=facts.region_id)
    return None


@check("SEL-2", Stage.VISIBILITY)
def replacement_visible(facts: Facts) -> Refusal | None:
    """The replacement, if one is named, is visible to the caller and in the same region."""
    if not facts.replacement_image_id:
        return None
    other, image = facts.replacement, facts.image
    if other is None or image is None or kind(facts.caller, other) is None or other.region_id != image.region_id:
        return Refusal(Reason.IMAGE_NOT_FOUND, image_id=facts.replacement_image_id)
    return None


# --- permission


@check("PUB-8", Stage.PERMISSION)
def public_by_operator_only(facts: Facts) -> Refusal | None:
    """If the image is public, the caller is the operator."""
    return _if_public(facts) if facts.caller.role is not Role.OPERATOR else None


@check("PUB-8", Stage.PERMISSION)
def not_public(facts: Facts) -> Refusal | None:
    """The image is not public."""
    return _if_public(facts)


@check("SHR-3", Stage.PERMISSION)
def shared_not_modifiable(facts: Facts) -> Refusal | None:
    """The image is not one that is only shared with the caller."""
    return _if_shared(facts, Reason.SHARED_IMAGE_NOT_MODIFIABLE)


@check("SHR-4", Stage.PERMISSION)
def shared_not_copyable(facts: Facts) -> Refusal | None:
    """The image is not one that is only shared with the caller."""
    return _if_shared(facts, Reason.SHARED_IMAGE_NOT_COPYABLE)


@check("SHR-5", Stage.PERMISSION)
def shared_not_reshareable(facts: Facts) -> Refusal | None:
    """The image is not one that is only shared with the caller."""
    return _if_shared(facts, Reason.SHARED_IMAGE_NOT_RESHAREABLE)


@check("SHR-6", Stage.PERMISSION)
def shared_not_deletable(facts: Facts) -> Refusal | None:
    """The image is not one that is only shared with the caller."""
    return _if_shared(facts, Reason.SHARED_IMAGE_NOT_DELETABLE)


@check("SHR-12", Stage.PERMISSION)
def shares_not_hidden(facts: Facts) -> Refusal | None:
    """The image is not one that is only shared with the caller."""
    return _if_shared(facts, Reason.SHARED_IMAGE_SHARES_HIDDEN)


@check("CUS-4", Stage.PERMISSION)
def owner_only(facts: Facts) -> Refusal | None:
    """The caller owns the image, if an account does."""
    owner = _image(facts).owner_account_id
    if owner is not None and owner != facts.caller.account_id:
        return Refusal(Reason.IMAGE_OWNER_ONLY, image_id=facts.image_id, action=facts.action)
    return None


# --- state


@check("ALL-4", Stage.STATE)
def image_etag(facts: Facts) -> Refusal | None:
    """The etag, if given, is the image's."""
    current = etag(_image(facts).version)
    if facts.etag and facts.etag != current:
        return Refusal(Reason.ETAG_MISMATCH, resource_id=facts.image_id, given=facts.etag, current=current)
    return None


@check("SHR-10", Stage.STATE)
def available_to_share(facts: Facts) -> Refusal | None:
    """The image is AVAILABLE."""
    return _unless_available(facts)


@check("CUS-12", Stage.STATE)
def available_to_copy(facts: Facts) -> Refusal | None:
    """The image is AVAILABLE."""
    return _unless_available(facts)


@check("PUB-4", Stage.STATE)
def available_to_deprecate(facts: Facts) -> Refusal | None:
    """The image is AVAILABLE."""
    return _unless_available(facts)


@check("PUB-4", Stage.STATE)
def replacement_public(facts: Facts) -> Refusal | None:
    """The replacement of a public image, if one is named, is public."""
    image, other = _image(facts), facts.replacement
    if image.owner_account_id is None and other is not None and other.owner_account_id is not None:
        return Refusal(
            Reason.REPLACEMENT_NOT_PUBLIC, image_id=facts.image_id, replacement_image_id=facts.replacement_image_id
        )
    return None


@check("INS-1", Stage.STATE)
def available_to_launch(facts: Facts) -> Refusal | None:
    """The image is AVAILABLE."""
    return _unless_available(facts)


@check("PUB-4", Stage.STATE)
def not_obsolete(facts: Facts) -> Refusal | None:
    """The image is not obsolete."""
    image = _image(facts)
    if image.deprecation_state == DeprecationState.OBSOLETE:
        return Refusal(
            Reason.IMAGE_OBSOLETE,
            image_id=image.image_id,
            replacement_image_id=image.replacement_image_id,
            action=facts.action,
        )
    return None


@check("INS-1", Stage.STATE, needs=("region_id",))
def image_in_region(facts: Facts) -> Refusal | None:
    """The image is in the region of the instance."""
    image, region_id = _image(facts), facts.region_id
    if image.region_id != region_id:
        return Refusal(
            Reason.IMAGE_REGION_MISMATCH,
            image_id=image.image_id,
            image_region_id=image.region_id,
            region_id=region_id,
        )
    return None


@check("INS-2", Stage.STATE, needs=("instance_type",))
def image_fits_type(facts: Facts) -> Refusal | None:
    """Architecture, memory and disk of the instance type fit the image."""
    image, instance_type = _image(facts), facts.instance_type
    assert instance_type is not None
    if misfit := fits(image, instance_type):
        property, needed, given = misfit
        return Refusal(
            Reason.IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE,
            image_id=image.image_id,
            instance_type=instance_type.instance_type,
            property=property,
            needed=needed,
            given=given,
        )
    return None


@check("CUS-12", Stage.STATE, needs=("place",))
def copied_elsewhere(facts: Facts) -> Refusal | None:
    """The destination is another region than the image's."""
    assert facts.place is not None
    if facts.place.region_id == _image(facts).region_id:
        return Refusal(Reason.COPY_TO_SAME_REGION, image_id=facts.image_id, region_id=facts.place.region_id)
    return None


@check("CUS-11", Stage.STATE)
def not_busy(facts: Facts) -> Refusal | None:
    """The image is not being made or copied from."""
    state = _image(facts).state
    if state in BEING_MADE or facts.copies:
        return Refusal(Reason.IMAGE_BUSY, image_id=facts.image_id, state=state, copies=facts.copies)
    return None


@check("CUS-11", Stage.STATE)
def not_shared(facts: Facts) -> Refusal | None:
    """The image is shared with nobody, or force is set."""
    count = _image(facts).share_count
    if count and not facts.force:
        return Refusal(
            Reason.IMAGE_SHARED, image_id=facts.image_id, account_count=count, account_ids=[*facts.shared_with]
        )
    return None


@check("SHR-12", Stage.STATE)
def shared_with_caller(facts: Facts) -> Refusal | None:
    """The image is shared with the caller."""
    if kind(facts.caller, _image(facts)) is not Kind.SHARED:
        return Refusal(Reason.IMAGE_NOT_SHARED_WITH_CALLER, image_id=facts.image_id)
    return None


# --- sharing


@check("SHR-10", Stage.SHAPE, needs=("recipients",))
def not_with_self(facts: Facts) -> Refusal | None:
    """None of the accounts is the one that shares."""
    assert facts.recipients is not None
    if any(recipient.account_id == facts.caller.account_id for recipient in facts.recipients):
        return Refusal(Reason.SHARE_WITH_SELF, account_id=facts.caller.account_id)
    return None


@check("SHR-10", Stage.STATE, needs=("recipients",))
def recipients_known(facts: Facts) -> Refusal | None:
    """Every account that is added is registered."""
    unknown = [recipient.account_id for recipient in facts.added if not recipient.known]
    return Refusal(Reason.ACCOUNT_NOT_FOUND, account_ids=unknown) if unknown else None


@check("SHR-10", Stage.STATE, needs=("recipients",))
def available_to_share_further(facts: Facts) -> Refusal | None:
    """The image is AVAILABLE, if accounts are added."""
    return _unless_available(facts) if facts.added else None


@check("SHR-9", Stage.STATE, needs=("recipients",))
def recipients_in_region(facts: Facts) -> Refusal | None:
    """Every account that is added is active in the image's region."""
    elsewhere = [recipient.account_id for recipient in facts.added if not recipient.in_region]
    if elsewhere:
        return Refusal(Reason.SHARE_REGION_MISMATCH, account_ids=elsewhere, region_id=_image(facts).region_id)
    return None


@check("SHR-8", Stage.QUOTA, needs=("recipients",))
def share_quota(facts: Facts) -> Refusal | None:
    """The image has room for the accounts that are added to it."""
    return _unless_room(facts, _image(facts).share_count)


@check("SHR-8", Stage.QUOTA, needs=("recipients",))
def share_quota_of_whole_list(facts: Facts) -> Refusal | None:
    """The image has room for the accounts of the whole list."""
    assert facts.recipients is not None
    return _unless_room(facts, sum(recipient.shared for recipient in facts.recipients))


# --- importing


@check("CUS-10", Stage.SHAPE, needs=("upload",))
def uri_allowed(facts: Facts) -> Refusal | None:
    """The URI is an https URI of an allowed host, without credentials."""
    assert facts.upload is not None
    if problem := uri_problem(facts.upload.uri, facts.upload.allowed_hosts):
        return Refusal(Reason.IMPORT_URI_NOT_ALLOWED, problem=problem, allowed=[*facts.upload.allowed_hosts])
    return None


@check("CUS-10", Stage.STATE, needs=("upload",))
def format_agrees(facts: Facts) -> Refusal | None:
    """The ending of the file's name, if it tells a format, tells the declared one."""
    assert facts.upload is not None
    path = facts.upload.uri.partition("?")[0].partition("#")[0].lower()
    found = next((format for ending, format in IMPORTABLE_ENDINGS.items() if path.endswith(ending)), None)
    if found and found != facts.upload.format:
        return Refusal(Reason.IMAGE_FORMAT_MISMATCH, format=facts.upload.format, found=found)
    return None


@check("CUS-10", Stage.STATE, needs=("upload",))
def small_enough(facts: Facts) -> Refusal | None:
    """The file has at most 50 GiB, the disk in it at most 500 GiB."""
    assert facts.upload is not None
    for field, limit in (("size_bytes", IMPORT_SIZE_BYTES), ("min_disk_bytes", IMPORT_DISK_BYTES)):
        if (size := getattr(facts.upload, field)) > limit:
            return Refusal(Reason.IMAGE_TOO_LARGE, field=field, size_bytes=size, limit_bytes=limit)
    return None


def _image(facts: Facts) -> Image | JudgedImage:
    assert facts.image is not None, "visibility is checked first"
    return facts.image


def _if_public(facts: Facts) -> Refusal | None:
    if _image(facts).owner_account_id is None:
        return Refusal(Reason.PUBLIC_IMAGE_READ_ONLY, image_id=facts.image_id, action=facts.action)
    return None


def _if_shared(facts: Facts, reason: Reason) -> Refusal | None:
    if kind(facts.caller, _image(facts)) is Kind.SHARED:
        return Refusal(reason, image_id=facts.image_id, action=facts.action)
    return None


def _unless_available(facts: Facts) -> Refusal | None:
    image = _image(facts)
    if image.state != ImageState.AVAILABLE:
        return Refusal(
            Reason.IMAGE_STATE_INVALID,
            image_id=image.image_id,
            state=image.state,
            allowed=ImageState.AVAILABLE,
            action=facts.action,
        )
    return None


def _unless_room(facts: Facts, usage: int) -> Refusal | None:
    image, requested = _image(facts), len(facts.added)
    if requested and usage + requested > image.share_limit:
        return Refusal(
            Reason.SHARE_QUOTA_EXCEEDED,
            image_id=image.image_id,
            limit=image.share_limit,
            usage=usage,
            requested=requested,
        )
    return None
