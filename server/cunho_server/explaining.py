"""The facts of an action that is only explained: as the action itself would load them, with no lock taken.

What the request does not name stays unknown, and the checks that need it are not evaluated.
"""

from cunho import v1 as pb
from cunho_rules import actions
from cunho_rules.images import kind
from cunho_rules.model import Facts, Image, Region
from cunho_rules.warnings import Warning, of_launch
from cunho_server import messages
from cunho_storage import accounts, facts_of, images, regions, shares
from cunho_storage.database import Connection


async def image_action(
    connection: Connection, request: pb.CheckImageActionsRequest, facts: Facts, region: Region | None, name: str
) -> pb.Decision:
    """What every check of the action on an image says.

    Args:
        facts: those of the image and of who asks.
        region: that of the image.
    """
    image, caller = facts.image, facts.caller
    assert isinstance(image, Image)
    action, facts = actions.IMAGE_ACTIONS[name], facts._replace(action=name)
    warnings: list[Warning] = []
    if name == "CreateInstance":
        type_id = request.instance_type or None
        facts = facts._replace(
            region_id=image.region_id,
            region=region,
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
        facts = facts._replace(place=await facts_of.place_of_name(connection, image, request.name))
    elif name in ("ShareImage", "SetImageShares") and request.target_account_ids:
        recipients = await shares.recipients(connection, image.image_id, request.target_account_ids)
        facts = facts._replace(recipients=recipients)
    elif name == "DeleteImage":
        facts = facts._replace(force=request.force)
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
        account, region, place, *_ = await facts_of.creation(
            connection,
            account_id=caller.account_id,
            region_id=instance.region_id,
            name=request.image_name or None,
            instance_id=instance.instance_id,
        )
        facts = facts._replace(account=account, region_id=instance.region_id, region=region, place=place)
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
