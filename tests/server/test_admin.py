"""What operators see of a process on its loopback port."""

import asyncio
import socket

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests import world as worlds
from tests.server_process import reserved_port
from tests.world import Postgres

from cunho_server import admin
from cunho_server.address import AddressError
from cunho_server.settings import Settings


def settings(port: int) -> Settings:
    return Settings.model_validate({"admin_address": f"127.0.0.1:{port}"})


def test_the_sockets_of_the_server_and_its_calls_are_shown_without_credentials(postgres: Postgres) -> None:
    with reserved_port() as reserved:
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        with (
            worlds.world(postgres, workers=0, admin_address=address) as world,
            grpc.insecure_channel(address) as channel,
        ):
            list(world.operator.list_regions())
            channelz = channelz_pb2_grpc.ChannelzStub(channel)
            servers = channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=10).server
            # In any order: it listens on a socket for itself, too.
            ours = [each for each in servers if any(one.name.endswith("127.0.0.1:0") for one in each.listen_socket)]
            answering = max(ours, key=lambda each: each.ref.server_id)  # other tests may have servers too
            assert answering.data.calls_succeeded >= 1
            of_it = channelz_pb2.GetServerSocketsRequest(server_id=answering.ref.server_id)
            assert channelz.GetServerSockets(of_it, timeout=10).socket_ref, "the client's connection"


async def test_the_port_describes_itself() -> None:
    async with admin.serving(settings(0), 0) as address:
        with grpc.insecure_channel(address) as channel:
            described = ProtoReflectionDescriptorDatabase(channel)
            names = await asyncio.to_thread(described.get_services)
    assert "grpc.channelz.v1.Channelz" in names


async def test_each_process_has_a_port_of_its_own() -> None:
    with reserved_port() as reserved:
        port = reserved.getsockname()[1]
    async with admin.serving(settings(port), 0) as first, admin.serving(settings(port), 1) as second:
        assert (first, second) == (f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}")


async def test_a_process_that_takes_over_has_the_port_before_the_old_one_leaves_it() -> None:
    async with admin.serving(settings(0), 0) as old, admin.serving(settings(int(old.rpartition(":")[2])), 0) as new:
        assert new == old


async def test_a_port_that_another_has_is_refused_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=f"127.0.0.1:{port}: .*CUNHO_ADMIN_ADDRESS"):
            async with admin.serving(settings(port), 0):
                pass


async def test_without_an_address_there_is_no_port() -> None:
    async with admin.serving(Settings.model_validate({}), 0) as address:
        assert address == ""
