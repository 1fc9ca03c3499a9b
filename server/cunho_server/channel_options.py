"""How connections are treated, as gRPC's channel options: what one may carry, and when it is pinged."""

from cunho_server.settings import Settings

_STREAMS = 100
_MESSAGE_SIZE_BYTES = 4 << 20
_METADATA_SIZE_BYTES = 16 << 10
_HANDSHAKE_SECONDS = 2

#: Calls that may wait to be taken up by a server, some 15 KiB each; a process has several servers. Beyond, gRPC answers
#: CANCELLED without a word to whomever it meets, while we refuse those who call too much.
_WAITING_CALLS = 5000

#: How often a client may ping.
_PING_SECONDS = 5


def channel_options(settings: Settings, *, shares_port: bool = False) -> tuple[tuple[str, int], ...]:
    """The options of a server.

    Args:
        shares_port: whether other processes answer calls on the same port. If not, a second server on it is refused.
    """
    return (
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.max_concurrent_streams", _STREAMS),
        # Streams that have ended and are still to be tidied up: without room for them, gRPC refuses the next ones.
        ("grpc.http2.max_deallocating_streams", _STREAMS),
        ("grpc.server.max_pending_requests", _WAITING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _WAITING_CALLS),
        ("grpc.max_receive_message_length", _MESSAGE_SIZE_BYTES),
        ("grpc.max_metadata_size", _METADATA_SIZE_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_SIZE_BYTES),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_SECONDS * 1000),
        ("grpc.keepalive_time_ms", int(settings.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_seconds * 500)),
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_seconds * 500)),  # it is the shorter one that counts
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # no limit: whoever is silent is pinged again and again
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_SECONDS * 1000),
        ("grpc.max_connection_age_ms", int(settings.connection_age_seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", int(settings.call_seconds_max * 1000)),
    )
