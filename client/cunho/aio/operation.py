"""Slow work that the service does, to await. What needs no call is in cunho/operation.py."""

from typing import TYPE_CHECKING

from google.longrunning import operations_pb2

from cunho.operation import OperationState, Response_co, no_answer_is_not_the_end

if TYPE_CHECKING:
    from cunho.aio.methods import Methods


class Operation(OperationState[Response_co]):
    """Slow work that the service does; it goes on whether or not anybody waits for it.

    Everything here is as of the last answer of the service; `refresh` and `result` renew it.
    """

    def __init__(self, client: "Methods", operation: operations_pb2.Operation) -> None:
        super().__init__(operation)
        self._client = client

    async def result(self, timeout_seconds: float | None = None) -> Response_co:
        """What it made, once it has ended; as `google.protobuf.Any`, if that is of a type that this client has not.

        Args:
            timeout_seconds: The longest to wait. Default: none, as long as it takes.

        Raises:
            Refused: It failed or was cancelled, or the service could not be asked (then it may be called again).
            TimeoutError: The time is up; the operation goes on.
            ValueError: The call was made with validate_only, or `timeout_seconds` is NaN.
        """
        for seconds in self._waits(timeout_seconds):
            with no_answer_is_not_the_end():
                answer = await self._client.wait_operation(name=self.name, timeout_seconds=seconds)
                self._operation = answer._operation
        return self._outcome()

    async def refresh(self) -> None:
        """Asks the service how far it is now."""
        self._operation = (await self._client.get_operation(name=self._existing_name()))._operation

    async def cancel(self) -> None:
        """Asks the service to stop it; it may still succeed, which `result` tells."""
        await self._client.cancel_operation(name=self._existing_name())
