"""The command about quotas: limits and what is used of them."""

from cunho.cli import views
from cunho.cli.flags import Watch
from cunho.cli.printing import Table, show
from cunho.cli.session import MisuseError, Session
from cunho.v1 import QuotaId


def quotas(account_id: str = "", /, *, image: str = "", watch: Watch = None, session: Session) -> None:
    """Shows limits and what is used of them: custom images in each region, or the accounts an image is shared with.

    Args:
        account_id: Account to look at. Default: your own; an operator names one.
        image: Image whose shares to look at, instead of the regions.
    """
    if account_id and image:
        raise MisuseError(
            "the shares of an image are its owner's, whoever asks: give an account or --image, one of them"
        )

    def found() -> Table:
        if image:
            return views.quotas([session.client.get_quota(quota_id=QuotaId.QUOTA_ID_SHARES_PER_IMAGE, image_id=image)])
        return views.quotas(session.client.list_quotas(account_id=account_id))

    show(found, json=session.json, watch=watch)
