"""Slow work that the service does, as its caller sees it. All waiting is done by the service: nothing polls here."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import grpc
from google.longrunning import operations_pb2
from google.protobuf.descriptor_pool import Default as default_pool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cunho import v1
from cunho.connection import bounded
from cunho.refused import Refused

if TYPE_CHECKING:
    from cunho.methods import Methods

WAIT_SECONDS = 25
"""The longest that one WaitOperation call waits: proxies in between often cut idle calls after 30 s."""

Response_co = TypeVar("Response_co", bound=Message, covariant=True)


class OperationState(Generic[Response_co]):
    """What the service last said of an operation: all that needs no call."""

    def __init__(self, operation: operations_pb2.Operation) -> None:
        self._operation = operation

    def __repr__(self) -> str:
        if not self.name:
            return "<Operation of validate_only>"
        return f"<Operation {self.name}, {'ended' if self.done else 'under way'}>"

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

    def _waits(self, timeout_seconds: float | None) -> Iterator[float]:
        """How long each call that waits for its end may wait, until it has ended; raises when the time is up."""
        name = self._existing_name()
        end = inf if timeout_seconds is None else monotonic() + bounded(timeout_seconds)
        left = max(0, end - monotonic())  # it is asked once even if there is no time to wait: it may have ended
        while not self.done:
            yield min(left, WAIT_SECONDS)
            if (left := end - monotonic()) <= 0 and not self.done:
                raise TimeoutError(
                    f"{name} has not ended within {timeout_seconds} s ({self.metadata.progress_percent} % of its steps "
                    "have). It goes on: call result() again, or cancel()."
                )

    def _outcome(self) -> Response_co:
        if self._operation.HasField("error"):
            raise Refused.from_status(self._operation.error)
        response = self._operation.response
        try:
            descriptor = default_pool().FindMessageTypeByName(response.TypeName())
        except KeyError:  # of a newer service
            return cast(Response_co, response)
        return cast(Response_co, GetMessageClass(descriptor).FromString(response.value))

    def _existing_name(self) -> str:
        if not self.name:
            raise ValueError(
                "There is no operation: its call was made with validate_only, so every check passed and nothing was "
                "done. See its metadata, quotes and warnings, or call again without validate_only."
            )
        return self.name


@contextmanager
def no_answer_is_not_the_end() -> Iterator[None]:
    """Around a wait that the service may leave unanswered."""
    try:
        yield
    except Refused as refused:
        if refused.code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise


class Operation(OperationState[Response_co]):
    """Slow work that the service does; it goes on whether or not anybody waits for it.

    Everything here is as of the last answer of the service; `refresh` and `result` renew it.
    """

    def __init__(self, client: "Methods", operation: operations_pb2.Operation) -> None:
        super().__init__(operation)
        self._client = client

    def result(self, timeout_seconds: float | None = None) -> Response_co:
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
                self._operation = self._client.wait_operation(name=self.name, timeout_seconds=seconds)._operation
        return self._outcome()

    def refresh(self) -> None:
        """Asks the service how far it is now."""
        self._operation = self._client.get_operation(name=self._existing_name())._operation

    def cancel(self) -> None:
        """Asks the service to stop it; it may still succeed, which `result` tells."""
        self._client.cancel_operation(name=self._existing_name())
