"""A second opinion on the rules: the service as a plain Python model, written from the rules and the protos' comments.

Nothing of the service is imported here. A call either raises Refused, and nothing has changed, or changes the model.
Each call asks `refuse` once for each stage of ALL-6, in that order: which of the rules of one stage refuses first is
the service's choice. New things are given the ids that the service gave them. Operations end at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OPERATOR = "operator"
REGION_IDS = ("ap-guangzhou", "ap-shanghai", "eu-frankfurt")

BEING_MADE = ("CREATING", "IMPORTING", "COPYING")
"""States of an image that an operation makes. Nothing here leads to them; histories, whose operations take time, do."""

IMAGES_LIMIT, SHARES_LIMIT = 10, 50
"""The limits of CUS-5 and SHR-8, where the operator has set no other."""

GIB = 2**30
MEMORY_BYTES = {"S5.MEDIUM4": 4 * GIB, "S5.SMALL1": 1 * GIB}
"""The memory of each instance type."""

CODES = {
    reason: code
    for code, reasons in {
        "INVALID_ARGUMENT": "COPY_TO_SAME_REGION REGION_NOT_FOUND SHARE_WITH_SELF",
        "NOT_FOUND": "ACCOUNT_NOT_FOUND IMAGE_FAMILY_NOT_FOUND IMAGE_NOT_FOUND INSTANCE_NOT_FOUND",
        "ALREADY_EXISTS": "ACCOUNT_ALREADY_EXISTS IMAGE_NAME_TAKEN",
        "ABORTED": "ETAG_MISMATCH",
        "PERMISSION_DENIED": "ACCOUNT_ROLE_REQUIRED IMAGE_OWNER_ONLY INSTANCE_OWNER_ONLY OPERATOR_ROLE_REQUIRED"
        " PUBLIC_IMAGE_READ_ONLY SHARED_IMAGE_NOT_COPYABLE SHARED_IMAGE_NOT_DELETABLE SHARED_IMAGE_NOT_MODIFIABLE"
        " SHARED_IMAGE_NOT_RESHAREABLE SHARED_IMAGE_SHARES_HIDDEN",
        "RESOURCE_EXHAUSTED": "CUSTOM_IMAGE_QUOTA_EXCEEDED SHARE_QUOTA_EXCEEDED",
        "FAILED_PRECONDITION": "ACCOUNT_NOT_IN_REGION ACCOUNT_REGION_IN_USE ACCOUNT_SUSPENDED"
        " IMAGE_BUSY IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE IMAGE_NOT_SHARED_WITH_CALLER IMAGE_OBSOLETE"
        " IMAGE_REGION_MISMATCH IMAGE_SHARED IMAGE_STATE_INVALID INSTANCE_REGION_MISMATCH INSTANCE_STATE_INVALID"
        " QUOTA_BELOW_USAGE REPLACEMENT_NOT_PUBLIC SHARE_REGION_MISMATCH",
    }.items()
    for reason in reasons.split()
}
"""The status code that each reason travels with."""


class Refusal(NamedTuple):
    """One rule's no."""

    reason: str
    #: What the service must say about it; it may say more.
    metadata: dict[str, str]

    @property
    def code(self) -> str:
        """The status code that it travels with."""
        return CODES[self.reason]


class Refused(Exception):
    """A call is refused: by any of these, which are of one stage."""

    def __init__(self, refusals: list[Refusal]) -> None:
        super().__init__(refusals)
        self.refusals = refusals


def when(refuses: bool, reason: str, **metadata: object) -> Refusal | None:
    """The refusal, if it holds. Lists in the metadata are joined by commas."""
    if not refuses:
        return None
    return Refusal(
        reason, {key: _listed(value) if isinstance(value, list) else str(value) for key, value in metadata.items()}
    )


def _listed(values: list[str]) -> str:
    """The first ten, and how many more there are."""
    return ", ".join(values[:10]) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def refuse(*found: Refusal | None) -> None:
    """Raises Refused if a rule of the stage refuses."""
    if refusals := [refusal for refusal in found if refusal]:
        raise Refused(refusals)


@dataclass
class Account:
    """A registered account."""

    account_id: str
    #: Where it is active, with the most custom images it may hold there.
    limits: dict[str, int]
    state: str = "ACTIVE"


@dataclass(repr=False)
class Image:
    """An image; deleted ones are kept."""

    image_id: str
    name: str
    region_id: str
    owner: str
    origin: str
    state: str = "AVAILABLE"
    family: str = ""
    min_memory_bytes: int = 0
    deprecation: str = "CURRENT"
    replacement_image_id: str = ""
    source_image_id: str = ""
    source_instance_id: str = ""
    #: Copies that are being made of it.
    copies: int = 0
    shares: set[str] = field(default_factory=set)
    shares_limit: int = SHARES_LIMIT
    #: Counts the changes that change the etag. Sharing is none: recipients see the etag, and it is not their affair.
    version: int = 1

    def __repr__(self) -> str:
        return f"<{self.image_id}: {self.name} of {self.owner} in {self.region_id}, {self.state}>"

    @property
    def public(self) -> bool:
        """True if it is the operator's."""
        return self.owner == OPERATOR

    @property
    def usable(self) -> bool:
        """True if it can be launched from. INS-1, PUB-4."""
        return self.state == "AVAILABLE" and self.deprecation != "OBSOLETE"

    def fits(self, instance_type: str) -> bool:
        """True if instances of the type can run it. INS-2."""
        return self.min_memory_bytes <= MEMORY_BYTES[instance_type]


@dataclass(repr=False)
class Instance:
    """An instance; deleted ones are kept."""

    instance_id: str
    name: str
    region_id: str
    owner: str
    instance_type: str
    image_id: str
    #: What it remembers of its image, by the names of cunho.v1.LaunchImage.
    launch_image: dict[str, str]
    min_memory_bytes: int
    state: str = "RUNNING"
    version: int = 1

    def __repr__(self) -> str:
        return f"<{self.instance_id} of {self.owner} in {self.region_id}, {self.state}>"


class Model:
    """What the service should hold, and what it should answer.

    Methods are named like the RPCs that they stand for; SetQuotaLimit and GetQuota are two each. A caller is an
    account's id or OPERATOR. An etag is given as the version that it is of.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.images: dict[str, Image] = {}
        self.instances: dict[str, Instance] = {}

    # --- what callers see

    def kind(self, caller: str, image: Image) -> str:
        """What the image is to the caller; empty if the caller does not see it. SEL-2, CUS-2."""
        if image.state == "DELETED":
            return ""
        if image.public:
            return "PUBLIC"
        if caller in (image.owner, OPERATOR):
            return "CUSTOM"
        return "SHARED" if caller in image.shares else ""

    def images_seen(self, caller: str) -> list[Image]:
        """The images that the caller sees, oldest first."""
        return [image for image in self.images.values() if self.kind(caller, image)]

    def instances_seen(self, caller: str) -> list[Instance]:
        """The instances that the caller sees, oldest first. INS-6."""
        return [
            each for each in self.instances.values() if each.state != "DELETED" and caller in (each.owner, OPERATOR)
        ]

    def image_fields(self, caller: str, image: Image) -> dict[str, Any]:
        """What the caller reads of the image, by the paths of cunho.v1.Image. PUB-5, SHR-7, SHR-12."""
        kind = self.kind(caller, image)
        own = kind == "CUSTOM"
        return {
            "image_id": image.image_id,
            "name": image.name,
            "region_id": image.region_id,
            "owner_account_id": "" if image.public else image.owner,
            "kind": kind,
            "origin": image.origin,
            "state": image.state,
            "family": image.family,
            "min_memory_bytes": image.min_memory_bytes,
            "deprecation.state": image.deprecation,
            "deprecation.replacement_image_id": image.replacement_image_id,
            "trust": {"PUBLIC": "PROVIDER", "CUSTOM": "OWN", "SHARED": "UNVERIFIED"}[kind],
            "source.image_id": image.source_image_id if own else "",
            "source.instance_id": image.source_instance_id if own else "",
            "sharing.account_count": len(image.shares) if own else 0,
            "sharing.account_limit": image.shares_limit if own else 0,
        }

    def instance_fields(self, instance: Instance) -> dict[str, Any]:
        """What is read of the instance, by the paths of cunho.v1.Instance. INS-4."""
        image = self.images[instance.image_id]
        return {
            "instance_id": instance.instance_id,
            "name": instance.name,
            "region_id": instance.region_id,
            "account_id": instance.owner,
            "instance_type": instance.instance_type,
            "image_id": instance.image_id,
            "state": instance.state,
            "operation": "",
            "launch_image.still_available": image.usable and self.kind(instance.owner, image) != "",
            **{f"launch_image.{name}": value for name, value in instance.launch_image.items()},
        }

    def images_used(self, account_id: str, region_id: str) -> int:
        """How many custom images count in the quota. CUS-5."""
        return sum(
            image.owner == account_id and image.region_id == region_id and image.state in ("AVAILABLE", *BEING_MADE)
            for image in self.images.values()
        )

    def resolve_image(self, region_id: str, family: str) -> Image:
        """The newest public image of the family that can be launched. PUB-4."""
        usable = [
            image
            for image in self.images.values()
            if (image.public and image.usable) and (image.region_id, image.family) == (region_id, family)
        ]
        refuse(when(not usable, "IMAGE_FAMILY_NOT_FOUND", family=family, region_id=region_id))
        return usable[-1]

    def get_image(self, caller: str, image_id: str) -> Image:
        """The image, if the caller sees it."""
        return self._image(caller, image_id)

    def list_image_shares(self, caller: str, image_id: str) -> list[str]:
        """The accounts that the image is shared with. SHR-12."""
        image = self._image(caller, image_id)
        refuse(self._only_shared(caller, image, "SHARED_IMAGE_SHARES_HIDDEN", "ListImageShares"))
        return sorted(image.shares)

    # --- accounts and quotas

    def register_account(self, caller: str, account_id: str, region_ids: Iterable[str]) -> None:
        refuse(when(caller != OPERATOR, "OPERATOR_ROLE_REQUIRED", action="RegisterAccount"))
        refuse(when(account_id in self.accounts, "ACCOUNT_ALREADY_EXISTS", account_id=account_id))
        self.accounts[account_id] = Account(account_id, dict.fromkeys(region_ids, IMAGES_LIMIT))

    def update_account(
        self, caller: str, account_id: str, *, state: str | None = None, region_ids: Iterable[str] | None = None
    ) -> None:
        account = self._account(caller, account_id)
        refuse(when(caller != OPERATOR, "OPERATOR_ROLE_REQUIRED", action="UpdateAccount"))
        wanted = list(account.limits if region_ids is None else region_ids)
        in_use = sorted(self._regions_in_use(account_id) & account.limits.keys() - {*wanted})
        refuse(when(bool(in_use), "ACCOUNT_REGION_IN_USE", account_id=account_id, region_ids=in_use))
        account.limits = {region_id: account.limits.get(region_id, IMAGES_LIMIT) for region_id in wanted}
        account.state = state or account.state

    def set_images_limit(self, caller: str, account_id: str, region_id: str, limit: int) -> dict[str, int]:
        account = self._account(caller, account_id)
        refuse(when(caller != OPERATOR, "OPERATOR_ROLE_REQUIRED", action="SetQuotaLimit"))
        refuse(self._not_in_region(account_id, region_id))
        refuse(_below_usage("CUSTOM_IMAGES", limit, self.images_used(account_id, region_id)))
        account.limits[region_id] = limit
        return self.images_quota(caller, account_id, region_id)

    def set_shares_limit(self, caller: str, image_id: str, limit: int) -> dict[str, int]:
        image = self._image(caller, image_id)
        refuse(
            when(caller != OPERATOR, "OPERATOR_ROLE_REQUIRED", action="SetQuotaLimit"),
            when(image.public, "PUBLIC_IMAGE_READ_ONLY", image_id=image_id, action="SetQuotaLimit"),
        )
        refuse(_below_usage("SHARES_PER_IMAGE", limit, len(image.shares)))
        image.shares_limit = limit
        return self.shares_quota(caller, image_id)

    def images_quota(self, caller: str, account_id: str, region_id: str) -> dict[str, int]:
        """Limit and usage, by the names of cunho.v1.Quota."""
        account = self._account(caller, account_id)
        refuse(self._not_in_region(account_id, region_id))
        return {"limit": account.limits[region_id], "usage": self.images_used(account_id, region_id), "reserved": 0}

    def shares_quota(self, caller: str, image_id: str) -> dict[str, int]:
        """Limit and usage, by the names of cunho.v1.Quota."""
        image = self._image(caller, image_id)
        refuse(
            when(image.public, "PUBLIC_IMAGE_READ_ONLY", image_id=image_id, action="GetQuota"),
            self._only_shared(caller, image, "SHARED_IMAGE_SHARES_HIDDEN", "GetQuota"),
        )
        return {"limit": image.shares_limit, "usage": len(image.shares), "reserved": 0}

    # --- making images

    def publish_image(self, caller: str, region_id: str, name: str, family: str, image_id: str) -> None:
        refuse(when(caller != OPERATOR, "OPERATOR_ROLE_REQUIRED", action="PublishImage"))
        refuse(self._name_taken(OPERATOR, region_id, name))
        self._add(Image(image_id, name, region_id, OPERATOR, "PUBLISHED", family=family))

    def create_image(
        self, caller: str, region_id: str, instance_id: str, name: str, image_id: str, *, fails: bool
    ) -> None:
        instance = self._instance(caller, instance_id)
        refuse(when(caller == OPERATOR, "ACCOUNT_ROLE_REQUIRED", action="CreateImage"))
        refuse(
            self._suspended(caller, "CreateImage"),
            when(
                instance.region_id != region_id,
                "INSTANCE_REGION_MISMATCH",
                instance_id=instance_id,
                instance_region_id=instance.region_id,
                region_id=region_id,
            ),
            _not_in_state(instance, "CreateImage", "RUNNING", "STOPPED"),
            self._not_in_region(caller, region_id),
            self._name_taken(caller, region_id, name),
        )
        refuse(self._images_full(caller, region_id))
        instance.version += 1
        self._add(
            Image(
                image_id,
                name,
                region_id,
                caller,
                "INSTANCE",
                "FAILED" if fails else "AVAILABLE",
                min_memory_bytes=instance.min_memory_bytes,
                source_image_id=instance.image_id,
                source_instance_id=instance_id,
            )
        )

    def import_image(self, caller: str, region_id: str, name: str, image_id: str, *, fails: bool) -> None:
        refuse(when(caller == OPERATOR, "ACCOUNT_ROLE_REQUIRED", action="ImportImage"))
        refuse(
            self._suspended(caller, "ImportImage"),
            self._not_in_region(caller, region_id),
            self._name_taken(caller, region_id, name),
        )
        refuse(self._images_full(caller, region_id))
        self._add(Image(image_id, name, region_id, caller, "IMPORTED", "FAILED" if fails else "AVAILABLE"))

    def copy_image(
        self, caller: str, image_id: str, destinations: Iterable[tuple[str, str]], image_ids: Iterator[str]
    ) -> list[Refusal | None]:
        """What refuses each destination, a region with a name or none. CUS-12."""
        destinations = list(destinations)
        refuse(*(when(to not in REGION_IDS, "REGION_NOT_FOUND", region_id=to) for to, _ in destinations))
        image = self._image(caller, image_id)
        refuse(
            self._public(image, "CopyImage"),
            self._only_shared(caller, image, "SHARED_IMAGE_NOT_COPYABLE", "CopyImage"),
            self._of_another(caller, image, "CopyImage"),
        )
        refuse(
            *(
                when(to == image.region_id, "COPY_TO_SAME_REGION", image_id=image_id, region_id=to)
                for to, _ in destinations
            ),
            self._suspended(caller, "CopyImage"),
            _not_available(image, "CopyImage"),
        )
        refusals = [
            self._not_in_region(caller, to)
            or self._name_taken(caller, to, name or image.name)
            or self._images_full(caller, to)
            for to, name in destinations
        ]
        if all(refusals):
            refuse(refusals[0])
        for (to, name), refusal in zip(destinations, refusals, strict=True):
            if refusal is None:
                copy = Image(next(image_ids), name or image.name, to, caller, "COPIED", family=image.family)
                copy.min_memory_bytes, copy.source_image_id = image.min_memory_bytes, image_id
                self._add(copy)
        return refusals

    # --- changing images

    def update_image(
        self,
        caller: str,
        image_id: str,
        etag: int | None,
        *,
        name: str | None = None,
        min_memory_bytes: int | None = None,
    ) -> None:
        image = self._image(caller, image_id)
        refuse(*self._may_not_change(caller, image, "UpdateImage", "SHARED_IMAGE_NOT_MODIFIABLE"))
        refuse(
            _changed(image.image_id, image.version, etag),
            self._name_taken(image.owner, image.region_id, name, besides=image) if name else None,
        )
        image.name = name or image.name
        image.min_memory_bytes = image.min_memory_bytes if min_memory_bytes is None else min_memory_bytes
        image.version += 1

    def deprecate_image(
        self, caller: str, image_id: str, etag: int | None, state: str, replacement_image_id: str
    ) -> None:
        image = self._image(caller, image_id)
        if replacement_image_id:
            replacement = self._image(caller, replacement_image_id)
            elsewhere = replacement.region_id != image.region_id
            refuse(when(elsewhere, "IMAGE_NOT_FOUND", image_id=replacement_image_id))
        refuse(*self._may_not_change(caller, image, "DeprecateImage", "SHARED_IMAGE_NOT_MODIFIABLE"))
        custom = bool(replacement_image_id) and not self.images[replacement_image_id].public
        refuse(
            _changed(image_id, image.version, etag),
            _not_available(image, "DeprecateImage"),
            when(
                image.public and custom,
                "REPLACEMENT_NOT_PUBLIC",
                image_id=image_id,
                replacement_image_id=replacement_image_id,
            ),
        )
        image.deprecation, image.replacement_image_id = state, replacement_image_id
        image.version += 1

    def delete_image(self, caller: str, image_id: str, etag: int | None, *, force: bool) -> None:
        image = self._image(caller, image_id)
        refuse(*self._may_not_change(caller, image, "DeleteImage", "SHARED_IMAGE_NOT_DELETABLE"))
        with_whom = sorted(image.shares)
        refuse(
            _changed(image_id, image.version, etag),
            when(
                image.copies > 0 or image.state in BEING_MADE,
                "IMAGE_BUSY",
                image_id=image_id,
                state=image.state,
                copies=image.copies,
            ),
            when(
                bool(with_whom) and not force,
                "IMAGE_SHARED",
                image_id=image_id,
                account_count=len(with_whom),
                account_ids=with_whom,
            ),
        )
        image.state = "DELETED"
        image.shares = set()

    # --- sharing

    def share_image(self, caller: str, image_id: str, account_ids: Iterable[str], etag: int | None) -> None:
        refuse(when(caller in account_ids, "SHARE_WITH_SELF", account_id=caller))
        image = self._image(caller, image_id)
        added = [account_id for account_id in account_ids if account_id not in image.shares]
        refuse(*self._may_not_share(caller, image, "ShareImage"))
        refuse(
            _changed(image_id, image.version, etag),
            self._suspended(caller, "ShareImage"),
            _not_available(image, "ShareImage"),
            *self._not_recipients(image, added),
        )
        refuse(_shares_full(image, len(image.shares), len(added)))
        image.shares |= {*added}

    def set_image_shares(self, caller: str, image_id: str, account_ids: Iterable[str], etag: int | None) -> None:
        refuse(when(caller in account_ids, "SHARE_WITH_SELF", account_id=caller))
        image = self._image(caller, image_id)
        added = [account_id for account_id in account_ids if account_id not in image.shares]
        refuse(*self._may_not_share(caller, image, "SetImageShares"))
        refuse(
            _changed(image_id, image.version, etag),
            self._suspended(caller, "SetImageShares") if added else None,
            _not_available(image, "SetImageShares") if added else None,
            *self._not_recipients(image, added),
        )
        kept = image.shares & {*account_ids}
        refuse(_shares_full(image, len(kept), len(added)))
        image.shares = {*account_ids}

    def unshare_image(self, caller: str, image_id: str, account_ids: Iterable[str], etag: int | None) -> list[str]:
        """The accounts that lost the image."""
        image = self._image(caller, image_id)
        refuse(*self._may_not_share(caller, image, "UnshareImage"))
        refuse(_changed(image_id, image.version, etag))
        lost = sorted(image.shares & {*account_ids})
        image.shares -= {*lost}
        return lost

    def leave_image_share(self, caller: str, image_id: str) -> None:
        image = self._image(caller, image_id)
        refuse(when(self.kind(caller, image) != "SHARED", "IMAGE_NOT_SHARED_WITH_CALLER", image_id=image_id))
        image.shares.remove(caller)

    # --- instances

    def create_instance(
        self,
        caller: str,
        region_id: str,
        image_id: str,
        etag: int | None,
        name: str,
        instance_type: str,
        instance_ids: list[str],
        *,
        fails: bool,
    ) -> list[str]:
        """The reasons of the warnings. INS-1, INS-2, SHR-7."""
        image = self._image(caller, image_id)
        refuse(when(caller == OPERATOR, "ACCOUNT_ROLE_REQUIRED", action="CreateInstance"))
        refuse(
            _changed(image_id, image.version, etag),
            self._suspended(caller, "CreateInstance"),
            self._not_in_region(caller, region_id),
            *_not_launchable(image, "CreateInstance", region_id, instance_type),
        )
        state = "FAILED" if fails else "RUNNING"
        for number, instance_id in enumerate(instance_ids, 1):
            numbered = f"{name}-{number}" if len(instance_ids) > 1 else name
            remembered = self._remembered(caller, image)
            self.instances[instance_id] = Instance(
                instance_id,
                numbered,
                region_id,
                caller,
                instance_type,
                image_id,
                remembered,
                image.min_memory_bytes,
                state,
            )
        return self._warnings(caller, image)

    def update_instance(self, caller: str, instance_id: str, etag: int | None, *, name: str) -> None:
        instance = self._instance(caller, instance_id)
        refuse(_instance_of_another(caller, instance, "UpdateInstance"))
        refuse(_changed(instance_id, instance.version, etag))
        instance.name = name
        instance.version += 1

    def act_on_instance(self, caller: str, action: str, instance_id: str, etag: int | None) -> None:
        """StartInstance, StopInstance, RebootInstance or DeleteInstance. INS-5."""
        from_states, to_state = {
            "StartInstance": (["STOPPED"], "RUNNING"),
            "StopInstance": (["RUNNING"], "STOPPED"),
            "RebootInstance": (["RUNNING"], "RUNNING"),
            "DeleteInstance": (["RUNNING", "STOPPED", "FAILED"], "DELETED"),
        }[action]
        instance = self._instance(caller, instance_id)
        refuse(_instance_of_another(caller, instance, action))
        refuse(_changed(instance_id, instance.version, etag), _not_in_state(instance, action, *from_states))
        instance.state = to_state
        instance.version += 1

    def reinstall_instance(self, caller: str, instance_id: str, image_id: str, etag: int | None) -> list[str]:
        """The reasons of the warnings."""
        action = "ReinstallInstance"
        instance = self._instance(caller, instance_id)
        image = self._image(caller, image_id or instance.image_id)
        refuse(_instance_of_another(caller, instance, action))
        refuse(
            _changed(instance_id, instance.version, etag),
            _not_in_state(instance, action, "RUNNING", "STOPPED"),
            *_not_launchable(image, action, instance.region_id, instance.instance_type),
        )
        instance.state, instance.image_id = "RUNNING", image.image_id
        instance.launch_image = self._remembered(caller, image)
        instance.min_memory_bytes = image.min_memory_bytes
        instance.version += 1
        return self._warnings(caller, image)

    # --- what the calls have in common: visibility, which raises

    def _account(self, caller: str, account_id: str) -> Account:
        seen = account_id in self.accounts and caller in (account_id, OPERATOR)
        refuse(when(not seen, "ACCOUNT_NOT_FOUND", account_ids=account_id))
        return self.accounts[account_id]

    def _image(self, caller: str, image_id: str) -> Image:
        image = self.images.get(image_id)
        refuse(when(image is None or not self.kind(caller, image), "IMAGE_NOT_FOUND", image_id=image_id))
        return self.images[image_id]

    def _instance(self, caller: str, instance_id: str) -> Instance:
        instance = self.instances.get(instance_id)
        seen = instance is not None and instance in self.instances_seen(caller)
        refuse(when(not seen, "INSTANCE_NOT_FOUND", instance_id=instance_id))
        return self.instances[instance_id]

    # --- permission

    def _public(self, image: Image, action: str) -> Refusal | None:
        return when(image.public, "PUBLIC_IMAGE_READ_ONLY", image_id=image.image_id, action=action)

    def _only_shared(self, caller: str, image: Image, reason: str, action: str) -> Refusal | None:
        return when(self.kind(caller, image) == "SHARED", reason, image_id=image.image_id, action=action)

    def _of_another(self, caller: str, image: Image, action: str) -> Refusal | None:
        custom = self.kind(caller, image) == "CUSTOM"
        return when(custom and caller != image.owner, "IMAGE_OWNER_ONLY", image_id=image.image_id, action=action)

    def _may_not_change(self, caller: str, image: Image, action: str, reason: str) -> list[Refusal | None]:
        return [
            None if caller == OPERATOR else self._public(image, action),
            self._only_shared(caller, image, reason, action),
            self._of_another(caller, image, action),
        ]

    def _may_not_share(self, caller: str, image: Image, action: str) -> list[Refusal | None]:
        return [
            self._public(image, action),
            self._only_shared(caller, image, "SHARED_IMAGE_NOT_RESHAREABLE", action),
            self._of_another(caller, image, action),
        ]

    # --- state

    def _suspended(self, caller: str, action: str) -> Refusal | None:
        account = self.accounts.get(caller)
        suspended = account is not None and account.state == "SUSPENDED"
        return when(suspended, "ACCOUNT_SUSPENDED", account_id=caller, action=action)

    def _active(self, account_id: str, region_id: str) -> bool:
        return account_id in self.accounts and region_id in self.accounts[account_id].limits

    def _not_in_region(self, account_id: str, region_id: str) -> Refusal | None:
        active = self._active(account_id, region_id)
        return when(not active, "ACCOUNT_NOT_IN_REGION", account_id=account_id, region_id=region_id)

    def _name_taken(self, owner: str, region_id: str, name: str, besides: Image | None = None) -> Refusal | None:
        taken = any(
            (image.owner, image.region_id, image.name) == (owner, region_id, name)
            and image.state != "DELETED"
            and image is not besides
            for image in self.images.values()
        )
        return when(taken, "IMAGE_NAME_TAKEN", name=name, region_id=region_id)

    def _not_recipients(self, image: Image, added: list[str]) -> list[Refusal | None]:
        unknown = [each for each in added if each not in self.accounts]
        elsewhere = [each for each in added if not self._active(each, image.region_id)]
        return [
            when(bool(unknown), "ACCOUNT_NOT_FOUND", account_ids=unknown),
            # Of an account that is not known, nothing more is said.
            when(
                bool(elsewhere) and not unknown,
                "SHARE_REGION_MISMATCH",
                account_ids=elsewhere,
                region_id=image.region_id,
            ),
        ]

    def _regions_in_use(self, account_id: str) -> set[str]:
        """Where the account has or had images or instances, or has images shared with it."""
        return {image.region_id for image in self.images.values() if account_id in {image.owner, *image.shares}} | {
            instance.region_id for instance in self.instances.values() if instance.owner == account_id
        }

    # --- quota

    def _images_full(self, account_id: str, region_id: str) -> Refusal | None:
        usage, limit = self.images_used(account_id, region_id), self.accounts[account_id].limits[region_id]
        return when(
            usage >= limit,
            "CUSTOM_IMAGE_QUOTA_EXCEEDED",
            account_id=account_id,
            region_id=region_id,
            limit=limit,
            usage=usage,
        )

    # --- effects

    def _add(self, image: Image) -> None:
        self.images[image.image_id] = image

    def _remembered(self, caller: str, image: Image) -> dict[str, str]:
        fields = self.image_fields(caller, image)
        return {name: fields[name] for name in ("image_id", "name", "owner_account_id", "kind", "trust")}

    def _warnings(self, caller: str, image: Image) -> list[str]:
        shared, deprecated = self.kind(caller, image) == "SHARED", image.deprecation == "DEPRECATED"
        return ["UNVERIFIED_SHARED_IMAGE"] * shared + ["IMAGE_DEPRECATED"] * deprecated


def _changed(resource_id: str, version: int, etag: int | None) -> Refusal | None:
    return when(etag not in (None, version), "ETAG_MISMATCH", resource_id=resource_id)


def _not_available(image: Image, action: str) -> Refusal | None:
    return when(
        image.state != "AVAILABLE",
        "IMAGE_STATE_INVALID",
        image_id=image.image_id,
        state=image.state,
        allowed="AVAILABLE",
        action=action,
    )


def _not_launchable(image: Image, action: str, region_id: str, instance_type: str) -> list[Refusal | None]:
    return [
        when(
            image.region_id != region_id,
            "IMAGE_REGION_MISMATCH",
            image_id=image.image_id,
            image_region_id=image.region_id,
            region_id=region_id,
        ),
        _not_available(image, action),
        when(image.deprecation == "OBSOLETE", "IMAGE_OBSOLETE", image_id=image.image_id, action=action),
        when(
            not image.fits(instance_type),
            "IMAGE_INCOMPATIBLE_WITH_INSTANCE_TYPE",
            image_id=image.image_id,
            instance_type=instance_type,
            needed=image.min_memory_bytes,
            given=MEMORY_BYTES[instance_type],
        ),
    ]


def _instance_of_another(caller: str, instance: Instance, action: str) -> Refusal | None:
    return when(caller != instance.owner, "INSTANCE_OWNER_ONLY", instance_id=instance.instance_id, action=action)


def _not_in_state(instance: Instance, action: str, *allowed: str) -> Refusal | None:
    return when(
        instance.state not in allowed,
        "INSTANCE_STATE_INVALID",
        instance_id=instance.instance_id,
        state=instance.state,
        allowed=" or ".join(allowed),
        action=action,
    )


def _shares_full(image: Image, usage: int, requested: int) -> Refusal | None:
    return when(
        requested > 0 and usage + requested > image.shares_limit,
        "SHARE_QUOTA_EXCEEDED",
        image_id=image.image_id,
        limit=image.shares_limit,
        usage=usage,
        requested=requested,
    )


def _below_usage(quota_id: str, limit: int, usage: int) -> Refusal | None:
    return when(limit < usage, "QUOTA_BELOW_USAGE", quota_id=quota_id, limit=limit, usage=usage)
