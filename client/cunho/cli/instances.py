"""Commands about instances."""

from itertools import islice
from typing import Annotated, Literal

from cyclopts import App, Parameter

from cunho import v1
from cunho.cli import choosing, views
from cunho.cli.exit_codes import DENIED
from cunho.cli.explaining import Explanation, any_denied
from cunho.cli.flags import (
    Count,
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
)
from cunho.cli.printing import Table, say_if_rehearsed, show
from cunho.cli.session import Session
from cunho.cli.waiting import finish

app: App = App(name="instances", help_epilogue="")

InstanceId = Annotated[str, Parameter(help='Instance, "ins-...".')]
Action = Literal["image", "update", "start", "stop", "reboot", "reinstall", "delete"]
State = Literal[
    "provisioning", "starting", "running", "stopping", "stopped", "rebooting", "reinstalling", "imaging", "failed",
    "deleting",
]  # fmt: skip
ACTIONS: dict[str, Action] = {
    "CreateImage": "image",
    "UpdateInstance": "update",
    "StartInstance": "start",
    "StopInstance": "stop",
    "RebootInstance": "reboot",
    "ReinstallInstance": "reinstall",
    "DeleteInstance": "delete",
}


@app.command(name="list")
def list_(
    *,
    region: Region = "-",
    state: State | None = None,
    name: str = "",
    image: str = "",
    label: LabelChoice = (),
    filter: Filter = "",
    order_by: OrderBy = "",
    limit: Limit = None,
    watch: Watch = None,
    session: Session,
) -> None:
    """Lists instances.

    Args:
        state: Only those in this state.
        name: Only those whose name begins so.
        image: Only those launched from this image.
        label: Only those with this label; may be given again.
    """
    comparisons = [f"state = {state.upper()}"] if state else []
    comparisons += [choosing.comparison("name", name, prefix=True)] if name else []
    comparisons += [choosing.comparison("image_id", image)] if image else []
    chosen = choosing.all_of(filter, [*comparisons, *choosing.label_comparisons(label)])

    def found() -> Table:
        listed = session.client.list_instances(
            region_id=region, filter=chosen, order_by=order_by, page_size=choosing.page_size(limit)
        )
        return views.instances(islice(listed, limit))

    show(found, json=session.json, watch=watch)


@app.command(name="show")
def show_(instance_id: InstanceId, /, *, watch: Watch = None, session: Session) -> None:
    """Shows everything about an instance."""
    show(
        lambda: views.instance_details(session.client.get_instance(instance_id=instance_id)),
        json=session.json,
        watch=watch,
    )


@app.command
def create(
    image_id: str,
    /,
    *,
    zone: str,
    instance_type: str,
    region: str = "",
    name: str = "",
    count: Count = 1,
    description: str = "",
    label: Labels = (),
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    session: Session,
) -> int:
    """Launches instances from an image.

    Args:
        image_id: Image to launch from, "img-...".
        zone: Zone to launch in.
        instance_type: Instance type; see cunho instance-types.
        region: Region to launch in. Default: the image's.
        name: Name; with a count over 1, -1, -2 and so on are added.
        count: How many, all or none of them.
        description: Description.
        label: Label; may be given again.
    """
    operation = session.client.create_instance(
        region_id=region or session.client.get_image(image_id=image_id).region_id,
        zone_id=zone,
        instance_type=instance_type,
        image_id=image_id,
        name=name,
        count=count,
        description=description,
        labels=labels_of(label),
        validate_only=dry_run,
    )
    return finish(session, operation, no_wait=no_wait)


@app.command
def update(
    instance_id: InstanceId,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    label: Labels | None = None,
    no_labels: bool = False,
    dry_run: DryRun = False,
    session: Session,
) -> None:
    """Changes what is given, and leaves the rest.

    Args:
        name: New name.
        description: New description.
        label: Label, in place of all that it has; may be given again.
        no_labels: Take all labels off.
    """
    values = changed(name=name, description=description, label=label, no_labels=no_labels)
    instance = session.client.update_instance(
        instance=v1.Instance(instance_id=instance_id, **values), update_mask=values, validate_only=dry_run
    )
    say_if_rehearsed(dry_run, json=session.json)
    show(lambda: views.instance(instance), json=session.json)


@app.command
def start(instance_id: InstanceId, /, *, dry_run: DryRun = False, no_wait: NoWait = False, session: Session) -> int:
    """Starts a stopped instance."""
    operation = session.client.start_instance(instance_id=instance_id, validate_only=dry_run)
    return finish(session, operation, no_wait=no_wait)


@app.command
def stop(instance_id: InstanceId, /, *, dry_run: DryRun = False, no_wait: NoWait = False, session: Session) -> int:
    """Stops a running instance."""
    operation = session.client.stop_instance(instance_id=instance_id, validate_only=dry_run)
    return finish(session, operation, no_wait=no_wait)


@app.command
def reboot(instance_id: InstanceId, /, *, dry_run: DryRun = False, no_wait: NoWait = False, session: Session) -> int:
    """Reboots a running instance."""
    operation = session.client.reboot_instance(instance_id=instance_id, validate_only=dry_run)
    return finish(session, operation, no_wait=no_wait)


@app.command
def reinstall(
    instance_id: InstanceId,
    /,
    *,
    image: str = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    session: Session,
) -> int:
    """Replaces the disk of an instance by an image's contents: what is on it is lost.

    Args:
        image: Image to install. Default: the one it was launched from.
    """
    operation = session.client.reinstall_instance(instance_id=instance_id, image_id=image, validate_only=dry_run)
    return finish(session, operation, no_wait=no_wait)


@app.command
def delete(instance_id: InstanceId, /, *, dry_run: DryRun = False, no_wait: NoWait = False, session: Session) -> int:
    """Deletes an instance for good."""
    operation = session.client.delete_instance(instance_id=instance_id, validate_only=dry_run)
    return finish(session, operation, no_wait=no_wait)


@app.command(usage="Usage: cunho instances check [OPTIONS] INSTANCE_ID [ACTIONS...]")
def check(
    instance_id: InstanceId,
    /,
    *actions: Action,
    image: str = "",
    name: str = "",
    session: Session,
) -> int:
    """Tells what you could do with an instance now, and why not the rest.

    Without actions, each is told in a line. With actions, it is told of each
    what every rule says, and the exit code is 5 if one of them is denied.

    Args:
        actions: Actions to explain.
        image: Image that reinstall would install.
        name: Name that an image of it would get.
    """
    rpcs = [rpc for action in actions for rpc, word in ACTIONS.items() if word == action]
    answer = session.client.check_instance_actions(
        instance_id=instance_id, actions=rpcs, target_image_id=image, image_name=name
    )
    show(lambda: Explanation(answer, ACTIONS, rules=bool(actions)), json=session.json)
    return DENIED if actions and any_denied(answer.decisions) else 0
