"""InstanceService. Each method: who calls, the facts, the rules, the write, the answer."""

from collections.abc import Sequence
from typing import Any

from google.longrunning.operations_pb2 import Operation

from cunho import v1 as pb
from cunho.v1 import instance_service_pb2_grpc
from cunho_rules import actions, shapes
from cunho_rules.checks import Action
from cunho_rules.images import kind, trust
from cunho_rules.model import Facts, Image, Instance, InstanceState, etag
from cunho_rules.warnings import Warning, of_launch
from cunho_server import explaining, messages
from cunho_server.servicer import Mutation, Servicer, all_of, one_region
from cunho_server.shape import masked
from cunho_server.work import step
from cunho_storage import facts_of, images, instances, regions
from cunho_storage.database import Conflict


class InstanceService(Servicer, instance_service_pb2_grpc.InstanceServiceServicer):
    """Instances: launching them from images, and their life."""

    async def CreateInstance(self, request: pb.CreateInstanceRequest, context: Any) -> Operation:
        caller = context.caller
        async with self.one_write(
            request,
            context,
            facts_of.LAUNCH,
            image_id=request.image_id,
            account_id=caller.account_id,
            region_id=request.region_id,
            instance_type=request.instance_type,
        ) as (mutation, read):
            image, account, region, instance_type = facts_of.launch(read)
            facts = Facts(
                action="CreateInstance",
                caller=caller,
                account=account,
                image_id=request.image_id,
                image=image,
                etag=request.expected_image_etag,
                region_id=request.region_id,
                region=region,
                zone_id=request.zone_id,
                instance_type_id=request.instance_type,
                instance_type=instance_type,
            )
            actions.CREATE_INSTANCE.enforce(facts)
            return await _launch(mutation, request, facts)

    async def GetInstance(self, request: pb.GetInstanceRequest, context: Any) -> pb.Instance:
        caller = context.caller
        async with self.reading() as connection:
            instance = await instances.get(connection, request.instance_id)
        facts = Facts(action="GetInstance", caller=caller, instance_id=request.instance_id, instance=instance)
        actions.GET_INSTANCE.enforce(facts)
        return messages.instance(_there(instance))

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Any) -> pb.ListInstancesResponse:
        caller, region_id = context.caller, one_region(request.region_id)
        page = self.page(caller, request, filter=shapes.instance_filter, order=shapes.instance_order)
        async with self.reading() as connection:
            found = await instances.page(
                connection,
                account_id=all_of(caller),
                region_id=region_id,
                expression=page.expression,
                keys=page.keys,
                cursor=page.cursor,
                limit=page.size + 1,
            )
            # A page with instances on it proves the region.
            doubtful = None if found else region_id
            region = await regions.get(connection, doubtful) if doubtful else None
        facts = Facts(action="ListInstances", caller=caller, region_id=doubtful, region=region)
        actions.LIST_INSTANCES.enforce(facts, partial=True)
        shown, token = page.filled(found, messages.instance)
        return pb.ListInstancesResponse(instances=shown, next_page_token=token)

    async def UpdateInstance(self, request: pb.UpdateInstanceRequest, context: Any) -> pb.Instance:
        wanted = request.instance
        async with self.mutation(request, context, instances.CHANGING, instance_id=wanted.instance_id) as mutation:
            instance = await instances.get(mutation.connection, wanted.instance_id)
            facts = Facts(
                action="UpdateInstance",
                caller=mutation.caller,
                instance_id=wanted.instance_id,
                instance=instance,
                etag=wanted.etag,
            )
            actions.UPDATE_INSTANCE.enforce(facts)
            named = masked(request)
            changed = {field: getattr(wanted, field) for field in named}
            changed |= {"labels": dict(wanted.labels)} if "labels" in named else {}
            await instances.update(mutation.connection, _there(instance)._replace(**changed))
            updated = await instances.get(mutation.connection, wanted.instance_id)
            return await mutation.answer(messages.instance(_there(updated)))

    async def StartInstance(self, request: pb.StartInstanceRequest, context: Any) -> Operation:
        through, to_state = InstanceState.STARTING, InstanceState.RUNNING
        return await self._act(request, context, actions.START_INSTANCE, "start", through, to_state)

    async def StopInstance(self, request: pb.StopInstanceRequest, context: Any) -> Operation:
        through, to_state = InstanceState.STOPPING, InstanceState.STOPPED
        return await self._act(request, context, actions.STOP_INSTANCE, "stop", through, to_state)

    async def RebootInstance(self, request: pb.RebootInstanceRequest, context: Any) -> Operation:
        through, to_state = InstanceState.REBOOTING, InstanceState.RUNNING
        return await self._act(request, context, actions.REBOOT_INSTANCE, "reboot", through, to_state)

    async def DeleteInstance(self, request: pb.DeleteInstanceRequest, context: Any) -> Operation:
        through, to_state = InstanceState.DELETING, InstanceState.DELETED
        return await self._act(request, context, actions.DELETE_INSTANCE, "destroy", through, to_state)

    async def ReinstallInstance(self, request: pb.ReinstallInstanceRequest, context: Any) -> Operation:
        async with self.mutation(request, context) as mutation:
            connection, caller = mutation.connection, mutation.caller
            seen = await instances.get(connection, request.instance_id)
            image_id = request.image_id or (seen.image_id if seen else "")
            image = await images.locked(connection, image_id, caller.account_id, shared=True)
            instance = await instances.locked(connection, request.instance_id)
            if instance and not request.image_id and instance.image_id != image_id:
                raise Conflict("instance")  # another image is to be locked
            facts = Facts(
                action="ReinstallInstance",
                caller=caller,
                instance_id=request.instance_id,
                instance=instance,
                etag=request.etag,
                image_id=image_id,
                image=image,
                region_id=instance.region_id if instance else "",
                instance_type=await regions.get_type(connection, instance.instance_type) if instance else None,
            )
            actions.REINSTALL_INSTANCE.enforce(facts, partial=True)
            return await _reinstall(mutation, facts)

    async def ListInstanceTypes(
        self, request: pb.ListInstanceTypesRequest, context: Any
    ) -> pb.ListInstanceTypesResponse:
        caller = context.caller
        page = self.page(caller, request, tie_breaker="instance_type")
        async with self.reading() as connection:
            found = await regions.list_types(connection, after=page.after, limit=page.size + 1)
        shown, token = page.filled(found, messages.instance_type)
        return pb.ListInstanceTypesResponse(instance_types=shown, next_page_token=token)

    async def CheckInstanceActions(
        self, request: pb.CheckInstanceActionsRequest, context: Any
    ) -> pb.CheckInstanceActionsResponse:
        caller = context.caller
        async with self.reading() as connection:
            instance = await instances.get(connection, request.instance_id)
            facts = Facts(action="GetInstance", caller=caller, instance_id=request.instance_id, instance=instance)
            actions.GET_INSTANCE.enforce(facts)
            decisions = [
                await explaining.instance_action(connection, request, facts, name)
                for name in request.actions or actions.INSTANCE_ACTIONS
            ]
        return pb.CheckInstanceActionsResponse(decisions=decisions, instance_etag=etag(_there(instance).version))

    async def _act(
        self,
        request: Any,
        context: Any,
        action: Action,
        step_name: str,
        through: InstanceState,
        to_state: InstanceState,
    ) -> Operation:
        """The operation of one step that moves an instance through one state to another."""
        async with self.one_write(request, context, facts_of.MOVE, instance_id=request.instance_id) as (mutation, read):
            facts = Facts(
                action=action.name,
                caller=mutation.caller,
                instance_id=request.instance_id,
                instance=facts_of.move(read),
                etag=request.etag,
            )
            action.enforce(facts)
            return await _move(mutation, facts, step_name, through, {"to_state": to_state})


def _there(instance: Instance | None) -> Instance:
    assert instance is not None, "the rules refuse an instance that is not there"
    return instance


async def _launch(mutation: Mutation, request: pb.CreateInstanceRequest, facts: Facts) -> Operation:
    """The operation that launches instances, which are there at once, PROVISIONING. Source: INS-3, INS-4, SHR-7."""
    image, count = facts.image, request.count or 1
    assert image is not None
    image_kind = kind(facts.caller, image)
    assert image_kind is not None
    instance_ids = [mutation.new_id("ins") for _ in range(count)]
    operation_id = mutation.new_id("op")
    numbered = request.name and count > 1
    launching = instances.launching(
        instance_ids=instance_ids,
        names=[f"{request.name}-{number}" if numbered else request.name for number in range(1, count + 1)],
        description=request.description,
        zone_id=request.zone_id,
        account_id=facts.caller.account_id,
        instance_type=request.instance_type,
        labels=dict(request.labels),
        operation_id=operation_id,
        image_id=image.image_id,
        kind=image_kind,
        trust=trust(image_kind),
    )
    return await mutation.begin(
        operation_id,
        method="CreateInstance",
        region_id=request.region_id,
        target_ids=instance_ids,
        steps=[step("launch", request.region_id, instance_id) for instance_id in instance_ids],
        warnings=of_launch(image, image_kind),
        first=launching,
    )


async def _reinstall(mutation: Mutation, facts: Facts) -> Operation:
    """The operation that replaces the instance's disk by the image's contents, as the image is now. Source: INS-4."""
    assert isinstance(facts.image, Image)
    image_kind = kind(facts.caller, facts.image)
    assert image_kind is not None
    input = {
        "to_state": InstanceState.RUNNING,
        "image_id": facts.image_id,
        "kind": image_kind,
        "trust": trust(image_kind),
        **{field: getattr(facts.image, field) for field in instances.CHANGEABLE},
    }
    warnings = of_launch(facts.image, image_kind)
    return await _move(mutation, facts, "install", InstanceState.REINSTALLING, input, warnings)


async def _move(
    mutation: Mutation,
    facts: Facts,
    step_name: str,
    through: InstanceState,
    input: dict[str, Any],
    warnings: Sequence[Warning] = (),
) -> Operation:
    """The operation of one step on the instance, which goes through a state at once."""
    instance, operation_id = _there(facts.instance), mutation.new_id("op")
    return await mutation.begin(
        operation_id,
        method=facts.action,
        region_id=instance.region_id,
        target_ids=[instance.instance_id],
        steps=[step(step_name, instance.region_id, instance.instance_id)],
        input=input | {"from_state": instance.state},
        warnings=warnings,
        first=instances.moving(instance, through, operation_id),
    )
