"""Pages of large things: they end early rather than outgrow what a client accepts, and nothing is lost."""

from tests.world import GUANGZHOU, World

from cunho.v1 import Instance


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
    listed: list[Instance] = [*tenant.list_instances(region_id=GUANGZHOU, page_size=1000)]
    assert sum(instance.ByteSize() for instance in listed) > 4 << 20  # more than one answer may carry
    assert sorted(instance.instance_id for instance in listed) == sorted(launched)
    assert len([*tenant.list_operations()]) == 5
