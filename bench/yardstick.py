"""The bare statements of each call: the least that answers it and keeps the rules.

They are written by hand and stay as they are, whatever the server does. A read is one statement with every column that
its answer shows. A mutation claims its request id, locks the image, reads the facts after the lock and writes
everything at once: four statements. Arguments: $1 the account, and of mutations $2 the method and $3 the request id.
"""

from bench.data import insert
from cunho_rules.model import Image
from cunho_storage.tables import ImageRow, ImageShareRow, InstanceRow, OperationRow, RequestRow

PAGE_SIZE = 50

_COLUMNS = ", ".join(f"image.{name}" for name in Image._fields if name in ImageRow._meta.fields)
_OF_REGION = "region.jurisdiction, region.currency, region.image_storage_nanos, region.windows_license_nanos"
_SEEN = (
    f"{_COLUMNS}, {_OF_REGION},"
    " EXISTS (SELECT FROM image_share s WHERE s.image_id = image.image_id AND s.recipient_account_id = $1)"
)
_NOTHING = "(SELECT) AS nothing"

#: $2: the image.
GET = f"SELECT {_SEEN} FROM image JOIN region USING (region_id) WHERE image_id = $2 AND state <> 'DELETED'"


def page(condition: str) -> str:
    """A page of a region, the newest first: of what is public, one's own and received, each the first rows, merged.

    $2: the region; those of the condition come after it.
    """
    branches = (
        "image WHERE image.region_id = $2 AND image.owner_account_id IS NULL",
        "image WHERE image.region_id = $2 AND image.owner_account_id = $1",
        "image_share s JOIN image USING (image_id) WHERE s.region_id = $2 AND s.recipient_account_id = $1",
    )
    ending = f"ORDER BY image.create_time DESC, image_id DESC LIMIT {PAGE_SIZE + 1}"
    rows = " UNION ALL ".join(
        f"(SELECT {_COLUMNS} FROM {branch} AND image.state <> 'DELETED' AND {condition} {ending})"
        for branch in branches
    )
    return f"SELECT image.*, {_OF_REGION} FROM ({rows}) image JOIN region USING (region_id) {ending}"


_CLAIM = insert(
    RequestRow,
    {"account_id": "$1", "method": "$2", "request_id": "$3", "fingerprint": "$4::bytea"},
    f"{_NOTHING} ON CONFLICT DO NOTHING",
)
_LOCK = "SELECT FROM image WHERE image_id = $1 FOR"
_ANSWER = "UPDATE request_log SET answer = $4 WHERE account_id = $1 AND method = $2 AND request_id = $3"

#: $2: the image, $3: the instance type.
_LAUNCH_FACTS = f"""
SELECT {_SEEN}, account.*, instance_type.*,
  ARRAY(SELECT zone_id FROM zone WHERE zone.region_id = region.region_id),
  ARRAY(SELECT place.region_id FROM account_region place WHERE place.account_id = $1)
FROM image JOIN region USING (region_id), account, instance_type
WHERE image_id = $2 AND account.account_id = $1 AND instance_type = $3
"""
_KEPT = (
    "owner_account_id checksum_algorithm checksum_value content_uri size_bytes min_disk_bytes min_memory_bytes"
    " os_family os_platform os_version architecture boot_mode cloud_init"
).split()
_NEW_OPERATION = {
    "operation_id": "'op-' || $3::text",
    "account_id": "$1",
    "created_by": "$1",
    "method": "$2",
    "request_id": "$3",
    "region_id": "$5",
    "target_ids": "jsonb_build_array('ins-' || $3::text)",
    "steps": "$6::jsonb",
    "state": "'PENDING'",
    "response": "NULL",
}
_NEW_INSTANCE = {
    "instance_id": "'ins-' || $3::text",
    "name": "$7",
    "region_id": "image.region_id",
    "zone_id": "$8",
    "account_id": "$1",
    "instance_type": "$9",
    "state": "'PROVISIONING'",
    "image_id": "image.image_id",
    "launch_name": "image.name",
    "launch_kind": "'CUSTOM'",
    "launch_trust": "'OWN'",
    **{f"launch_{name}": f"image.{name}" for name in _KEPT},
    "operation_id": "'op-' || $3::text",
    "version": "1",
}

_LAUNCHED = f"""
WITH operation AS ({insert(OperationRow, _NEW_OPERATION, _NOTHING)}),
  instance AS ({insert(InstanceRow, _NEW_INSTANCE, "image WHERE image.image_id = $10")})
{_ANSWER}
"""

#: Statement by statement: $4 a digest; of the lock $1 the image; $2 the image, $3 the instance type; $4 the answer,
#: $5 the region, $6 the steps, $7 the name, $8 the zone, $9 the instance type, $10 the image.
LAUNCH = (_CLAIM, f"{_LOCK} SHARE", _LAUNCH_FACTS, _LAUNCHED)

#: $2: the image, $3: who receives it.
_SHARE_FACTS = f"""
SELECT {_SEEN}, account.*, recipient.*, place.region_id, share.image_id
FROM image JOIN region USING (region_id) JOIN account ON account.account_id = $1
LEFT JOIN account recipient ON recipient.account_id = $3
LEFT JOIN account_region place ON place.account_id = $3 AND place.region_id = region.region_id
LEFT JOIN image_share share ON share.image_id = image.image_id AND share.recipient_account_id = $3
WHERE image.image_id = $2
"""
_NEW_SHARE = {
    "image_id": "counted.image_id",
    "recipient_account_id": "$6",
    "owner_account_id": "$1",
    "region_id": "counted.region_id",
    "granted_by": "$1",
}

_SHARED = f"""
WITH counted AS (UPDATE image SET share_count = share_count + 1 WHERE image_id = $5 RETURNING image.*),
  shared AS ({insert(ImageShareRow, _NEW_SHARE, "counted")})
{_ANSWER}
"""

#: Statement by statement: $4 a digest; of the lock $1 the image; $2 the image, $3 who receives it; $4 the answer,
#: $5 the image, $6 who receives it.
SHARE = (_CLAIM, f"{_LOCK} NO KEY UPDATE", _SHARE_FACTS, _SHARED)
