"""The facts of an action that is only explained: as the action itself would load them, with no lock taken.

What the request does not name stays unknown, and the checks that need it are not evaluated.
"""

from cunho import v1 as pb
from cunho_rules import actions
from cunho_rules.images import kind
from cunho_rules.limits import QUOTA_LIMIT_MAX
from cunho_rules.model import Facts, Image, Place
from cunho_rules.warnings import Warning, of_launch
from cunho_server import messages
from cunho_storage import accounts, images, regions, shares
from cunho_storage.database import Connection


async def image_action(
    connection: Connection, request: pb.CheckImageActionsRequest, facts: Facts, name: str
) -> pb.Decision:
    """What every check of the action on an image says; `facts` has the image, the caller and their account."""
    image, caller = facts.image, facts.caller
    assert isinstance(image, Image)
    action, facts = actions.IMAGE_ACTIONS[name], facts._replace(action=name)
    warnings: list[Warning] = []
    if name == "CreateInstance":
        type_id = request.instance_type or None
        facts = facts._replace(
            region_id=image.region_id,
            region=await regions.get(connection, image.region_id),
            zone_id=request.zone_id or None,
            instance_type_id=type_id,
            instance_type=await regions.get_type(connection, type_id) if type_id else None,
        )
        warnings = of_launch(image, kind(caller, image))
    elif name == "CopyImage" and request.target_region_id:
        region_id = request.target_region_id
        facts = facts._replace(
            region_id=region_id,
            region=await regions.get(connection, region_id),
            place=await accounts.place(
                connection, caller.account_id, region_id, request.name or image.name, lock=False
            ),
        )
    elif name == "UpdateImage" and request.name:
        facts = facts._replace(place=await place_of_name(connection, image, request.name))
    elif name in ("ShareImage", "SetImageShares") and request.target_account_ids:
        recipients = await shares.recipients(connection, image.image_id, request.target_account_ids)
        facts = facts._replace(recipients=recipients)
    elif name == "DeleteImage":
        facts = facts._replace(
            force=request.force,
            copies=await images.copies(connection, image.image_id),
            shared_with=await shares.account_ids(connection, image.image_id),
        )
    return messages.decision(action, facts, warnings)


async def instance_action(
    connection: Connection, request: pb.CheckInstanceActionsRequest, facts: Facts, name: str
) -> pb.Decision:
    """What every check of the action on an instance says; `facts` has the instance and the caller."""
    instance, caller = facts.instance, facts.caller
    assert instance is not None
    action, facts = actions.INSTANCE_ACTIONS[name], facts._replace(action=name)
    warnings: list[Warning] = []
    if name == "CreateImage":
        place = await accounts.place(
            connection, caller.account_id, instance.region_id, request.image_name or None, lock=False
        )
        facts = facts._replace(
            account=await accounts.get(connection, caller.account_id),
            region_id=instance.region_id,
            region=await regions.get(connection, instance.region_id),
            place=place,
        )
    elif name == "ReinstallInstance":
        image_id = request.target_image_id or instance.image_id
        image = await images.get(connection, image_id, caller.account_id)
        facts = facts._replace(
            image_id=image_id,
            image=image,
            region_id=instance.region_id,
            instance_type=await regions.get_type(connection, instance.instance_type),
        )
        warnings = of_launch(image, kind(caller, image)) if image else []
    return messages.decision(action, facts, warnings)


async def place_of_name(connection: Connection, image: Image, name: str) -> Place:
    """Where the image would be under a new name; a name of "" is nobody's."""
    if image.owner_account_id is None:
        return await public_place(connection, image.region_id, name, except_id=image.image_id)
    return await accounts.place(
        connection, image.owner_account_id, image.region_id, name, except_id=image.image_id, lock=False
    )


async def public_place(connection: Connection, region_id: str, name: str, *, except_id: str = "") -> Place:
    """Where a public image would go: no quota applies, but its name must be free. Source: PUB-1, SEL-4."""
    other = await images.public_by_name(connection, region_id, name)
    taken = other is not None and other.image_id != except_id
    return Place(region_id, True, 0, QUOTA_LIMIT_MAX, 0, name, taken)
