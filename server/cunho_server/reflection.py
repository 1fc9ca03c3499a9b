"""Server reflection, under the names v1 and v1alpha: what lets grpcurl list, describe and call without the protos."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

#: The messages of v1 are those of v1alpha under another name: alike on the wire.
_NAMES = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)
_METHOD = "ServerReflectionInfo"


class _Pool:
    """The default pool, that finds methods too.

    protobuf's own no longer finds a method by its name, so that `grpcurl describe SERVICE.METHOD` would fail.
    """

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """The file that declares the symbol, or the service that the method belongs to."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            file = self._pool.FindFileContainingSymbol(service)
            if method not in self._pool.FindServiceByName(service).methods_by_name:
                raise
            return file


def add(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Adds reflection of the services to the server."""
    servicer = reflection.aio.ReflectionServicer([*service_names, *_NAMES], pool=_Pool())
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=_parsed,
        response_serializer=ServerReflectionResponse.SerializeToString,
    )
    for name in _NAMES:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {_METHOD: handler}),))


def _parsed(data: bytes) -> ServerReflectionRequest:
    """The request; of bytes that are none, one that asks for nothing, which is answered as an invalid argument."""
    try:
        return ServerReflectionRequest.FromString(data)
    except DecodeError:
        return ServerReflectionRequest()
