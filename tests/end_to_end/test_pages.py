"""Pages of large things: they end early rather than outgrow what a client accepts, and nothing is lost."""

import pytest
from tests.end_to_end.steps import publish
from tests.world import GUANGZHOU, World

from cunho import Refused, v1


def test_a_page_of_large_instances_ends_early_and_the_next_goes_on(world: World) -> None:
    tenant = world.tenant(GUANGZHOU)
    labels = {f"{'k' * 60}{number}": "v" * 63 for number in range(64)}
    launched: set[str] = set()
    for _ in range(5):
        operation = tenant.create_instance(
            region_id=GUANGZHOU,
            zone_id="ap-guangzhou-3",
            instance_type="S5.MEDIUM4",
            image_id=world.public_image().image_id,
            count=100,
            labels=labels,
        )
        launched |= {instance.instance_id for instance in operation.result(timeout_seconds=30).instances}
    assert len(launched) == 500
    listed: list[v1.Instance] = [*tenant.list_instances(region_id=GUANGZHOU, page_size=1000)]
    assert sum(instance.ByteSize() for instance in listed) > 4 << 20  # more than one answer may carry
    assert sorted(instance.instance_id for instance in listed) == sorted(launched)
    assert len([*tenant.list_operations()]) == 5


def test_images_that_are_too_large_together_are_to_be_asked_for_in_smaller_numbers(world: World) -> None:
    software = [v1.Software(name="\U0001f4bf" * 60, version="\U0001f4bf" * 60)] * 100
    image_ids = [
        publish(world.operator, f"large {number}", software=software, description="\U0001f4bf" * 256).image_id
        for number in range(100)
    ]
    with pytest.raises(
        Refused, match=r"image_ids: must be fewer: their images are \d+ bytes, and at most 3145728"
    ) as caught:
        world.operator.batch_get_images(image_ids=image_ids)
    assert caught.value.reason == "INVALID_REQUEST"
    assert len(world.operator.batch_get_images(image_ids=image_ids[:50]).results) == 50
