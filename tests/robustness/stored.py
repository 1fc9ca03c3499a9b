"""What a service holds in the end, read from its database, in one moment and by SQL of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf import any_pb2
from google.rpc import status_pb2
from tests.robustness import history
from tests.robustness.history import Answer
from tests.robustness.objects import Account, Image, Instance, Place

Sql = Callable[[str], list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Stored:
    """The rows, as the objects that the checker knows."""

    images: Mapping[str, Image] = field(default_factory=dict)
    #: By account and region.
    places: Mapping[tuple[str, str], Place] = field(default_factory=dict)
    accounts: Mapping[str, Account] = field(default_factory=dict)
    #: How many images are counted, by account and region.
    counted: Mapping[tuple[str, str], int] = field(default_factory=dict)
    instances: Mapping[str, Instance] = field(default_factory=dict)
    #: What each operation came to, by name; None where it has not ended.
    operations: Mapping[str, Answer | None] = field(default_factory=dict)
    #: The answers kept for request ids, by account, RPC and id.
    requests: Mapping[tuple[str, str, str], bytes] = field(default_factory=dict)


_IMAGES = """
    SELECT image_id, owner_account_id, region_id, name, state, version, deprecation_state,
           ARRAY(SELECT recipient_account_id FROM image_share WHERE image_share.image_id = image.image_id), share_limit
      FROM image WHERE owner_account_id IS NOT NULL
"""
_ACCOUNTS = """
    SELECT account_id, version,
           ARRAY(SELECT region_id FROM account_region WHERE account_region.account_id = account.account_id)
      FROM account
"""
_PLACES = "SELECT account_id, region_id, images_limit, images_used FROM account_region"
_INSTANCES = "SELECT instance_id, account_id, name, state, version, coalesce(operation_id, '') FROM instance"
_OPERATIONS = "SELECT operation_id, end_time IS NOT NULL, response, error FROM operation"
_REQUESTS = "SELECT account_id, method, request_id, answer FROM request_log WHERE answer IS NOT NULL"


def read(sql: Sql) -> Stored:
    """What is stored, once nothing goes on any more."""
    accounts = {row[0]: Account(frozenset(row[2]), row[1]) for row in sql(_ACCOUNTS)}
    images = {row[0]: Image(*row)._replace(shares=frozenset(row[7])) for row in sql(_IMAGES)}
    places, counted = {}, {}
    for account_id, region_id, limit, used in sql(_PLACES):
        here = [each for each in images.values() if (each.owner, each.region_id) == (account_id, region_id)]
        held = frozenset((each.image_id, each.name, each.state != "FAILED") for each in here if each.state != "DELETED")
        places[account_id, region_id] = Place(held, limit)
        counted[account_id, region_id] = used
    return Stored(
        images,
        places,
        accounts,
        counted,
        {row[0]: Instance(*row) for row in sql(_INSTANCES)},
        {f"operations/{row[0]}": _ended(*row) for row in sql(_OPERATIONS)},
        {tuple(row[:3]): row[3] for row in sql(_REQUESTS)},
    )


def unfinished(sql: Sql) -> int:
    """How many operations have not ended."""
    return int(sql("SELECT count(*) FROM operation WHERE end_time IS NULL")[0][0])


def _ended(operation_id: str, done: bool, response: bytes | None, error: bytes | None) -> Answer | None:
    if not done:
        return None
    raw = operations_pb2.Operation(name=f"operations/{operation_id}", done=True)
    if response is not None:
        raw.response.CopyFrom(any_pb2.Any.FromString(response))
    if error is not None:
        raw.error.CopyFrom(status_pb2.Status.FromString(error))
    return history.ended(raw)
