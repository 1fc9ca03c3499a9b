"""QuotaService. Each method: who calls, the facts, the rules, the write, the answer."""

from functools import partial
from typing import Any

from cunho import v1 as pb
from cunho.v1 import quota_service_pb2_grpc
from cunho_rules import actions
from cunho_rules.limits import ACCOUNTS_PER_IMAGE, CUSTOM_IMAGES_PER_REGION
from cunho_rules.model import Caller, Facts, Image, Limit, Place
from cunho_rules.refusals import Violation, malformed
from cunho_server.servicer import Mutation, Servicer
from cunho_storage import accounts, images, regions, shares
from cunho_storage.accounts import ImageQuota
from cunho_storage.database import Connection

_CUSTOM_IMAGES = pb.QuotaId.QUOTA_ID_CUSTOM_IMAGES


class QuotaService(Servicer, quota_service_pb2_grpc.QuotaServiceServicer):
    """Limits and what is used of them."""

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Any) -> pb.Quota:
        caller = context.caller
        async with self.reading() as connection:
            if request.quota_id == _CUSTOM_IMAGES:
                account_id = _account_id(caller, request)
                facts, quota = await _image_facts(connection, caller, "GetQuota", account_id, request.region_id)
                actions.GET_IMAGE_QUOTA.enforce(facts)
                return _image_quota(account_id, quota)
            image = await images.get(connection, request.image_id, caller.account_id)
            facts = Facts(action="GetQuota", caller=caller, image_id=request.image_id, image=image)
            actions.GET_SHARE_QUOTA.enforce(facts)
            return _share_quota(image)

    async def ListQuotas(self, request: pb.ListQuotasRequest, context: Any) -> pb.ListQuotasResponse:
        caller = context.caller
        account_id = _account_id(caller, request)
        page = self.page(caller, request, tie_breaker="region_id")
        async with self.reading() as connection:
            account = await accounts.get(connection, account_id)
            actions.LIST_QUOTAS.enforce(
                Facts(action="ListQuotas", caller=caller, account_id=account_id, account=account)
            )
            found = await accounts.list_quotas(connection, account_id, after=page.after, limit=page.size + 1)
        shown, token = page.filled(found, partial(_image_quota, account_id))
        return pb.ListQuotasResponse(quotas=shown, next_page_token=token)

    async def SetQuotaLimit(self, request: pb.SetQuotaLimitRequest, context: Any) -> pb.Quota:
        async with self.mutation(request, context) as mutation:
            if request.quota_id == _CUSTOM_IMAGES:
                quota = await _set_image_quota(mutation, request)
            else:
                quota = await _set_share_quota(mutation, request)
            return await mutation.answer(quota)


def _account_id(caller: Caller, request: pb.GetQuotaRequest | pb.ListQuotasRequest) -> str:
    """The account whose quotas are asked for, by default the caller's. Source: ALL-5."""
    account_id = request.account_id or caller.account_id
    if not account_id:
        raise malformed([Violation("account_id", "must be given by the operator, who is no account")])
    return account_id


async def _image_facts(
    connection: Connection, caller: Caller, action: str, account_id: str, region_id: str
) -> tuple[Facts, ImageQuota | None]:
    quota = await accounts.get_quota(connection, account_id, region_id)
    used, limit = (quota.used, quota.limit) if quota else (0, 0)
    facts = Facts(
        action=action,
        caller=caller,
        account_id=account_id,
        account=await accounts.get(connection, account_id),
        region_id=region_id,
        region=await regions.get(connection, region_id),
        place=Place(region_id, quota is not None, used, limit, 0, None, False),
    )
    return facts, quota


async def _set_image_quota(mutation: Mutation, request: pb.SetQuotaLimitRequest) -> pb.Quota:
    connection, account_id, region_id = mutation.connection, request.account_id, request.region_id
    await accounts.lock_place(connection, account_id, region_id)
    facts, quota = await _image_facts(connection, mutation.caller, "SetQuotaLimit", account_id, region_id)
    limit = Limit("CUSTOM_IMAGES", request.limit, quota.used if quota else 0)
    actions.SET_IMAGE_QUOTA.enforce(facts._replace(limit=limit))
    await accounts.set_limit(connection, account_id, region_id, request.limit)
    return _image_quota(account_id, await accounts.get_quota(connection, account_id, region_id))


async def _set_share_quota(mutation: Mutation, request: pb.SetQuotaLimitRequest) -> pb.Quota:
    connection, caller = mutation.connection, mutation.caller
    image = await images.locked(connection, request.image_id, caller.account_id)
    facts = Facts(
        action="SetQuotaLimit",
        caller=caller,
        image_id=request.image_id,
        image=image,
        limit=Limit("SHARES_PER_IMAGE", request.limit, image.share_count if image else 0),
    )
    actions.SET_SHARE_QUOTA.enforce(facts)
    await shares.set_limit(connection, request.image_id, request.limit)
    return _share_quota(await images.get(connection, request.image_id, caller.account_id))


def _image_quota(account_id: str, quota: ImageQuota | None) -> pb.Quota:
    assert quota is not None, "the rules refuse a region that the account is not active in"
    return pb.Quota(
        quota_id=_CUSTOM_IMAGES,
        account_id=account_id,
        region_id=quota.region_id,
        limit=quota.limit,
        usage=quota.used - quota.reserved,
        reserved=quota.reserved,
        is_default=quota.limit == CUSTOM_IMAGES_PER_REGION,
    )


def _share_quota(image: Image | None) -> pb.Quota:
    assert image is not None, "the rules refuse an image that is not there"
    return pb.Quota(
        quota_id=pb.QuotaId.QUOTA_ID_SHARES_PER_IMAGE,
        account_id=image.owner_account_id or "",
        region_id=image.region_id,
        image_id=image.image_id,
        limit=image.share_limit,
        usage=image.share_count,
        is_default=image.share_limit == ACCOUNTS_PER_IMAGE,
    )
