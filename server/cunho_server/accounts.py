"""AccountService. Each method: who calls, the facts, the rules, the write, the answer."""

from typing import Any

from cunho import v1 as pb
from cunho.v1 import account_service_pb2_grpc
from cunho_rules import actions
from cunho_rules.model import Account, Facts
from cunho_server import messages
from cunho_server.servicer import Mutation, Servicer
from cunho_server.shape import masked
from cunho_storage import accounts, regions


class AccountService(Servicer, account_service_pb2_grpc.AccountServiceServicer):
    """The accounts that the service knows, the regions that they are active in and where they stand."""

    async def RegisterAccount(self, request: pb.RegisterAccountRequest, context: Any) -> pb.Account:
        async with self.mutation(request, context) as mutation:
            connection, account_id = mutation.connection, request.account_id
            facts = Facts(
                action="RegisterAccount",
                caller=mutation.caller,
                account_id=account_id,
                account=await accounts.get(connection, account_id),
                unknown_region_ids=await regions.unknown(connection, request.region_ids),
            )
            actions.REGISTER_ACCOUNT.enforce(facts)
            await accounts.add(connection, account_id, request.display_name, request.region_ids)
            return await mutation.answer(await _read_back(mutation, account_id))

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.Account:
        caller = context.caller
        async with self.reading() as connection:
            account = await accounts.get(connection, request.account_id)
        facts = Facts(action="GetAccount", caller=caller, account_id=request.account_id, account=account)
        actions.GET_ACCOUNT.enforce(facts)
        assert account is not None
        return messages.account(account)

    async def ListAccounts(self, request: pb.ListAccountsRequest, context: Any) -> pb.ListAccountsResponse:
        caller = context.caller
        page = self.page(caller, request, tie_breaker="account_id")
        actions.LIST_ACCOUNTS.enforce(Facts(action="ListAccounts", caller=caller))
        async with self.reading() as connection:
            found = await accounts.list_(connection, after=page.after, limit=page.size + 1)
        shown, token = page.filled(found, messages.account)
        return pb.ListAccountsResponse(accounts=shown, next_page_token=token)

    async def UpdateAccount(self, request: pb.UpdateAccountRequest, context: Any) -> pb.Account:
        async with self.mutation(request, context) as mutation:
            connection, wanted = mutation.connection, request.account
            account = await accounts.locked(connection, wanted.account_id)
            before = {*account.region_ids} if account else set()
            named = masked(request)
            after = {*wanted.region_ids} if "region_ids" in named else before
            facts = Facts(
                action="UpdateAccount",
                caller=mutation.caller,
                account_id=wanted.account_id,
                account=account,
                etag=wanted.etag,
                unknown_region_ids=await regions.unknown(connection, sorted(after - before)),
                region_ids_in_use=await accounts.in_use(connection, wanted.account_id, sorted(before - after)),
            )
            actions.UPDATE_ACCOUNT.enforce(facts)
            await accounts.enter(connection, wanted.account_id, after - before)
            await accounts.leave(connection, wanted.account_id, sorted(before - after))
            assert account is not None
            await accounts.update(connection, _changed(account, wanted, named))
            return await mutation.answer(await _read_back(mutation, wanted.account_id))


def _changed(account: Account, wanted: pb.Account, named: frozenset[str]) -> Account:
    """The account with what the mask names taken from the request."""
    if "display_name" in named:
        account = account._replace(display_name=wanted.display_name)
    if "state" in named:
        account = account._replace(state=messages.ACCOUNT_STATE.name(wanted.state))
    return account


async def _read_back(mutation: Mutation, account_id: str) -> pb.Account:
    account = await accounts.get(mutation.connection, account_id)
    assert account is not None
    return messages.account(account)
