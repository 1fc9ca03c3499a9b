"""What a call may warn of although it succeeds."""

from typing import NamedTuple

from cunho_rules.model import DeprecationState, Image, JudgedImage, Kind


class Warning(NamedTuple):
    """A warning of a call that succeeds; mirrors cunho.v1.Warning."""

    reason: str
    message: str
    metadata: dict[str, str]


def of_launch(image: Image | JudgedImage, kind: Kind | None) -> list[Warning]:
    """The warnings of a launch from the image, which is of that kind to the caller. Source: SHR-7, PUB-4."""
    warnings = []
    if kind is Kind.SHARED:
        owner = image.owner_account_id or ""
        warnings.append(
            Warning(
                "UNVERIFIED_SHARED_IMAGE",
                f"image {image.image_id} was made by account {owner} and verified by nobody: "
                "launch from it only if you trust that account",
                {"image_id": image.image_id, "owner_account_id": owner},
            )
        )
    if image.deprecation_state == DeprecationState.DEPRECATED:
        replacement = image.replacement_image_id or "none named"
        warnings.append(
            Warning(
                "IMAGE_DEPRECATED",
                f"image {image.image_id} is deprecated and will be retired; its replacement: {replacement}",
                {"image_id": image.image_id, "replacement_image_id": image.replacement_image_id},
            )
        )
    return warnings
