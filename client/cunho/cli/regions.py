"""Commands about what the cloud has: regions and instance types."""

from cunho.cli import views
from cunho.cli.flags import Watch
from cunho.cli.printing import show
from cunho.cli.session import Session


def regions(*, session: Session, watch: Watch = None) -> None:
    """Lists the regions with their zones and prices."""
    show(lambda: views.regions(session.client.list_regions()), json=session.json, watch=watch)


def instance_types(*, session: Session, watch: Watch = None) -> None:
    """Lists the instance types; every region has all of them."""
    show(lambda: views.instance_types(session.client.list_instance_types()), json=session.json, watch=watch)
