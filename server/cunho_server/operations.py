"""google.longrunning.Operations. An operation belongs to one account; to others it does not exist."""

from typing import Any

from google.longrunning import operations_pb2, operations_pb2_grpc
from google.protobuf.empty_pb2 import Empty

from cunho_rules import shapes
from cunho_rules.limits import OPERATIONS_PAGE_SIZE_MAX
from cunho_rules.model import Caller, Operation, Role
from cunho_rules.refusals import Reason, Refusal
from cunho_server import messages
from cunho_server.servicer import Servicer, all_of
from cunho_storage import deadlines, operations
from cunho_storage.database import Connection

#: How much of the time of the call WaitOperation leaves for the answer.
_ANSWER_SECONDS = 0.2


class Operations(Servicer, operations_pb2_grpc.OperationsServicer):  # type: ignore[misc]
    """Work that takes time: looking at it, waiting for it, cancelling it."""

    async def GetOperation(self, request: operations_pb2.GetOperationRequest, context: Any) -> operations_pb2.Operation:
        caller = context.caller
        async with self.reading() as connection:
            return messages.operation(await _get(connection, caller, request.name))

    async def ListOperations(
        self, request: operations_pb2.ListOperationsRequest, context: Any
    ) -> operations_pb2.ListOperationsResponse:
        caller = context.caller
        page = self.page(
            caller,
            request,
            filter=shapes.operation_filter,
            order=shapes.operation_order,
            size_max=OPERATIONS_PAGE_SIZE_MAX,
        )
        async with self.reading() as connection:
            found = await operations.page(
                connection,
                account_id=all_of(caller),
                expression=page.expression,
                keys=page.keys,
                cursor=page.cursor,
                limit=page.size + 1,
            )
        shown, token = page.filled(found, messages.operation)
        return operations_pb2.ListOperationsResponse(operations=shown, next_page_token=token)

    async def WaitOperation(
        self, request: operations_pb2.WaitOperationRequest, context: Any
    ) -> operations_pb2.Operation:
        caller = context.caller
        async with self.reading() as connection:
            operation = await _get(connection, caller, request.name)
        if operation.end_time is None:
            ended = await self.service.work.wait(operation.operation_id, _wait_seconds(request))
            if ended is not None:
                return messages.operation(ended)
            async with self.reading() as connection:
                operation = await _get(connection, caller, request.name)
        return messages.operation(operation)

    async def CancelOperation(self, request: operations_pb2.CancelOperationRequest, context: Any) -> Empty:
        async with self.mutation(request, context) as mutation:
            operation = await _get(mutation.connection, mutation.caller, request.name)
            await operations.cancel(mutation.connection, operation.operation_id)
            answer = await mutation.answer(Empty())
        self.service.work.wake()
        return answer

    async def DeleteOperation(self, request: operations_pb2.DeleteOperationRequest, context: Any) -> Empty:
        async with self.mutation(request, context) as mutation:
            operation = await _get(mutation.connection, mutation.caller, request.name)
            if not await operations.delete(mutation.connection, operation.operation_id):
                raise Refusal(Reason.OPERATION_RUNNING, operation=request.name)
            return await mutation.answer(Empty())


async def _get(connection: Connection, caller: Caller, name: str) -> Operation:
    operation = await operations.get(connection, name.removeprefix("operations/"))
    if operation is None or (caller.role is not Role.OPERATOR and operation.account_id != caller.account_id):
        raise Refusal(Reason.OPERATION_NOT_FOUND, operation=name)
    return operation


def _wait_seconds(request: operations_pb2.WaitOperationRequest) -> float:
    """As long as asked for, but so that the answer still comes within the time of the call."""
    wait = max(0, deadlines.remaining_seconds() - _ANSWER_SECONDS)
    if request.HasField("timeout"):
        wait = min(wait, max(0, request.timeout.seconds + request.timeout.nanos / 1e9))
    return wait
