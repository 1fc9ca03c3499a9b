"""The checker: it finds what is wrong in a history, and nothing in a right one. Every history here is made by hand."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from tests.robustness import linearizable
from tests.robustness.checker import check
from tests.robustness.history import AMBIGUOUS, OPERATOR, Call, History
from tests.robustness.linearizable import Step, Undecided, stuck
from tests.robustness.objects import Account, Image, Instance, Place
from tests.robustness.stored import Stored
from tests.world import GUANGZHOU, SHANGHAI

ANN, BOB, EVE = "ann", "bob", "eve"


class Tale:
    """A history and what is stored in the end, told call by call; each call begins and ends at the times given."""

    def __init__(self) -> None:
        self.history = History((ANN, BOB), (GUANGZHOU,), tuple(f"crowd-{number}" for number in range(60)), (EVE,))
        self.images: dict[str, Image] = {}
        self.instances: dict[str, Instance] = {}
        self.limits: dict[str, int] = {}
        self.counted: dict[str, int] = {}
        self.accounts = {each: Account(frozenset([GUANGZHOU])) for each in (ANN, BOB, EVE)}
        self.operations: dict[str, Any] = {}
        self.requests: dict[tuple[str, str, str], bytes] = {}

    def call(
        self,
        begin: int,
        end: int,
        caller: str,
        method: str,
        outcome: Mapping[str, Any] | str,
        *,
        request_id: str = "",
        told: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> None:
        """A call, with its answer or the reason of its refusal; `told` is the metadata of that."""
        call = Call(len(self.history.calls), caller, method, arguments, request_id, begin, end)
        if isinstance(outcome, str):
            call.reason, call.metadata = outcome, told or {}
            call.end_ns = None if outcome in AMBIGUOUS else end
        else:
            call.answer = outcome
        self.history.calls.append(call)

    def made(self, image_id: str, begin: int = 0, *, name: str = "web", owner: str = ANN, **call: Any) -> None:
        """An image of an owner's is imported, from `begin` on for 4."""
        operation, named = f"operations/{image_id}", {"region_id": GUANGZHOU, "name": name}
        answer = {"operation": operation, "target_ids": (image_id,), "warnings": ()}
        self.call(begin, begin + 1, owner, "ImportImage", answer, **{**named, **call})
        ended = {"operation": operation, "done": True, "error": "", "images": (seen(image_id, name, owner),)}
        self.call(begin + 2, begin + 3, owner, "WaitOperation", {**ended, "instances": ()}, name=operation)
        self.images[image_id] = Image(image_id, owner, GUANGZHOU, name, "AVAILABLE", 2)

    def copied_and_deleted(self, *, looked: int) -> None:
        """The image is copied, and meanwhile deleted by 6; `looked` at by its owner, the copy is still being made."""
        self.made("img-1")
        copy, operation = Image("img-2", ANN, SHANGHAI, "copy", "AVAILABLE", 2), "operations/img-2"
        answer = {"operation": operation, "target_ids": ("img-2",), "warnings": ()}
        self.call(4, 6, ANN, "CopyImage", answer, image_id="img-1", region_id=SHANGHAI, name="copy")
        self.deleted(4, 6)
        looks = {"operation": operation, "error": "", "instances": ()}
        self.call(looked, looked + 1, ANN, "GetOperation", {**looks, "done": False, "images": ()}, name=operation)
        images = ({**seen("img-2", "copy", ANN), "region_id": SHANGHAI},)
        self.call(10, 11, ANN, "WaitOperation", {**looks, "done": True, "images": images}, name=operation)
        self.images["img-2"] = copy

    def changed(self, image_id: str, **fields: Any) -> None:
        """What is stored of the image in the end."""
        self.images[image_id] = self.images[image_id]._replace(**fields)

    def shared(self, begin: int, *accounts: str, count: int | None = None, image_id: str = "img-1") -> None:
        """An image of Ann's is shared, from `begin` on for 1."""
        self.changed(image_id, shares=self.images[image_id].shares | {*accounts})
        count = len(self.images[image_id].shares) if count is None else count
        answer = {"image": seen(image_id, count=count), "shared_with": accounts}
        self.call(begin, begin + 1, ANN, "ShareImage", answer, image_id=image_id, account_ids=accounts, etag=None)

    def unshared(self, begin: int, end: int, *accounts: str, lost: tuple[str, ...] | None = None) -> None:
        """An image is taken back."""
        self.changed("img-1", shares=self.images["img-1"].shares - {*accounts})
        answer = {"image": seen(count=len(self.images["img-1"].shares)), "lost": accounts if lost is None else lost}
        self.call(begin, end, ANN, "UnshareImage", answer, image_id="img-1", account_ids=accounts, etag=None)

    def launched(self, begin: int, end: int, caller: str, *, warnings: tuple[str, ...] = ()) -> None:
        """An instance is launched; that ends at once."""
        answer = {"operation": "operations/ins-1", "target_ids": ("ins-1",), "warnings": warnings}
        self.call(begin, end, caller, "CreateInstance", answer, region_id=GUANGZHOU, image_id="img-1", etag=None)
        ended = {"operation": "operations/ins-1", "done": True, "error": "", "images": (), "instances": ()}
        self.operations["operations/ins-1"] = ended
        self.instances["ins-1"] = Instance("ins-1", caller, "", "RUNNING", 2)

    def deleted(self, begin: int, end: int, image_id: str = "img-1", version: int = 3) -> None:
        """An image of Ann's is deleted."""
        answer = {"image": {"state": "DELETED", "version": version}}
        self.call(begin, end, ANN, "DeleteImage", answer, image_id=image_id, force=True, etag=None)
        self.changed(image_id, state="DELETED", version=version, shares=frozenset())

    def violations(self) -> list[str]:
        """The subjects of what the checker finds."""
        places, counted = {}, {}
        for account_id in (ANN, BOB, EVE):
            if GUANGZHOU not in self.accounts[account_id].region_ids:
                continue
            here = [each for each in self.images.values() if each.region_id == GUANGZHOU]
            own = [each for each in here if each.owner == account_id and each.state != "DELETED"]
            held = frozenset((each.image_id, each.name, each.state != "FAILED") for each in own)
            places[account_id, GUANGZHOU] = Place(held, self.limits.get(account_id, 10))
            counted[account_id, GUANGZHOU] = self.counted.get(account_id, len(held))
        stored = Stored(self.images, places, self.accounts, counted, self.instances, self.operations, self.requests)
        return [violation.subject for violation in check(self.history, stored)]


def seen(
    image_id: str = "img-1",
    name: str = "web",
    owner: str = ANN,
    *,
    kind: str = "CUSTOM",
    version: int = 2,
    count: int = 0,
    state: str = "AVAILABLE",
) -> dict[str, Any]:
    """What is read of an image."""
    return {
        "image_id": image_id,
        "name": name,
        "region_id": GUANGZHOU,
        "owner_account_id": owner,
        "kind": kind,
        "state": state,
        "deprecation.state": "CURRENT",
        "trust": {"CUSTOM": "OWN", "SHARED": "UNVERIFIED"}[kind],
        "sharing.account_count": count if kind == "CUSTOM" else 0,
        "sharing.account_limit": 50 if kind == "CUSTOM" else 0,
        "version": version,
    }


IMAGE, PLACE, MEMBERSHIP = "image img-1", f"place ann {GUANGZHOU}", f"membership bob {GUANGZHOU}"
Tell = Callable[[Tale], None]

WRONG: list[Any] = []
RIGHT: list[Any] = []


def wrong(*subjects: str) -> Callable[[Tell], Tell]:
    """Makes a function a tale in which the checker has to find something wrong with exactly these."""

    def make(tell: Tell) -> Tell:
        WRONG.append(pytest.param(tell, {*subjects}, id=tell.__name__))
        return tell

    return make


def right(tell: Tell) -> Tell:
    """Makes a function a tale in which everything is right."""
    RIGHT.append(pytest.param(tell, id=tell.__name__))
    return tell


# --- quotas and names


@wrong(PLACE)
def eleven_images(tale: Tale) -> None:
    for number in range(11):
        tale.made(f"img-{number}", 10 * number, name=f"web {number}")


@right
def ten_images(tale: Tale) -> None:
    for number in range(10):
        tale.made(f"img-{number}", 10 * number, name=f"web {number}")
    tale.call(100, 101, ANN, "GetQuota of images", {"limit": 10, "usage": 10}, region_id=GUANGZHOU)
    full: dict[str, Any] = {"limit": "10", "usage": "10", "account_id": ANN, "region_id": GUANGZHOU}
    new: dict[str, Any] = {"region_id": GUANGZHOU, "name": "new"}
    tale.call(102, 103, ANN, "ImportImage", "CUSTOM_IMAGE_QUOTA_EXCEEDED", told=full, **new)


@wrong(PLACE)
def a_quota_that_is_not_spent(tale: Tale) -> None:
    full: dict[str, Any] = {"limit": "10", "usage": "10", "account_id": ANN, "region_id": GUANGZHOU}
    new: dict[str, Any] = {"region_id": GUANGZHOU, "name": "new"}
    tale.call(0, 1, ANN, "ImportImage", "CUSTOM_IMAGE_QUOTA_EXCEEDED", told=full, **new)


@wrong(PLACE)
def a_usage_of_what_is_gone(tale: Tale) -> None:
    tale.made("img-1")
    tale.deleted(10, 11)
    tale.call(12, 13, ANN, "GetQuota of images", {"limit": 10, "usage": 1}, region_id=GUANGZHOU)


@wrong(PLACE)
def a_counter_that_is_not_what_there_is(tale: Tale) -> None:
    tale.made("img-1")
    tale.counted[ANN] = 2


@wrong(PLACE)
def a_limit_below_usage(tale: Tale) -> None:
    tale.made("img-1")
    limits: dict[str, Any] = {"account_id": ANN, "region_id": GUANGZHOU, "limit": 0}
    tale.call(10, 11, OPERATOR, "SetQuotaLimit of images", {"limit": 0, "usage": 1}, **limits)
    tale.limits[ANN] = 0


@wrong(PLACE)
def a_limit_that_was_set_and_is_told_wrongly(tale: Tale) -> None:
    limits: dict[str, Any] = {"account_id": ANN, "region_id": GUANGZHOU, "limit": 5}
    tale.call(10, 11, OPERATOR, "SetQuotaLimit of images", {"limit": 5, "usage": 1}, **limits)
    tale.limits[ANN] = 5


@wrong(IMAGE)
def a_limit_of_shares_that_was_set_and_is_told_wrongly(tale: Tale) -> None:
    tale.made("img-1")
    tale.call(10, 11, OPERATOR, "SetQuotaLimit of shares", {"limit": 5, "usage": 1}, image_id="img-1", limit=5)
    tale.changed("img-1", shares_limit=5)


@wrong(PLACE)
def a_name_twice(tale: Tale) -> None:
    tale.made("img-1", name="web")
    tale.made("img-2", 10, name="web")


@right
def a_name_again(tale: Tale) -> None:
    tale.made("img-1")
    tale.deleted(10, 11)
    tale.made("img-2", 20)


@wrong(PLACE)
def a_name_that_is_free_is_refused(tale: Tale) -> None:
    taken: dict[str, Any] = {"name": "web", "region_id": GUANGZHOU}
    tale.call(0, 1, ANN, "ImportImage", "IMAGE_NAME_TAKEN", told=taken, **taken)


# --- sharing


@wrong(IMAGE)
def fifty_one_shares(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, *(f"crowd-{number}" for number in range(50)))
    tale.shared(20, "crowd-50")


@wrong(IMAGE)
def a_share_that_is_not_counted(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.shared(20, "crowd-1", count=1)


@wrong(IMAGE)
def a_share_limit_that_is_not_reached(tale: Tale) -> None:
    tale.made("img-1")
    full: dict[str, Any] = {"image_id": "img-1", "limit": "50", "usage": "50", "requested": "1"}
    asked: dict[str, Any] = {"image_id": "img-1", "account_ids": (BOB,), "etag": None}
    tale.call(10, 11, ANN, "ShareImage", "SHARE_QUOTA_EXCEEDED", told=full, **asked)


@wrong(IMAGE)
def an_image_seen_after_it_was_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.unshared(20, 21, BOB)
    tale.call(30, 31, BOB, "GetImage", {"image": seen(kind="SHARED")}, image_id="img-1")


@wrong(IMAGE)
def an_image_seen_before_it_was_shared(tale: Tale) -> None:
    tale.made("img-1")
    tale.call(8, 9, BOB, "GetImage", {"image": seen(kind="SHARED")}, image_id="img-1")
    tale.shared(10, BOB)


@wrong(IMAGE)
def a_shared_image_that_is_not_found(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.call(20, 21, BOB, "GetImage", "IMAGE_NOT_FOUND", told={"image_id": "img-1"}, image_id="img-1")


@right
def an_image_seen_while_it_is_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.call(20, 40, BOB, "GetImage", {"image": seen(kind="SHARED")}, image_id="img-1")
    tale.call(20, 40, BOB, "GetImage", "IMAGE_NOT_FOUND", told={"image_id": "img-1"}, image_id="img-1")
    tale.unshared(30, 35, BOB)


@wrong(IMAGE)
def an_image_seen_again_while_it_is_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.call(22, 24, BOB, "GetImage", "IMAGE_NOT_FOUND", told={"image_id": "img-1"}, image_id="img-1")
    tale.call(25, 27, BOB, "GetImage", {"image": seen(kind="SHARED")}, image_id="img-1")
    tale.unshared(20, 30, BOB)


@wrong(MEMBERSHIP, IMAGE)
def a_list_with_what_was_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.unshared(20, 21, BOB)
    tale.call(30, 31, BOB, "ListImages", {"images": (seen(kind="SHARED"),)}, region_id=GUANGZHOU)


@wrong(MEMBERSHIP)
def a_list_without_what_is_shared(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.call(20, 21, BOB, "ListImages", {"images": ()}, region_id=GUANGZHOU)


@wrong(MEMBERSHIP)
def a_list_of_two_moments(tale: Tale) -> None:
    tale.made("img-1")
    tale.made("img-2", 10, name="db")
    tale.shared(20, BOB)
    both = (seen(kind="SHARED"), seen("img-2", "db", kind="SHARED"))
    tale.call(30, 60, BOB, "ListImages", {"images": both}, region_id=GUANGZHOU)
    tale.unshared(40, 41, BOB)
    tale.changed("img-2", shares=frozenset([BOB]))
    answer = {"image": seen("img-2", "db", count=1), "shared_with": (BOB,)}
    tale.call(50, 51, ANN, "ShareImage", answer, image_id="img-2", account_ids=(BOB,), etag=None)


@wrong(PLACE)
def an_own_list_of_two_moments(tale: Tale) -> None:
    tale.made("img-1")
    tale.call(10, 60, ANN, "ListImages", {"images": (seen(), seen("img-2", "db"))}, region_id=GUANGZHOU)
    tale.deleted(20, 21)
    tale.made("img-2", 30, name="db")


@wrong(f"membership {EVE} {GUANGZHOU}")
def a_region_left_with_something_in_it(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, EVE)
    left = {"account": {"account_id": EVE, "region_ids": (), "version": 2}}
    tale.call(20, 21, OPERATOR, "UpdateAccount", left, account_id=EVE, region_ids=(), etag=None)
    tale.accounts[EVE] = Account(frozenset(), 2)


@wrong(f"account {EVE}")
def two_updates_of_an_account_with_one_etag(tale: Tale) -> None:
    for number in range(2):
        updated = {"account": {"account_id": EVE, "region_ids": (GUANGZHOU,), "version": 2 + number}}
        asked: dict[str, Any] = {"account_id": EVE, "region_ids": (GUANGZHOU,), "etag": 1}
        tale.call(10, 20, OPERATOR, "UpdateAccount", updated, **asked)
    tale.accounts[EVE] = Account(frozenset([GUANGZHOU]), 3)


# --- launches and deletions


@wrong(IMAGE)
def a_launch_after_the_image_was_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.unshared(20, 21, BOB)
    tale.launched(30, 31, BOB, warnings=("UNVERIFIED_SHARED_IMAGE",))


@wrong(IMAGE)
def a_launch_that_came_after_the_image_was_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.launched(20, 50, BOB, warnings=("UNVERIFIED_SHARED_IMAGE",))
    tale.unshared(25, 30, BOB)
    tale.call(35, 40, BOB, "ListInstances", {"instances": ()}, region_id=GUANGZHOU)


@right
def a_launch_that_came_before_the_image_was_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.call(15, 22, BOB, "ListInstances", {"instances": ()}, region_id=GUANGZHOU)
    tale.launched(20, 50, BOB, warnings=("UNVERIFIED_SHARED_IMAGE",))
    tale.unshared(23, 30, BOB)


@right
def a_launch_that_is_not_listed_in_another_region(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.launched(20, 50, BOB, warnings=("UNVERIFIED_SHARED_IMAGE",))
    tale.unshared(25, 30, BOB)
    tale.call(35, 40, BOB, "ListInstances", {"instances": ()}, region_id=SHANGHAI)


@right
def a_launch_while_the_image_is_taken_back(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.unshared(20, 30, BOB)
    tale.launched(25, 35, BOB, warnings=("UNVERIFIED_SHARED_IMAGE",))


@wrong(IMAGE)
def a_launch_of_a_shared_image_without_its_warning(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.launched(20, 21, BOB)


@wrong(IMAGE)
def a_launch_of_a_deleted_image(tale: Tale) -> None:
    tale.made("img-1")
    tale.deleted(10, 11)
    tale.launched(20, 21, ANN)


@wrong(IMAGE)
def a_launch_of_an_image_that_is_being_made(tale: Tale) -> None:
    tale.launched(1, 2, ANN)
    tale.made("img-1", -10)
    tale.history.calls[-1].begin_ns, tale.history.calls[-1].end_ns = 10, 11
    tale.call(3, 4, ANN, "GetImage", {"image": seen(state="IMPORTING", version=1)}, image_id="img-1")


@wrong(IMAGE, PLACE)
def an_image_deleted_twice(tale: Tale) -> None:
    tale.made("img-1")
    tale.deleted(10, 20)
    tale.deleted(10, 20)


@wrong("instance ins-1")
def an_instance_that_two_calls_move_at_once(tale: Tale) -> None:
    tale.made("img-1")
    tale.launched(10, 11, ANN)
    for number in range(2):
        answer = {"operation": f"operations/{number}", "target_ids": ("ins-1",), "warnings": ()}
        tale.call(20, 30, ANN, "StopInstance", answer, instance_id="ins-1")
        ended = {"operation": f"operations/{number}", "done": True, "error": "", "images": (), "instances": ()}
        tale.operations[f"operations/{number}"] = ended
    tale.instances["ins-1"] = Instance("ins-1", ANN, "", "STOPPED", 6)


# --- versions and time


def updated(tale: Tale, begin: int, end: int, name: str, version: int, etag: int | None = None) -> None:
    answer = {"image": seen(name=name, version=version)}
    tale.call(begin, end, ANN, "UpdateImage", answer, image_id="img-1", name=name, etag=etag)
    tale.changed("img-1", name=name, version=version)


@wrong(IMAGE)
def two_updates_with_one_etag(tale: Tale) -> None:
    tale.made("img-1")
    updated(tale, 10, 20, "db", 3, etag=2)
    updated(tale, 10, 20, "cache", 4, etag=2)


@wrong(IMAGE)
def an_update_that_is_lost(tale: Tale) -> None:
    tale.made("img-1")
    updated(tale, 10, 20, "db", 3)
    updated(tale, 10, 20, "cache", 3)


@right
def two_updates_at_once(tale: Tale) -> None:
    tale.made("img-1")
    updated(tale, 10, 20, "cache", 4)
    updated(tale, 10, 20, "db", 3)
    tale.changed("img-1", name="cache", version=4)


@wrong(IMAGE)
def a_read_that_goes_back_in_time(tale: Tale) -> None:
    tale.made("img-1")
    updated(tale, 10, 11, "db", 3)
    tale.call(20, 21, ANN, "GetImage", {"image": seen()}, image_id="img-1")


# --- requests


@wrong("request r")
def a_request_answered_twice_differently(tale: Tale) -> None:
    tale.made("img-1", request_id="r")
    tale.made("img-2", 0, request_id="r")
    del tale.images["img-2"]
    tale.history.calls.pop()


@right
def a_request_answered_twice(tale: Tale) -> None:
    tale.made("img-1", request_id="r")
    tale.made("img-1", 10, request_id="r")
    new: dict[str, Any] = {"region_id": GUANGZHOU, "name": "other"}
    tale.call(20, 21, ANN, "ImportImage", "REQUEST_ID_REUSED", request_id="r", **new)


@wrong("request r")
def a_request_answered_as_another(tale: Tale) -> None:
    tale.made("img-1", request_id="r")
    answer = tale.history.calls[0].answer
    assert answer is not None
    tale.call(10, 11, ANN, "ImportImage", answer, request_id="r", region_id=GUANGZHOU, name="db")


@wrong("image img-1", f"place {BOB} {GUANGZHOU}")
def a_request_answered_as_that_of_another_account(tale: Tale) -> None:
    tale.made("img-1", request_id="r")
    answer = tale.history.calls[0].answer
    assert answer is not None
    tale.call(1, 2, BOB, "ImportImage", answer, request_id="r", region_id=GUANGZHOU, name="web")


@wrong("request r")
def a_new_request_refused_as_repeated(tale: Tale) -> None:
    tale.call(0, 1, ANN, "ImportImage", "REQUEST_ID_REUSED", request_id="r", region_id=GUANGZHOU, name="web")


# --- unknown outcomes


SHARE: dict[str, Any] = {"image_id": "img-1", "account_ids": (BOB,), "etag": None, "request_id": "r"}


@right
def an_unknown_call_that_never_was(tale: Tale) -> None:
    tale.made("img-1")
    tale.call(10, 11, ANN, "ShareImage", "", **SHARE)
    tale.call(20, 21, BOB, "ListImages", {"images": ()}, region_id=GUANGZHOU)


@right
def an_unknown_call_that_came_late(tale: Tale) -> None:
    tale.made("img-1")
    tale.call(10, 11, ANN, "LeaveImageShare", "", image_id="img-1", request_id="l")
    tale.shared(12, BOB)
    tale.call(14, 15, BOB, "LeaveImageShare", "DATABASE_UNAVAILABLE", image_id="img-1", request_id="r")
    tale.call(20, 21, BOB, "GetImage", {"image": seen(kind="SHARED")}, image_id="img-1")
    tale.call(22, 23, BOB, "GetImage", "IMAGE_NOT_FOUND", told={"image_id": "img-1"}, image_id="img-1")
    tale.requests[BOB, "LeaveImageShare", "r"] = b""
    tale.changed("img-1", shares=frozenset())


@wrong(IMAGE, MEMBERSHIP)
def an_unknown_call_that_came_before_it_began(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.call(20, 21, BOB, "GetImage", "IMAGE_NOT_FOUND", told={"image_id": "img-1"}, image_id="img-1")
    tale.call(22, 23, BOB, "ListImages", {"images": ()}, region_id=GUANGZHOU)
    tale.call(30, 31, BOB, "LeaveImageShare", "", image_id="img-1", request_id="r")
    tale.requests[BOB, "LeaveImageShare", "r"] = b""
    tale.changed("img-1", shares=frozenset())


@wrong(IMAGE)
def an_unknown_call_with_an_effect_that_is_not_stored(tale: Tale) -> None:
    tale.made("img-1")
    tale.call(10, 11, ANN, "ShareImage", "", **SHARE)
    tale.call(20, 21, BOB, "GetImage", {"image": seen(kind="SHARED")}, image_id="img-1")


# --- the end


@wrong(IMAGE, PLACE)
def an_image_that_is_lost(tale: Tale) -> None:
    tale.made("img-1")
    del tale.images["img-1"]


@wrong("image img-2", PLACE)
def an_image_that_nobody_made(tale: Tale) -> None:
    tale.made("img-1")
    tale.images["img-2"] = Image("img-2", ANN, GUANGZHOU, "db", "AVAILABLE", 2)


@wrong("image img-1")
def a_deletion_while_a_copy_is_seen_to_be_made(tale: Tale) -> None:
    tale.copied_and_deleted(looked=8)


@right
def a_copy_that_may_have_ended_before_a_deletion(tale: Tale) -> None:
    tale.copied_and_deleted(looked=5)


@right
def a_launch_whose_image_was_read_before_its_end(tale: Tale) -> None:
    tale.made("img-1")
    tale.shared(5, BOB)
    tale.launched(10, 11, BOB, warnings=("UNVERIFIED_SHARED_IMAGE",))
    tale.unshared(12, 13, BOB)
    name = "operations/ins-1"
    instance = {"instance_id": "ins-1", "account_id": BOB, "image_id": "img-1", "name": "", "state": "RUNNING"}
    told = {"operation": "", "version": 2, "launch_image.still_available": True}
    ended = tale.operations[name] | {"instances": (instance | told,)}
    tale.operations[name] = ended
    tale.call(14, 15, BOB, "GetOperation", ended | {"done": False, "instances": ()}, name=name)
    tale.call(16, 17, BOB, "WaitOperation", ended, name=name)


@wrong("operations/img-1")
def an_operation_that_never_ends(tale: Tale) -> None:
    tale.made("img-1")
    tale.history.calls.pop()
    tale.changed("img-1", state="IMPORTING", version=1)


@wrong("operations/img-1")
def an_operation_that_ends_twice(tale: Tale) -> None:
    tale.made("img-1")
    ended = tale.history.calls[-1].answer or {}
    tale.call(10, 11, ANN, "WaitOperation", {**ended, "error": "OPERATION_FAILED"}, name="operations/img-1")


@wrong("the service")
def a_bug(tale: Tale) -> None:
    tale.call(0, 1, ANN, "GetQuota of images", "INTERNAL_ERROR", region_id=GUANGZHOU)


@wrong("the service")
def a_refusal_that_no_rule_knows(tale: Tale) -> None:
    tale.call(0, 1, ANN, "ListImages", "ACCOUNT_SUSPENDED", region_id=GUANGZHOU)


@pytest.mark.parametrize(("tell", "subjects"), WRONG)
def test_what_is_wrong_is_found(tell: Tell, subjects: set[str]) -> None:
    tell(tale := Tale())
    assert {*tale.violations()} == subjects


@pytest.mark.parametrize("tell", RIGHT)
def test_in_what_is_right_nothing_is_found(tell: Tell) -> None:
    tell(tale := Tale())
    assert tale.violations() == []


def test_a_violation_tells_the_call_what_it_could_have_met_and_what_was_under_way() -> None:
    tale = Tale()
    tale.made("img-1")
    tale.shared(10, BOB)
    tale.call(30, 40, BOB, "GetImage", {"image": seen(name="db", kind="SHARED")}, image_id="img-1")
    tale.unshared(35, 50, BOB)
    stored = Stored(tale.images, {}, tale.accounts, {}, {}, {}, {})
    (violation,) = (each for each in check(tale.history, stored) if each.subject == IMAGE)
    assert "bob GetImage(image_id='img-1')" in violation.message
    assert "shares=frozenset({'bob'})" in violation.message
    assert "ann UnshareImage(image_id='img-1'" in violation.message
    assert violation.after_calls == 4


# --- the search itself, by a register that is written and read


def write(value: int, begin: int, end: int | None) -> Step:
    return Step(f"write {value}", lambda state: value, begin, end)


def read(value: int, begin: int, end: int) -> Step:
    return Step(f"read {value}", lambda state: state if state == value else None, begin, end, reads=True)


def test_what_overlaps_may_be_in_either_order() -> None:
    writes = [write(1, 0, 10), write(2, 0, 10)]
    assert stuck([*writes, read(1, 20, 21)], 0) is None
    assert stuck([*writes, read(2, 20, 21)], 0) is None
    assert stuck([*writes, read(1, 20, 21), read(2, 30, 31)], 0) is not None


def test_what_does_not_overlap_is_in_the_order_of_time() -> None:
    assert stuck([write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)], 0) is not None
    assert stuck([write(1, 0, 1), write(2, 2, 3), read(2, 4, 5)], 0) is None


def test_what_ends_when_another_begins_overlaps_it() -> None:
    assert stuck([write(1, 0, 5), read(0, 5, 6)], 0) is None


def test_what_never_ends_may_have_its_effect_at_any_time_or_never() -> None:
    assert stuck([write(1, 0, None), read(0, 1, 2), read(1, 3, 4)], 0) is None
    assert stuck([write(1, 0, None), read(0, 1, 2), read(0, 3, 4)], 0) is None
    assert stuck([write(1, 0, None), read(1, 1, 2), read(0, 3, 4)], 0) is not None


def test_a_search_with_too_many_branches_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linearizable, "_BRANCHES_MAX", 100)
    writes = [write(number, 0, 10) for number in range(8)]
    with pytest.raises(Undecided, match="8 changes under way at write 0"):
        stuck(writes, -1)
