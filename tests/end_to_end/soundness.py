"""What must be true of the database at every moment, whatever was interrupted. One statement, so that it is one moment."""

from collections.abc import Callable
from typing import Any

_UNSOUND = """
    SELECT 'image ' || image_id || ' is ' || state || ' and no operation makes it'
      FROM image WHERE state IN ('CREATING', 'IMPORTING', 'COPYING') AND NOT EXISTS (
        SELECT FROM operation WHERE end_time IS NULL AND target_ids ? image_id)
    UNION ALL
    SELECT 'image ' || image_id || ' is ' || image.state || ' and ' || operation_id || ' makes it still'
      FROM image JOIN operation ON target_ids ? image_id
     WHERE end_time IS NULL AND image.state NOT IN ('CREATING', 'IMPORTING', 'COPYING')
    UNION ALL
    SELECT 'instance ' || instance_id || ' is ' || instance.state || ' and no operation moves it'
      FROM instance WHERE instance.state NOT IN ('RUNNING', 'STOPPED', 'FAILED', 'DELETED') AND NOT EXISTS (
        SELECT FROM operation WHERE end_time IS NULL AND operation.operation_id = instance.operation_id)
    UNION ALL
    SELECT account_id || ' has ' || there || ' images in ' || region_id || ', counted are ' || images_used
      FROM account_region CROSS JOIN LATERAL (
        SELECT count(*) AS there FROM image
         WHERE owner_account_id = account_id AND image.region_id = account_region.region_id
           AND image.state NOT IN ('FAILED', 'DELETED')
      ) AS counted WHERE images_used <> there
    UNION ALL
    SELECT 'image ' || image_id || ' has ' || there || ' shares, counted are ' || share_count
      FROM image CROSS JOIN LATERAL (
        SELECT count(*) AS there FROM image_share WHERE image_share.image_id = image.image_id
      ) AS counted WHERE share_count <> there
"""


def unsound(sql: Callable[[str], list[tuple[Any, ...]]]) -> list[str]:
    """What is half-made, moving by itself, or counted wrong, a sentence for each.

    Args:
        sql: gives the rows of a query.
    """
    return [sentence for (sentence,) in sql(_UNSOUND)]
