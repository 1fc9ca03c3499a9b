"""RegionService."""

from typing import Any

from cunho import v1 as pb
from cunho.v1 import region_service_pb2_grpc
from cunho_server import messages
from cunho_server.servicer import Servicer
from cunho_storage import regions


class RegionService(Servicer, region_service_pb2_grpc.RegionServiceServicer):
    """The regions of the cloud."""

    async def ListRegions(self, request: pb.ListRegionsRequest, context: Any) -> pb.ListRegionsResponse:
        caller = context.caller
        page = self.page(caller, request, tie_breaker="region_id")
        async with self.reading() as connection:
            found = await regions.list_(connection, after=page.after, limit=page.size + 1)
        shown, token = page.filled(found, messages.region)
        return pb.ListRegionsResponse(regions=shown, next_page_token=token)
