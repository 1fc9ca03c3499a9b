"""Slow work that the service does, as its caller sees it. All waiting is done by the service: nothing polls here."""

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import grpc
from google.longrunning import operations_pb2
from google.protobuf.descriptor_pool import Default as default_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cunho import v1
from cunho.refused import Refused

if TYPE_CHECKING:
    from cunho.methods import Methods

WAIT_SECONDS = 25
"""The longest that one WaitOperation call waits: proxies in between often cut idle calls after 30 s."""

Response_co = TypeVar("Response_co", bound=Message, covariant=True)


class Operation(Generic[Response_co]):
    """Slow work that the service does; it goes on whether or not anybody waits for it.

    Everything here is as of the last answer of the service; `refresh` and `result` renew it.
    """

    def __init__(self, client: "Methods", operation: operations_pb2.Operation) -> None:
        self._client = client
        self._operation = operation

    @property
    def name(self) -> str:
        """Its name, "operations/op-...", for `Client.get_operation`; empty if the call was made with validate_only."""
        return str(self._operation.name)

    @property
    def done(self) -> bool:
        """True once it has ended, well or not."""
        return bool(self._operation.done)

    @property
    def metadata(self) -> v1.OperationMetadata:
        """What it does to which images or instances, and how far it is."""
        metadata = v1.OperationMetadata()
        self._operation.metadata.Unpack(metadata)
        return metadata

    @property
    def warnings(self) -> list[v1.Warning]:
        """Notices, for example UNVERIFIED_SHARED_IMAGE on a launch from a shared image."""
        return list(self.metadata.warnings)

    @property
    def quotes(self) -> list[v1.PriceQuote]:
        """Price of each image that it makes, or with validate_only would make."""
        return list(self.metadata.quotes)

    def result(self, timeout_seconds: float | None = None) -> Response_co:
        """What it made, once it has ended.

        Args:
            timeout_seconds: The longest to wait. Default: none, as long as it takes.

        Raises:
            Refused: It failed or was cancelled, or the service could not be asked (then it may be called again).
            TimeoutError: The time is up; the operation goes on.
            ValueError: The call was made with validate_only.
        """
        name = self._existing_name()
        end = inf if timeout_seconds is None else monotonic() + timeout_seconds
        while not self.done:
            if (left := end - monotonic()) <= 0:
                raise TimeoutError(
                    f"{name} has not ended within {timeout_seconds} s ({self.metadata.progress_percent} % of its steps "
                    "have). It goes on: call result() again, or cancel()."
                )
            self._wait(min(left, WAIT_SECONDS))
        if self._operation.HasField("error"):
            raise Refused.from_status(self._operation.error)
        response = self._operation.response
        response_type = GetMessageClass(default_pool().FindMessageTypeByName(response.TypeName()))
        return cast(Response_co, response_type.FromString(response.value))

    def refresh(self) -> None:
        """Asks the service how far it is now."""
        self._operation = self._client.get_operation(name=self._existing_name())._operation

    def cancel(self) -> None:
        """Asks the service to stop it; it may still succeed, which `result` tells."""
        self._client.cancel_operation(name=self._existing_name())

    def _wait(self, seconds: float) -> None:
        try:
            self._operation = self._client.wait_operation(name=self.name, timeout_seconds=seconds)._operation
        except Refused as refused:
            if refused.code is not grpc.StatusCode.DEADLINE_EXCEEDED:  # which says no more than "not ended"
                raise

    def _existing_name(self) -> str:
        if not self.name:
            raise ValueError(
                "There is no operation: its call was made with validate_only, so every check passed and nothing was "
                "done. See its metadata, quotes and warnings, or call again without validate_only."
            )
        return self.name
