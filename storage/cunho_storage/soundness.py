"""What must be true of the stored rows at every moment, whatever was interrupted, and no constraint can enforce.

Written in SQL by hand: it judges what the composed statements wrote, and so it shares nothing with them but the names
of the states.
"""

from collections.abc import Iterable

from cunho_rules.model import BEING_MADE, ImageState, InstanceState


def _listed(states: Iterable[str]) -> str:
    return ", ".join(f"'{state}'" for state in sorted(states))


_MADE = _listed(BEING_MADE)
_UNCOUNTED = _listed({ImageState.FAILED, ImageState.DELETED})
_AT_REST = _listed({InstanceState.RUNNING, InstanceState.STOPPED, InstanceState.FAILED, InstanceState.DELETED})

#: Gives a sentence for each contradiction. One statement, so that it is one moment, whatever the isolation is.
CONTRADICTIONS = f"""
    SELECT 'image ' || image_id || ' is ' || image.state || ' and ' || makers || ' operations make it'
      FROM image CROSS JOIN LATERAL (
        SELECT count(*) AS makers FROM operation WHERE end_time IS NULL AND target_ids ? image_id
      ) AS counted WHERE image.state IN ({_MADE}) AND makers <> 1
    UNION ALL
    SELECT 'image ' || image_id || ' is ' || image.state || ' and ' || operation_id || ' makes it still'
      FROM image JOIN operation ON target_ids ? image_id
     WHERE end_time IS NULL AND image.state NOT IN ({_MADE})
    UNION ALL
    SELECT 'instance ' || instance_id || ' is ' || instance.state || ' and no operation moves it'
      FROM instance WHERE instance.state NOT IN ({_AT_REST}) AND NOT EXISTS (
        SELECT FROM operation WHERE end_time IS NULL AND operation.operation_id = instance.operation_id)
    UNION ALL
    SELECT 'operation ' || operation_id || ' has target ' || target_id || ', which is not there'
      FROM operation CROSS JOIN LATERAL jsonb_array_elements_text(target_ids) AS targets (target_id)
     WHERE end_time IS NULL
       AND NOT EXISTS (SELECT FROM image WHERE image_id = target_id)
       AND NOT EXISTS (SELECT FROM instance WHERE instance_id = target_id)
    UNION ALL
    SELECT 'image ' || image_id || ' is replaced by ' || replacement_image_id || ', which is not there'
      FROM image WHERE replacement_image_id <> '' AND NOT EXISTS (
        SELECT FROM image AS other
         WHERE other.image_id = image.replacement_image_id AND other.region_id = image.region_id)
    UNION ALL
    SELECT account_id || ' has ' || there || ' images in ' || region_id || ', counted are ' || images_used
      FROM account_region CROSS JOIN LATERAL (
        SELECT count(*) AS there FROM image
         WHERE owner_account_id = account_id AND image.region_id = account_region.region_id
           AND image.state NOT IN ({_UNCOUNTED})
      ) AS counted WHERE images_used <> there
    UNION ALL
    SELECT 'image ' || image_id || ' has ' || there || ' shares, counted are ' || share_count
      FROM image CROSS JOIN LATERAL (
        SELECT count(*) AS there FROM image_share WHERE image_share.image_id = image.image_id
      ) AS counted WHERE share_count <> there
"""
