"""The API as one file, a FileDescriptorSet: for tools that call servers which do not describe themselves."""

from google.longrunning import operations_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from cunho import v1


def protoset() -> bytes:
    """Every file of the API, of health and of what refusals carry, each after those that it imports."""
    modules = (*vars(v1).values(), operations_pb2, error_details_pb2, health_pb2)
    files: dict[str, FileDescriptor] = {}
    for module in modules:
        if isinstance(file := getattr(module, "DESCRIPTOR", None), FileDescriptor):
            _add(files, file)
    return FileDescriptorSet(file=map(_proto, files.values())).SerializeToString()


def _add(files: dict[str, FileDescriptor], file: FileDescriptor) -> None:
    if file.name not in files:
        for imported in file.dependencies:
            _add(files, imported)
        files[file.name] = file


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    return proto
