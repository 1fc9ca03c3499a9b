"""ImageService. Each method: who calls, the facts, the rules, the write, the answer."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from google.longrunning.operations_pb2 import Operation

from cunho import v1 as pb
from cunho.v1 import image_service_pb2_grpc
from cunho_rules import actions, shapes
from cunho_rules.model import Caller, Facts, Image, ImageState, JudgedImage, Upload, etag
from cunho_rules.refusals import Refusal, Violation, malformed
from cunho_server import explaining, making, messages, shown, status
from cunho_server.servicer import PAGE_SIZE_BYTES, Mutation, Servicer, all_of, one_region
from cunho_server.shape import masked
from cunho_storage import accounts, facts_of, images, instances, regions, shares
from cunho_storage.database import Conflict, Connection
from cunho_storage.shares import Share


class ImageService(Servicer, image_service_pb2_grpc.ImageServiceServicer):
    """Images: choosing, making, copying, sharing, retiring and deleting them."""

    # --- choosing

    async def GetImage(self, request: pb.GetImageRequest, context: Any) -> Any:
        async with self.reading() as connection:
            return await shown.image(connection, context.caller, request.image_id)

    async def BatchGetImages(self, request: pb.BatchGetImagesRequest, context: Any) -> Any:
        caller = context.caller
        async with self.reading() as connection:
            found = await images.get_some(connection, request.image_ids, caller.account_id)
        response = pb.BatchGetImagesResponse(
            results=[_result(caller, image_id, found.get(image_id)) for image_id in request.image_ids]
        )
        answer = response.SerializeToString()
        if len(answer) > PAGE_SIZE_BYTES:
            problem = f"must be fewer: their images are {len(answer)} bytes, and at most {PAGE_SIZE_BYTES} are sent"
            raise malformed([Violation("image_ids", problem)])
        return answer

    async def ListImages(self, request: pb.ListImagesRequest, context: Any) -> Any:
        caller = context.caller
        page = self.page(caller, request, filter=shapes.image_filter, order=shapes.image_order)
        region_id, type_id = one_region(request.region_id), request.usable_with_instance_type or None
        async with self.reading() as connection:
            usable_with = await regions.get_type(connection, type_id) if type_id else None
            asked = images.Asked(
                all_of(caller), region_id, page.expression, page.keys, page.cursor, page.size + 1, usable_with
            )
            found = await shown.page(connection, caller, asked)
            # A page with images on it proves the region.
            doubtful = None if found else region_id
            facts = Facts(
                action="ListImages",
                caller=caller,
                region_id=doubtful,
                region=await regions.get(connection, doubtful) if doubtful else None,
                instance_type_id=type_id,
                instance_type=usable_with,
            )
        actions.LIST_IMAGES.enforce(facts, partial=True)
        entries, token = page.cut(found)
        return shown.list_response(entries, token)

    async def ResolveImage(self, request: pb.ResolveImageRequest, context: Any) -> pb.Image:
        architecture = messages.ARCHITECTURE.name(request.architecture)
        caller = context.caller
        async with self.reading() as connection:
            facts = Facts(
                action="ResolveImage",
                caller=caller,
                region_id=request.region_id,
                region=await regions.get(connection, request.region_id),
                family=request.family,
                image=await images.resolve(connection, request.region_id, request.family, architecture),
            )
        actions.RESOLVE_IMAGE.enforce(facts)
        return messages.image(caller, _there(facts.image))

    # --- making

    async def CreateImage(self, request: pb.CreateImageRequest, context: Any) -> Operation:
        counted = {"owner_account_id": context.caller.account_id, "region_id": request.region_id}
        async with self.mutation(request, context, accounts.CHANGING_PLACE, **counted) as mutation:
            connection, caller = mutation.connection, mutation.caller
            await instances.lock(connection, request.instance_id)
            account, region, place, instance, software = await facts_of.creation(
                connection,
                account_id=caller.account_id,
                region_id=request.region_id,
                name=request.name,
                instance_id=request.instance_id,
            )
            facts = Facts(
                action="CreateImage",
                caller=caller,
                account=account,
                region_id=request.region_id,
                region=region,
                place=place,
                instance_id=request.instance_id,
                instance=instance,
            )
            actions.CREATE_IMAGE.enforce(facts)
            return await making.create(mutation, request, facts, software)

    async def ImportImage(self, request: pb.ImportImageRequest, context: Any) -> Operation:
        async with self.mutation(request, context) as mutation:
            connection, caller = mutation.connection, mutation.caller
            place = await accounts.place(connection, caller.account_id, request.region_id, request.name)
            facts = Facts(
                action="ImportImage",
                caller=caller,
                account=await accounts.get(connection, caller.account_id),
                region_id=request.region_id,
                region=await regions.get(connection, request.region_id),
                place=place,
                upload=Upload(
                    request.uri,
                    messages.FORMAT.name(request.format),
                    request.size_bytes,
                    request.min_disk_bytes,
                    self.service.settings.import_host_list,
                ),
            )
            actions.IMPORT_IMAGE.enforce(facts)
            return await making.import_(mutation, request, facts)

    async def CopyImage(self, request: pb.CopyImageRequest, context: Any) -> Operation:
        async with self.mutation(request, context) as mutation:
            connection, caller = mutation.connection, mutation.caller
            seen = await images.get(connection, request.image_id, caller.account_id)
            wanted = {each.region_id: each.name or (seen.name if seen else "") for each in request.destinations}
            places = {
                region_id: await accounts.place(connection, caller.account_id, region_id, wanted[region_id])
                for region_id in sorted(wanted)
            }
            image = await images.locked(connection, request.image_id, caller.account_id, shared=True)
            if image and seen and image.name != seen.name:
                raise Conflict("image")  # another name is to be free
            account = await accounts.get(connection, caller.account_id)
            destinations = [
                Facts(
                    action="CopyImage",
                    caller=caller,
                    account=account,
                    image_id=request.image_id,
                    image=image,
                    region_id=region_id,
                    region=await regions.get(connection, region_id),
                    place=places[region_id],
                )
                for region_id in wanted
            ]
            return await making.copy(mutation, request, destinations)

    async def PublishImage(self, request: pb.PublishImageRequest, context: Any) -> pb.Image:
        async with self.mutation(request, context) as mutation:
            connection, caller = mutation.connection, mutation.caller
            facts = Facts(
                action="PublishImage",
                caller=caller,
                region_id=request.region_id,
                region=await regions.get(connection, request.region_id),
                place=await facts_of.public_place(connection, request.region_id, request.name),
            )
            actions.PUBLISH_IMAGE.enforce(facts)
            image_id = mutation.new_id("img")
            await images.add(connection, making.public(image_id, request))
            return await mutation.answer(await _read_back(mutation, image_id))

    # --- changing

    async def UpdateImage(self, request: pb.UpdateImageRequest, context: Any) -> pb.Image:
        wanted = request.image
        async with self.mutation(request, context, images.CHANGING, image_id=wanted.image_id) as mutation:
            connection, caller = mutation.connection, mutation.caller
            image = await images.get(connection, wanted.image_id, caller.account_id)
            named = masked(request)
            name = wanted.name if "name" in named else ""
            facts = Facts(
                action="UpdateImage",
                caller=caller,
                image_id=wanted.image_id,
                image=image,
                etag=wanted.etag,
                place=await facts_of.place_of_name(connection, image, name) if image else None,
            )
            actions.UPDATE_IMAGE.enforce(facts, partial=True)
            changed = {field: getattr(wanted, field) for field in named}
            changed |= {"labels": dict(wanted.labels)} if "labels" in named else {}
            await images.update(connection, _there(image)._replace(**changed))
            return await mutation.answer(await _read_back(mutation, wanted.image_id))

    async def DeprecateImage(self, request: pb.DeprecateImageRequest, context: Any) -> pb.Image:
        async with self.mutation(request, context, images.CHANGING, image_id=request.image_id) as mutation:
            connection, caller = mutation.connection, mutation.caller
            wanted = request.deprecation
            facts = Facts(
                action="DeprecateImage",
                caller=caller,
                image_id=request.image_id,
                image=await images.get(connection, request.image_id, caller.account_id),
                etag=request.etag,
                replacement_image_id=wanted.replacement_image_id,
                replacement=await images.get(connection, wanted.replacement_image_id, caller.account_id),
            )
            actions.DEPRECATE_IMAGE.enforce(facts)
            state = messages.DEPRECATION_STATE.name(wanted.state)
            await images.deprecate(connection, request.image_id, state, wanted.replacement_image_id, wanted.message)
            return await mutation.answer(await _read_back(mutation, request.image_id))

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: Any) -> pb.Image:
        async with self.mutation(request, context) as mutation:
            connection, caller = mutation.connection, mutation.caller
            seen = await images.get(connection, request.image_id, caller.account_id)
            await _lock_place_of(connection, seen)
            await images.lock(connection, request.image_id)
            image, _, _, copies, shared_with = await facts_of.image(connection, request.image_id, caller.account_id)
            facts = Facts(
                action="DeleteImage",
                caller=caller,
                image_id=request.image_id,
                image=image,
                etag=request.etag,
                force=request.force,
                copies=copies,
                shared_with=shared_with,
            )
            actions.DELETE_IMAGE.enforce(facts)
            deleted = await _delete(connection, _there(facts.image), facts.shared_with)
            return await mutation.answer(messages.image(caller, deleted))

    # --- sharing

    async def ShareImage(self, request: pb.ShareImageRequest, context: Any) -> pb.ShareImageResponse:
        named = _share_arguments(request, context.caller)
        async with self.one_write(request, context, facts_of.SHARE, **named) as (mutation, read):
            facts = _share_facts(mutation, "ShareImage", request, read)
            actions.SHARE_IMAGE.enforce(facts)
            image = await _shared(mutation, facts, removed=0)
            answer = pb.ShareImageResponse(shares=_shares(mutation, facts), image=image)
            adding = shares.adding(request.image_id, _added_ids(facts), mutation.time)
            return await mutation.answer(answer, adding)

    async def UnshareImage(self, request: pb.UnshareImageRequest, context: Any) -> pb.UnshareImageResponse:
        async with self.mutation(request, context, images.CHANGING, image_id=request.image_id) as mutation:
            connection, caller = mutation.connection, mutation.caller
            image = await images.get(connection, request.image_id, caller.account_id)
            facts = Facts(
                action="UnshareImage", caller=caller, image_id=request.image_id, image=image, etag=request.etag
            )
            actions.UNSHARE_IMAGE.enforce(facts)
            answer = pb.UnshareImageResponse(
                account_ids=await shares.remove(connection, request.image_id, request.account_ids),
                image=await _read_back(mutation, request.image_id),
            )
            return await mutation.answer(answer)

    async def SetImageShares(self, request: pb.SetImageSharesRequest, context: Any) -> pb.SetImageSharesResponse:
        async with self.mutation(request, context, images.CHANGING, image_id=request.image_id) as mutation:
            named = _share_arguments(request, mutation.caller)
            read = await facts_of.sharing(mutation.connection, **named)
            facts = _share_facts(mutation, "SetImageShares", request, read)
            actions.SET_IMAGE_SHARES.enforce(facts)
            others = {*await shares.account_ids(mutation.connection, request.image_id)} - {*request.account_ids}
            await shares.remove(mutation.connection, request.image_id, sorted(others))
            image = await _shared(mutation, facts, removed=len(others))
            answer = pb.SetImageSharesResponse(shares=_shares(mutation, facts), image=image)
            adding = shares.adding(request.image_id, _added_ids(facts), mutation.time)
            return await mutation.answer(answer, adding)

    async def ListImageShares(self, request: pb.ListImageSharesRequest, context: Any) -> pb.ListImageSharesResponse:
        caller = context.caller
        page = self.page(caller, request, tie_breaker="account_id")
        async with self.reading() as connection:
            image, found = await facts_of.shares_of(
                connection, request.image_id, caller.account_id, after=page.after, limit=page.size + 1
            )
        facts = Facts(action="ListImageShares", caller=caller, image_id=request.image_id, image=image)
        actions.LIST_IMAGE_SHARES.enforce(facts)
        answered, token = page.filled(found, partial(_share, request.image_id))
        return pb.ListImageSharesResponse(shares=answered, next_page_token=token)

    async def LeaveImageShare(self, request: pb.LeaveImageShareRequest, context: Any) -> pb.LeaveImageShareResponse:
        async with self.mutation(request, context, images.CHANGING, image_id=request.image_id) as mutation:
            connection, caller = mutation.connection, mutation.caller
            image = await images.get(connection, request.image_id, caller.account_id)
            facts = Facts(action="LeaveImageShare", caller=caller, image_id=request.image_id, image=image)
            actions.LEAVE_IMAGE_SHARE.enforce(facts)
            await shares.remove(connection, request.image_id, [caller.account_id])
            return await mutation.answer(pb.LeaveImageShareResponse())

    # --- understanding

    async def CheckImageActions(
        self, request: pb.CheckImageActionsRequest, context: Any
    ) -> pb.CheckImageActionsResponse:
        caller = context.caller
        async with self.reading() as connection:
            image, account, region, copies, shared_with = await facts_of.image(
                connection, request.image_id, caller.account_id
            )
            facts = Facts(action="GetImage", caller=caller, image_id=request.image_id, image=image)
            actions.GET_IMAGE.enforce(facts)
            facts = facts._replace(account=account, copies=copies, shared_with=shared_with)
            decisions = [
                await explaining.image_action(connection, request, facts, region, name)
                for name in request.actions or actions.IMAGE_ACTIONS
            ]
        return pb.CheckImageActionsResponse(decisions=decisions, image_etag=etag(_there(image).version))


def _there(image: Image | JudgedImage | None) -> Image:
    assert isinstance(image, Image), "the rules refuse an image that is not there"
    return image


def _shown(caller: Caller, image_id: str, image: Image | None) -> pb.Image:
    facts = Facts(action="GetImage", caller=caller, image_id=image_id, image=image)
    actions.GET_IMAGE.enforce(facts)
    return messages.image(caller, _there(image))


def _result(caller: Caller, image_id: str, image: Image | None) -> pb.BatchGetImagesResponse.Result:
    try:
        return pb.BatchGetImagesResponse.Result(image_id=image_id, image=_shown(caller, image_id, image))
    except Refusal as refusal:
        return pb.BatchGetImagesResponse.Result(image_id=image_id, error=status.status(refusal))


async def _read_back(mutation: Mutation, image_id: str) -> pb.Image:
    """The image after the change, as the caller sees it."""
    image = await images.get(mutation.connection, image_id, mutation.caller.account_id)
    message = messages.image(mutation.caller, _there(image))
    if mutation.rehearsal and image_id in mutation.new_ids:
        message.image_id = ""
    return message


async def _lock_place_of(connection: Connection, image: Image | None) -> None:
    """Locks the quota that the image counts in, which comes before the image itself."""
    if image is not None and image.owner_account_id is not None:
        await accounts.lock_place(connection, image.owner_account_id, image.region_id)


async def _delete(connection: Connection, image: Image, account_ids: Sequence[str]) -> Image:
    """The image as it is once deleted, with its shares gone and its place free."""
    await shares.remove(connection, image.image_id, account_ids)
    delete_time = await images.delete(connection, image.image_id)
    if image.owner_account_id is not None and image.state == ImageState.AVAILABLE:
        await accounts.free_place(connection, image.owner_account_id, image.region_id)
    return image._replace(
        state=ImageState.DELETED,
        share_count=0,
        version=image.version + 1,
        update_time=delete_time,
        delete_time=delete_time,
    )


def _share_arguments(request: pb.ShareImageRequest | pb.SetImageSharesRequest, caller: Caller) -> dict[str, Any]:
    return {"image_id": request.image_id, "account_id": caller.account_id, "account_ids": request.account_ids}


def _share_facts(
    mutation: Mutation, action: str, request: pb.ShareImageRequest | pb.SetImageSharesRequest, read: Sequence[Any]
) -> Facts:
    """What the rules want to know before an image is shared."""
    image, account, recipients = facts_of.share(read, request.account_ids)
    return Facts(
        action=action,
        caller=mutation.caller,
        account=account,
        image_id=request.image_id,
        image=image,
        etag=request.etag,
        recipients=recipients,
    )


def _added_ids(facts: Facts) -> list[str]:
    """The accounts that the image is to be shared with and is not yet, sorted."""
    return sorted(recipient.account_id for recipient in facts.added)


async def _shared(mutation: Mutation, facts: Facts, *, removed: int) -> pb.Image:
    """The image with its recipients and without some others, as its owner sees it."""
    image = facts.image
    assert isinstance(image, JudgedImage)
    share_count = image.share_count - removed + len(facts.added)
    return await shown.judged(mutation.connection, mutation.caller, image._replace(share_count=share_count))


def _shares(mutation: Mutation, facts: Facts) -> list[pb.ImageShare]:
    """The image's shares with the recipients, by account."""
    return [
        _share(facts.image_id, Share(recipient.account_id, recipient.share_time or mutation.time))
        for recipient in sorted(facts.recipients or ())
    ]


def _share(image_id: str, share: Share) -> pb.ImageShare:
    return pb.ImageShare(
        image_id=image_id, account_id=share.account_id, create_time=messages.timestamp(share.create_time)
    )
