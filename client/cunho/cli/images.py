"""Commands about images."""

import re
from itertools import islice
from pathlib import PurePosixPath
from typing import Annotated, Literal, get_args

from cyclopts import App, Parameter

from cunho import v1
from cunho.cli import choosing, views
from cunho.cli.exit_codes import DENIED
from cunho.cli.explaining import Explanation, any_denied
from cunho.cli.flags import (
    Architecture,
    Bytes,
    DryRun,
    Filter,
    LabelChoice,
    Labels,
    Limit,
    NoWait,
    OrderBy,
    Region,
    Watch,
    changed,
    labels_of,
    value_of,
)
from cunho.cli.printing import Details, Table, say_if_rehearsed, show
from cunho.cli.session import MisuseError, Session
from cunho.cli.waiting import finish

app: App = App(name="images", help_epilogue="")

ImageId = Annotated[str, Parameter(help='Image, "img-...".')]
Kind = Literal["public", "custom", "shared"]
State = Literal["creating", "importing", "copying", "available", "failed"]
Format = Literal["raw", "qcow2", "vmdk", "vhd", "vhdx"]
Action = Literal[
    "launch", "copy", "update", "share", "unshare", "set-shares", "shares", "leave", "deprecate", "delete"
]  # fmt: skip
ACTIONS: dict[str, Action] = {
    "CreateInstance": "launch",
    "CopyImage": "copy",
    "UpdateImage": "update",
    "ShareImage": "share",
    "UnshareImage": "unshare",
    "SetImageShares": "set-shares",
    "ListImageShares": "shares",
    "LeaveImageShare": "leave",
    "DeprecateImage": "deprecate",
    "DeleteImage": "delete",
}


@app.command(name="list")
def list_(
    *,
    region: Region = "-",
    os: str = "",
    os_version: str = "",
    arch: Architecture | None = None,
    kind: Kind | None = None,
    state: State | None = None,
    name: str = "",
    family: str = "",
    software: str = "",
    label: LabelChoice = (),
    instance_type: str = "",
    filter: Filter = "",
    order_by: OrderBy = "",
    limit: Limit = None,
    watch: Watch = None,
    session: Session,
) -> None:
    """Lists the images that you see.

    Args:
        os: Only those with this operating system: linux, windows, other; or a distribution, as ubuntu.
        os_version: Only those with this version of it, as 24.04.
        arch: Only those for this architecture.
        kind: Only public ones, your own custom ones, or those shared with you.
        state: Only those in this state.
        name: Only those whose name begins so.
        family: Only those of this family.
        software: Only those with this software, as MySQL.
        label: Only those with this label; may be given again.
        instance_type: Only those that instances of this type can be launched from now.
    """
    texts = {"os.version": os_version, "family": family, "software.name": software}
    words = {"architecture": arch, "kind": kind, "state": state}
    chosen = choosing.all_of(
        filter,
        [
            *([choosing.os_comparison(os)] if os else []),
            *([choosing.comparison("name", name, prefix=True)] if name else []),
            *(choosing.comparison(field, text) for field, text in texts.items() if text),
            *(f"{field} = {word.upper()}" for field, word in words.items() if word),
            *choosing.label_comparisons(label),
        ],
    )

    def found() -> Table:
        listed = session.client.list_images(
            region_id=region,
            filter=chosen,
            order_by=order_by,
            usable_with_instance_type=instance_type,
            page_size=choosing.page_size(limit),
        )
        return views.images(islice(listed, limit))

    show(found, json=session.json, watch=watch)


@app.command(name="show")
def show_(image_id: ImageId, /, *, watch: Watch = None, session: Session) -> None:
    """Shows everything about an image."""
    show(lambda: views.image_details(session.client.get_image(image_id=image_id)), json=session.json, watch=watch)


@app.command
def resolve(family: str, /, *, region: str, arch: Architecture | None = None, session: Session) -> None:
    """Shows the newest public image of a family.

    Args:
        family: Family, as debian-12.
        region: Region to look in.
        arch: Architecture wanted. Default: any.
    """
    image = session.client.resolve_image(region_id=region, family=family, architecture=value_of(v1.Architecture, arch))
    show(lambda: views.image(image), json=session.json)


@app.command
def create(
    instance_id: str,
    /,
    *,
    name: str,
    description: str = "",
    family: str = "",
    label: Labels = (),
    consistency: Literal["stop-instance", "crash-consistent"] = "stop-instance",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    session: Session,
) -> int:
    """Makes a custom image from an instance; --dry-run shows what it will cost.

    Args:
        instance_id: Instance, "ins-...".
        name: Name, 1 to 60 characters.
        description: Description.
        family: Family, as web.
        label: Label; may be given again.
        consistency: Whether the instance is stopped meanwhile, or runs on and the image is as after a power cut.
    """
    operation = session.client.create_image(
        region_id=session.client.get_instance(instance_id=instance_id).region_id,
        instance_id=instance_id,
        name=name,
        description=description,
        family=family,
        labels=labels_of(label),
        consistency=value_of(v1.CreateImageRequest.Consistency, consistency),
        validate_only=dry_run,
    )
    return finish(session, operation, no_wait=no_wait)


@app.command(name="import")
def import_(
    uri: str,
    /,
    *,
    region: str,
    name: str,
    os: Literal["linux", "windows", "other"],
    platform: str,
    os_version: str = "",
    arch: Architecture,
    size: Bytes,
    min_disk: Bytes,
    format: Format | None = None,
    sha256: str = "",
    description: str = "",
    family: str = "",
    label: Labels = (),
    boot_mode: Literal["bios", "uefi"] | None = None,
    cloud_init: bool = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    session: Session,
) -> int:
    """Makes a custom image from a disk file; --dry-run shows what it will cost.

    Args:
        uri: Where the file is, an https URI of a host that the operator allows.
        region: Region to import into.
        name: Name, 1 to 60 characters.
        os: Family of its operating system.
        platform: Distribution or product, as debian.
        os_version: Version of it, as 12.
        arch: Architecture.
        size: Size of the file, as 2GiB or in bytes.
        min_disk: Size of the disk in it, as 10GiB or in bytes.
        format: Format of the file. Default: by the ending of its name.
        sha256: SHA-256 that the file must have.
        description: Description.
        family: Family, as web.
        label: Label; may be given again.
        boot_mode: How it starts. Default: bios for i386, else uefi.
        cloud_init: It has cloud-init, which configures a new instance at its first start.
    """
    checksum = v1.Checksum(algorithm=v1.Checksum.ALGORITHM_SHA256, value=sha256) if sha256 else None
    operation = session.client.import_image(
        uri=uri,
        region_id=region,
        name=name,
        format=value_of(v1.ImportImageRequest.Format, format or _format(uri)),
        os=v1.OperatingSystem(family=value_of(v1.OsFamily, os), platform=platform, version=os_version),
        architecture=value_of(v1.Architecture, arch),
        expected_checksum=checksum,
        description=description,
        family=family,
        labels=labels_of(label),
        size_bytes=size,
        min_disk_bytes=min_disk,
        boot_mode=value_of(v1.BootMode, boot_mode),
        cloud_init=cloud_init,
        validate_only=dry_run,
    )
    return finish(session, operation, no_wait=no_wait)


def _format(uri: str) -> str:
    """The format that the ending of the file's name says; ".img" says none. Raises MisuseError."""
    format = PurePosixPath(re.split("[?#]", uri)[0]).suffix[1:].lower()
    if format not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise MisuseError(f"the name of the file does not end in a format: name it by --format, one of {known}")
    return format


@app.command(usage="Usage: cunho images copy [OPTIONS] IMAGE_ID --to STR...")  # --to takes all words that follow
def copy(
    image_id: ImageId,
    /,
    *,
    to: Annotated[tuple[str, ...], Parameter(consume_multiple=True)],
    name: str = "",
    copy_labels: bool = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    session: Session,
) -> int:
    """Copies a custom image to other regions, free of charge. Each may be refused on its own; the others go on.

    Args:
        to: Regions to copy to.
        name: Name of the copies. Default: the image's.
        copy_labels: Give them the labels of the image.
    """
    operation = session.client.copy_image(
        image_id=image_id,
        destinations=[v1.CopyImageRequest.Destination(region_id=region, name=name) for region in to],
        copy_labels=copy_labels,
        validate_only=dry_run,
    )
    return finish(session, operation, no_wait=no_wait)


@app.command
def rename(image_id: ImageId, name: str, /, *, dry_run: DryRun = False, session: Session) -> None:
    """Gives an image another name.

    Args:
        name: New name, 1 to 60 characters.
    """
    update(image_id, name=name, dry_run=dry_run, session=session)


@app.command
def update(
    image_id: ImageId,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    family: str | None = None,
    label: Labels | None = None,
    no_labels: bool = False,
    min_disk: Bytes | None = None,
    min_memory: Bytes | None = None,
    dry_run: DryRun = False,
    session: Session,
) -> None:
    """Changes what is given, and leaves the rest.

    Args:
        name: New name.
        description: New description.
        family: New family; empty for none.
        label: Label, in place of all that it has; may be given again.
        no_labels: Take all labels off.
        min_disk: Smallest disk it fits on, as 20GiB.
        min_memory: Smallest memory it runs in, as 512MiB; 0 for any.
    """
    values = changed(
        name=name,
        description=description,
        family=family,
        label=label,
        no_labels=no_labels,
        min_disk_bytes=min_disk,
        min_memory_bytes=min_memory,
    )
    image = session.client.update_image(
        image=v1.Image(image_id=image_id, **values), update_mask=values, validate_only=dry_run
    )
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: views.image(image), json=session.json)


@app.command
def share(
    image_id: ImageId,
    /,
    *account_ids: Annotated[str, Parameter(required=True)],
    dry_run: DryRun = False,
    session: Session,
) -> None:
    """Shares a custom image with accounts, all or none of them.

    Args:
        account_ids: Accounts to share it with.
    """
    answer = session.client.share_image(image_id=image_id, account_ids=account_ids, validate_only=dry_run)
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: views.shares(answer.shares), json=session.json)


@app.command
def unshare(
    image_id: ImageId,
    /,
    *account_ids: Annotated[str, Parameter(required=True)],
    dry_run: DryRun = False,
    session: Session,
) -> None:
    """Takes a custom image back from accounts; their instances live on.

    Args:
        account_ids: Accounts to take it back from.
    """
    answer = session.client.unshare_image(image_id=image_id, account_ids=account_ids, validate_only=dry_run)
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: views.unshared(answer), json=session.json)


@app.command(usage="Usage: cunho images set-shares [OPTIONS] IMAGE_ID [ACCOUNT_IDS...]")
def set_shares(image_id: ImageId, /, *account_ids: str, dry_run: DryRun = False, session: Session) -> None:
    """Makes these accounts exactly those that an image is shared with.

    Args:
        account_ids: Accounts; none to share it with nobody.
    """
    answer = session.client.set_image_shares(image_id=image_id, account_ids=account_ids, validate_only=dry_run)
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: views.shares(answer.shares), json=session.json)


@app.command
def shares(image_id: ImageId, /, *, watch: Watch = None, session: Session) -> None:
    """Lists the accounts that an image is shared with."""
    show(
        lambda: views.shares(session.client.list_image_shares(image_id=image_id, page_size=choosing.PAGE_SIZE)),
        json=session.json,
        watch=watch,
    )


@app.command
def leave(image_id: ImageId, /, *, dry_run: DryRun = False, session: Session) -> None:
    """Gives up an image that is shared with you."""
    answer = session.client.leave_image_share(image_id=image_id, validate_only=dry_run)
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: Details(answer, [("left", image_id)]), json=session.json)


@app.command
def deprecate(
    image_id: ImageId,
    /,
    *,
    state: Literal["deprecated", "obsolete", "current"] = "deprecated",
    replacement: str = "",
    message: str = "",
    dry_run: DryRun = False,
    session: Session,
) -> None:
    """Retires an image, or takes that back.

    Args:
        state: deprecated launches with a warning, obsolete refuses to, current takes it back.
        replacement: Image to use instead, "img-...".
        message: Why, up to 256 characters.
    """
    deprecation = v1.Deprecation(
        state=value_of(v1.Deprecation.State, state), replacement_image_id=replacement, message=message
    )
    image = session.client.deprecate_image(image_id=image_id, deprecation=deprecation, validate_only=dry_run)
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: views.image(image), json=session.json)


@app.command
def delete(image_id: ImageId, /, *, force: bool = False, dry_run: DryRun = False, session: Session) -> None:
    """Deletes an image for good; instances made from it live on.

    Args:
        force: Take it back from every account that it is shared with.
    """
    image = session.client.delete_image(image_id=image_id, force=force, validate_only=dry_run)
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: views.image(image), json=session.json)


@app.command(usage="Usage: cunho images check [OPTIONS] IMAGE_ID [ACTIONS...]")
def check(
    image_id: ImageId,
    /,
    *actions: Action,
    to: str = "",
    account: Annotated[tuple[str, ...], Parameter(name="--with")] = (),
    zone: str = "",
    instance_type: str = "",
    name: str = "",
    force: bool = False,
    session: Session,
) -> int:
    """Tells what you could do with an image now, and why not the rest.

    Without actions, each is told in a line. With actions, it is told of each
    what every rule says, and the exit code is 5 if one of them is denied.

    Args:
        actions: Actions to explain.
        to: Region that copy would copy to.
        account: Account that share and set-shares would name; may be given again.
        zone: Zone that launch would launch in.
        instance_type: Instance type that launch would launch.
        name: Name that update would give, or copy would give the copy.
        force: Whether delete would be forced.
    """
    rpcs = [rpc for action in actions for rpc, word in ACTIONS.items() if word == action]
    answer = session.client.check_image_actions(
        image_id=image_id,
        actions=rpcs,
        target_region_id=to,
        target_account_ids=account,
        zone_id=zone,
        instance_type=instance_type,
        name=name,
        force=force,
    )
    show(lambda: Explanation(answer, ACTIONS, rules=bool(actions)), json=session.json)
    return DENIED if actions and any_denied(answer.decisions) else 0
