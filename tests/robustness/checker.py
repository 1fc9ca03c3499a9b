"""Judges a history: whether the service could have answered every call so while it kept every rule.

Each call is taken apart into steps of the objects that it is about: images, places (an account's images in a region),
memberships (what is shared with an account in a region), accounts and instances. Then the steps of each object are put
in an order (`linearizable`), by the rules of the plain model (`objects`). Linearizability is local: the calls have an
order if those of each object have one; what one call says of several objects at one moment is a step of an object that
holds them all.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from tests.end_to_end.model import Model
from tests.robustness import history as histories
from tests.robustness import linearizable, objects
from tests.robustness.history import OPERATOR, TURNED_AWAY, Answer, Call, History
from tests.robustness.linearizable import Step, Stuck
from tests.robustness.objects import Account, Image, Images, Instances, Membership, Place, Places
from tests.robustness.stored import Stored

#: An object: its kind, and what it is known by.
Key = tuple[str, ...]

_MAKES = {"CreateImage": "CREATING", "ImportImage": "IMPORTING", "CopyImage": "COPYING"}
_MOVES = ("StartInstance", "StopInstance", "DeleteInstance")
_LOOKS = ("GetOperation", "WaitOperation")
_OF_PLACE = ("CUSTOM_IMAGE_QUOTA_EXCEEDED", "IMAGE_NAME_TAKEN", "QUOTA_BELOW_USAGE")

_SHOWN = 8


class Violation(NamedTuple):
    """Something that must not have been."""

    #: What it is about, for example "image img-3k9x0q2z".
    subject: str
    message: str
    #: How many calls had ended by then.
    after_calls: int

    def __str__(self) -> str:
        return f"{self.subject}, after {self.after_calls} calls: {self.message}"


def check(history: History, stored: Stored) -> list[Violation]:
    """Every violation that the history shows, the earliest first; none if the service kept every rule.

    Calls of unknown outcome may have happened or not, at any time from their begin on: `stored` has the answers that
    were kept for their request ids, and so tells which did.

    Args:
        stored: what the service holds in the end, when nothing goes on any more.

    Raises:
        linearizable.Undecided: too many calls of unknown outcome overlap.
    """
    return _Checking(history, stored).violations()


class _Checking:
    def __init__(self, history: History, stored: Stored) -> None:
        self._history, self._stored = history, stored
        self._end_ns = 1 + max(
            (call.end_ns or call.begin_ns for call in history.calls), default=0
        )  # when calls whose end is not known are over
        self._found: list[tuple[int, str, str]] = []
        self._steps: dict[Key, list[Step]] = defaultdict(list)
        self._images = Images((*history.accounts, *history.crowd, *history.guests))
        self._instances = Instances()
        #: Until when each operation is known to have been under way.
        self._under_way_ns: dict[str, int] = defaultdict(int)
        #: Owner and region of each image that was made.
        self._made: dict[str, tuple[str, str]] = {}
        self._launched: dict[str, str] = {}
        #: The launches of each account from images that were made here, and instances that somebody saw just then.
        self._launches: dict[str, list[Call]] = defaultdict(list)
        self._witnessed: set[str] = set()
        #: Whose memberships are followed; what is shared with the crowd, nobody lists.
        self._watched = (*history.accounts, *history.guests)
        self._named: dict[str, set[str]] = defaultdict(set)

    def violations(self) -> list[Violation]:
        calls = [*self._effective()]
        ends = self._ends()
        for call in self._history.calls:
            if call.reason == "INTERNAL_ERROR":
                self._violated("the service", f"has a bug: {call}", call.end_ns)
        for call in calls:
            self._register(call)
        for call in calls:
            if call.method == "ListInstances" and call.answer is not None:
                self._witness(call)
        for call in calls:
            self._take_apart(call)
            if call.answer is not None and "operation" in call.answer and call.method not in _LOOKS:
                self._take_end_apart(call, ends)
        self._compare()
        for key, steps in self._steps.items():
            self._order(key, steps)
        times = sorted(call.end_ns or self._end_ns for call in self._history.calls)
        return [
            Violation(subject, message, sum(time <= end_ns for time in times))
            for end_ns, subject, message in sorted(self._found)
        ]

    def _violated(self, subject: str, message: str, end_ns: int | None = None) -> None:
        self._found.append((self._end_ns if end_ns is None else end_ns, subject, message))

    # --- calls that had one effect together

    def _effective(self) -> Iterator[Call]:
        """The calls whose outcome is known, those that were sent again under one request id as one."""
        groups: dict[tuple[str, str, str], list[Call]] = defaultdict(list)
        for call in self._history.calls:
            if call.request_id:
                groups[_scope(call), call.method.partition(" ")[0], call.request_id].append(call)
            elif call.known:
                yield call
        for key, calls in groups.items():
            yield from self._settled(key, calls)

    def _settled(self, key: tuple[str, str, str], calls: list[Call]) -> Iterator[Call]:
        answered = [call for call in calls if call.answer is not None] or [*self._done_without_answer(key, calls)]
        done = {call.number for call in answered}
        for call in calls:
            if call.reason == "REQUEST_ID_REUSED":
                self._judge_reuse(call, calls)
            elif call.known and call.number not in done:
                yield call
        if not answered:
            return
        first = min(answered, key=lambda call: call.end_ns or self._end_ns)
        for call in answered:
            if (call.arguments, call.answer) != (first.arguments, first.answer):
                self._violated(f"request {call.request_id}", f"was answered as another: {call}; {first}", call.end_ns)
        tried = [call for call in calls if call.number in done or not call.known]
        yield replace(first, begin_ns=min(call.begin_ns for call in tried if call.arguments == first.arguments))

    def _judge_reuse(self, call: Call, calls: list[Call]) -> None:
        if not any(other.arguments != call.arguments and other.begin_ns < (call.end_ns or 0) for other in calls):
            self._violated(f"request {call.request_id}", f"was never used for anything else: {call}", call.end_ns)

    def _done_without_answer(self, key: tuple[str, str, str], calls: list[Call]) -> Iterator[Call]:
        """The call that had an effect and was not told so, with the answer that the service kept.

        It is one of unknown outcome; or one that was refused, since the client sent it again when its connection was
        lost, and the first attempt came after the second.
        """
        if key in self._stored.requests:
            call = min(calls, key=lambda call: call.known)
            answer = histories.stored(key[1], self._stored.requests[key])
            yield replace(call, answer=answer, reason=None, end_ns=None)

    # --- ends of operations

    def _ends(self) -> dict[str, tuple[int, Answer]]:
        """When each operation was first known to have ended, and what it came to."""
        ends: dict[str, tuple[int, Answer]] = {}
        for call in self._history.calls:
            if call.method not in _LOOKS or call.answer is None:
                continue
            name, end_ns = call.answer["operation"], call.end_ns or self._end_ns
            if not call.answer["done"]:
                self._under_way_ns[name] = max(self._under_way_ns[name], call.begin_ns)
                continue
            if name in ends and ends[name][1] != call.answer:
                self._violated(name, f"ended twice: {ends[name][1]}, {call}", end_ns)
            ends[name] = min(ends.get(name, (end_ns, call.answer)), (end_ns, call.answer), key=lambda end: end[0])
        for name, ended in self._stored.operations.items():
            if name in ends and ended != ends[name][1]:
                self._violated(name, f"ended otherwise than told: {ended}, told was {ends[name][1]}")
            if name not in ends and ended is not None:
                ends[name] = (self._end_ns, ended)
        return ends

    def _take_end_apart(self, call: Call, ends: dict[str, tuple[int, Answer]]) -> None:
        assert call.answer is not None
        name = call.answer["operation"]
        if name not in ends:
            self._violated(name, f"never ended: {call}")
            return
        end_ns, ended = ends[name]
        begin_ns = max(call.begin_ns, self._under_way_ns[name])
        ending = replace(call, method=f"the end of {call.method}", answer=ended, begin_ns=begin_ns, end_ns=end_ns)
        for image_id in objects.image_ids(call.answer):
            self._step(("image", image_id), ending, self._images.end(image_id, ended))
            if ended["error"]:
                keep = ended["error"] != "OPERATION_CANCELLED"
                place = self._place(*self._made[image_id])
                self._step(self._place_key(image_id), ending, place.undo(image_id, keep=keep))
        if call.method == "CopyImage":
            self._step(("image", call.arguments["image_id"]), ending, self._images.copy_ended)
        instance_ids = [each for each in call.answer["target_ids"] if each.startswith("ins-")]
        if call.method == "CreateImage":
            instance_ids = [call.arguments["instance_id"]]
        for instance_id in instance_ids:
            self._step(("instance", instance_id), ending, self._instances.end(call.method, instance_id, ended))
        # Whether the image could be launched from once more was read at some time before the end.
        self._see_instances(replace(ending, begin_ns=call.begin_ns), ended["instances"])

    # --- calls as steps

    def _register(self, call: Call) -> None:
        """Learns what the call made, and with whom it shared."""
        if call.method in ("ShareImage", "SetImageShares"):
            self._named[call.arguments["image_id"]] |= {*call.arguments["account_ids"]} & {*self._watched}
        if call.answer is None or call.method not in (*_MAKES, "CreateInstance"):
            return
        for image_id in objects.image_ids(call.answer):
            if image_id in self._made:
                self._violated(f"image {image_id}", f"was made before: {call}", call.end_ns)
            self._made.setdefault(image_id, (call.caller, call.arguments["region_id"]))
        for instance_id in call.answer["target_ids"] if call.method == "CreateInstance" else ():
            if instance_id in self._launched:
                self._violated(f"instance {instance_id}", f"was launched before: {call}", call.end_ns)
            self._launched.setdefault(instance_id, call.caller)
        if call.method == "CreateInstance" and call.arguments["image_id"] not in self._history.public_ids:
            self._launches[call.caller].append(call)

    def _witness(self, call: Call) -> None:
        """Learns which launches the list is a witness of: those under way when it was made.

        The others say nothing: an instance that is not listed may have been deleted, but not before its launch ended.
        """
        end_ns, listed = call.end_ns or self._end_ns, {each["instance_id"] for each in (call.answer or {})["instances"]}
        for launch in self._launches[call.caller]:
            launched_ns = self._end_ns if launch.end_ns is None else launch.end_ns
            elsewhere = launch.arguments["region_id"] != call.arguments["region_id"]
            if elsewhere or launch.begin_ns > end_ns or launched_ns < call.begin_ns:
                continue
            for instance_id in launch.answer["target_ids"] if launch.answer else ():
                already = instance_id in listed
                if already or launched_ns >= end_ns:
                    self._witnessed.add(instance_id)
                    there = self._images.there(instance_id, already=already)
                    self._step(("image", launch.arguments["image_id"]), call, there, reads=True)

    def _take_apart(self, call: Call) -> None:
        if call.reason in TURNED_AWAY:
            return
        if call.reason in _OF_PLACE and call.method != "SetQuotaLimit of shares":
            self._refused_by_place(call)
        elif call.answer is None and (call.reason or "").startswith("INSTANCE_"):
            self._refused_by_instance(call)
        else:
            {
                "CreateImage": self._make,
                "ImportImage": self._make,
                "CopyImage": self._make,
                "UpdateImage": self._update,
                "DeprecateImage": self._deprecate,
                "DeleteImage": self._delete,
                "ShareImage": self._share,
                "SetImageShares": self._share,
                "UnshareImage": self._unshare,
                "LeaveImageShare": self._leave,
                "CreateInstance": self._launch,
                "StartInstance": self._move,
                "StopInstance": self._move,
                "DeleteInstance": self._move,
                "UpdateInstance": self._update_instance,
                "UpdateAccount": self._update_account,
                "GetAccount": self._get_account,
                "GetImage": self._get,
                "ListImages": self._list,
                "ListImageShares": self._list_shares,
                "GetInstance": self._get_instance,
                "ListInstances": self._list_instances,
                "GetQuota of images": self._quota,
                "SetQuotaLimit of images": self._limit,
                "GetQuota of shares": self._share_quota,
                "SetQuotaLimit of shares": self._share_limit,
                "GetOperation": self._nothing,
                "WaitOperation": self._nothing,
                "CancelOperation": self._nothing,
            }[call.method](call)

    def _nothing(self, call: Call) -> None:
        """Ends of operations are steps of the calls that began them."""
        if call.answer is None:
            self._unexpected(call)

    def _make(self, call: Call) -> None:
        source_id = call.arguments.get("image_id")
        if source_id and call.method == "CopyImage":
            to = [(call.arguments["region_id"], call.arguments["name"])]
            new_ids = [*objects.image_ids(call.answer)] if call.answer else ["new"]
            step = self._images.copied(call, lambda of: of.copy_image(call.caller, source_id, to, iter(new_ids)))
            self._step(("image", source_id), call, step)
        if call.answer is None:
            return None if source_id else self._unexpected(call)
        for image_id in objects.image_ids(call.answer):
            place = (call.caller, call.arguments["region_id"])
            new = Image(image_id, *place, call.arguments["name"], _MAKES[call.method])
            self._step(("image", image_id), call, self._images.make(new))
            self._step(("place", *place), call, self._place(*place).make(call, new.name, image_id))
        if call.method == "CreateImage":
            self._step(("instance", call.arguments["instance_id"]), call, self._instances.move(call))
        return None

    def _refused_by_place(self, call: Call) -> None:
        if call.method == "UpdateImage":
            image_id = call.arguments["image_id"]
            place = self._place(*self._made[image_id])
            step = place.rename(call, image_id, call.arguments["name"])
            return self._step(self._place_key(image_id), call, step)
        if call.method.startswith("SetQuotaLimit"):
            return self._limit(call)
        owner, region_id = call.caller, call.arguments["region_id"]
        step = self._place(owner, region_id).make(call, call.arguments["name"], "new")
        return self._step(("place", owner, region_id), call, step)

    def _refused_by_instance(self, call: Call) -> None:
        instance_id = call.arguments["instance_id"]
        if call.method == "GetInstance":
            self._step(("instance", instance_id), call, self._instances.absent(call.caller), reads=True)
        elif call.method == "UpdateInstance":
            self._update_instance(call)
        else:
            self._step(("instance", instance_id), call, self._instances.move(call))

    def _update(self, call: Call) -> None:
        image_id, name, etag = (call.arguments[key] for key in ("image_id", "name", "etag"))
        self._ask(call, lambda of: of.update_image(call.caller, image_id, etag, name=name))
        if call.answer is not None and image_id in self._made:
            place = self._place(*self._made[image_id])
            self._step(self._place_key(image_id), call, place.rename(call, image_id, name))

    def _deprecate(self, call: Call) -> None:
        image_id, etag, state = (call.arguments[key] for key in ("image_id", "etag", "state"))
        self._ask(call, lambda of: of.deprecate_image(call.caller, image_id, etag, state, ""))

    def _delete(self, call: Call) -> None:
        image_id, etag, force = (call.arguments[key] for key in ("image_id", "etag", "force"))

        def fits(after: Image, told: Any) -> bool:
            seen = call.answer["image"] if call.answer else {}
            return (seen["state"], seen["version"]) == ("DELETED", after.version)

        ask = self._images.ask(call, lambda of: of.delete_image(call.caller, image_id, etag, force=force), fits)
        self._step(("image", image_id), call, ask)
        if call.answer is None or image_id not in self._made:
            return
        self._step(self._place_key(image_id), call, self._place(*self._made[image_id]).delete(image_id))
        for account_id in self._named[image_id]:
            self._step(self._membership_key(account_id, image_id), call, objects.taken_back(image_id, had=None))

    def _share(self, call: Call) -> None:
        image_id, accounts, etag = (call.arguments[key] for key in ("image_id", "account_ids", "etag"))
        if call.reason == "SHARE_REGION_MISMATCH":
            return self._refused_by_region(call)
        if call.method == "ShareImage":
            self._ask(call, lambda of: of.share_image(call.caller, image_id, accounts, etag))
        else:
            self._ask(call, lambda of: of.set_image_shares(call.caller, image_id, accounts, etag))
        if call.answer is None or image_id not in self._made:
            return None
        if {*call.answer["shared_with"]} != {*accounts}:
            self._violated(f"image {image_id}", f"was shared with others than asked: {call}", call.end_ns)
        for account_id in self._named[image_id]:
            key = self._membership_key(account_id, image_id)
            if account_id in accounts:
                self._step(key, call, objects.received(image_id))
            elif call.method == "SetImageShares":
                self._step(key, call, objects.taken_back(image_id, had=None))
        return None

    def _refused_by_region(self, call: Call) -> None:
        for account_id in call.metadata["account_ids"].split(", "):
            key = self._membership_key(account_id, call.arguments["image_id"])
            self._step(key, call, objects.known(active=False), reads=True)

    def _unshare(self, call: Call) -> None:
        image_id, accounts, etag = (call.arguments[key] for key in ("image_id", "account_ids", "etag"))
        self._ask(
            call,
            lambda of: of.unshare_image(call.caller, image_id, accounts, etag),
            lambda told: tuple(told) == (call.answer or {})["lost"],
        )
        if call.answer is None or image_id not in self._made:
            return
        for account_id in self._named[image_id] & {*accounts}:
            had = account_id in call.answer["lost"]
            key = self._membership_key(account_id, image_id)
            self._step(key, call, objects.taken_back(image_id, had=had), reads=not had)

    def _leave(self, call: Call) -> None:
        image_id = call.arguments["image_id"]
        self._ask(call, lambda of: of.leave_image_share(call.caller, image_id))
        if call.answer is not None and image_id in self._made:
            self._step(self._membership_key(call.caller, image_id), call, objects.taken_back(image_id, had=True))

    def _launch(self, call: Call) -> None:
        if call.arguments["image_id"] in self._history.public_ids:
            if call.answer is None:
                self._unexpected(call)
        else:
            self._launch_from_image(call)
        for instance_id in call.answer["target_ids"] if call.answer else ():
            self._step(("instance", instance_id), call, self._instances.launch(instance_id, call.caller))

    def _launch_from_image(self, call: Call) -> None:
        image_id, region_id, etag = (call.arguments[key] for key in ("image_id", "region_id", "etag"))
        instance_ids = [*call.answer["target_ids"]] if call.answer else ["ins"]

        def ask(of: Model) -> Any:
            return of.create_instance(
                call.caller, region_id, image_id, etag, "", objects.INSTANCE_TYPE, instance_ids, fails=False
            )

        step = self._images.ask(
            call, ask, lambda after, told: call.answer is None or tuple(told) == call.answer["warnings"]
        )
        witnessed = self._witnessed & {*instance_ids}
        for instance_id in witnessed:
            step = self._images.launched(step, instance_id)
        self._step(("image", image_id), call, step, reads=not witnessed)

    def _move(self, call: Call) -> None:
        if call.answer is None:
            return self._unexpected(call)
        return self._step(("instance", call.arguments["instance_id"]), call, self._instances.move(call))

    def _update_instance(self, call: Call) -> None:
        self._step(("instance", call.arguments["instance_id"]), call, self._instances.update(call))

    def _update_account(self, call: Call) -> None:
        account_id, region_ids = call.arguments["account_id"], call.arguments["region_ids"]
        self._step(("account", account_id), call, objects.update(call))
        in_use = call.metadata.get("region_ids", "").split(", ")
        for region_id in self._history.region_ids:
            key = ("membership", account_id, region_id)
            if call.answer is not None:
                self._step(key, call, objects.moved(active=region_id in region_ids))
            elif call.reason == "ACCOUNT_REGION_IN_USE" and region_id in in_use:
                self._step(key, call, objects.in_use)

    def _get_account(self, call: Call) -> None:
        if call.answer is None:
            return self._unexpected(call)
        return self._step(("account", call.arguments["account_id"]), call, objects.read(call.answer), reads=True)

    # --- reads

    def _get(self, call: Call) -> None:
        image_id = call.arguments["image_id"]
        if call.answer is None:
            return self._ask(call, lambda of: of.get_image(call.caller, image_id), reads=True)
        step = self._images.seen(call.caller, call.answer["image"])
        return self._step(("image", image_id), call, step, reads=True)

    def _list(self, call: Call) -> None:
        if call.answer is None:
            return self._unexpected(call)
        region_id, seen = call.arguments["region_id"], call.answer["images"]
        own = frozenset((each["image_id"], each["name"]) for each in seen if each["kind"] == "CUSTOM")
        place = self._place(call.caller, region_id)
        self._step(("place", call.caller, region_id), call, place.listed(own), reads=True)
        shared = frozenset(each["image_id"] for each in seen if each["kind"] == "SHARED")
        self._step(("membership", call.caller, region_id), call, objects.all_received(shared), reads=True)
        for each in seen:
            self._step(("image", each["image_id"]), call, self._images.seen(call.caller, each), reads=True)
        return None

    def _list_shares(self, call: Call) -> None:
        image_id = call.arguments["image_id"]
        self._ask(
            call,
            lambda of: of.list_image_shares(call.caller, image_id),
            lambda told: call.answer is None or tuple(told) == call.answer["shared_with"],
            reads=True,
        )

    def _get_instance(self, call: Call) -> None:
        if call.answer is None:
            return self._unexpected(call)
        return self._see_instances(call, [call.answer["instance"]], exactly=True)

    def _list_instances(self, call: Call) -> None:
        if call.answer is None:
            return self._unexpected(call)
        return self._see_instances(call, call.answer["instances"], exactly=True)

    def _see_instances(self, call: Call, seen: Any, *, exactly: bool = False) -> None:
        for each in seen:
            if exactly:
                step = self._instances.seen(call.caller, each)
                self._step(("instance", each["instance_id"]), call, step, reads=True)
            if each["image_id"] in self._made:
                usable = self._images.usable(each["account_id"], each["launch_image.still_available"])
                self._step(("image", each["image_id"]), call, usable, reads=True)

    # --- quotas

    def _quota(self, call: Call) -> None:
        if call.answer is None:
            return self._unexpected(call)
        key = (call.caller, call.arguments["region_id"])
        return self._step(("place", *key), call, self._place(*key).quota(call.answer), reads=True)

    def _limit(self, call: Call) -> None:
        key, limit = (call.arguments["account_id"], call.arguments["region_id"]), call.arguments["limit"]
        self._step(("place", *key), call, self._place(*key).limit(call, limit))

    def _share_quota(self, call: Call) -> None:
        image_id = call.arguments["image_id"]
        right = partial(objects.same_quota, answer=call.answer)
        self._ask(call, lambda of: of.shares_quota(call.caller, image_id), right, reads=True)

    def _share_limit(self, call: Call) -> None:
        image_id, limit = call.arguments["image_id"], call.arguments["limit"]
        right = partial(objects.same_quota, answer=call.answer)
        self._ask(call, lambda of: of.set_shares_limit(OPERATOR, image_id, limit), right)

    # --- steps

    def _ask(
        self, call: Call, ask: objects.Ask, right: Callable[[Any], bool] = lambda told: True, *, reads: bool = False
    ) -> None:
        """A step of the image that the call names, by the model."""
        image_id, seen = call.arguments["image_id"], (call.answer or {}).get("image")

        def fits(after: Image, told: Any) -> bool:
            return right(told) and (seen is None or self._images.seen(call.caller, seen)(after) is not None)

        self._step(("image", image_id), call, self._images.ask(call, ask, fits), reads=reads)

    def _step(self, key: Key, call: Call, apply: Callable[[Any], Any], *, reads: bool = False) -> None:
        end_ns = self._end_ns if call.end_ns is None else call.end_ns
        self._steps[key].append(Step(call, apply, call.begin_ns, end_ns, reads or call.answer is None))

    def _unexpected(self, call: Call) -> None:
        self._violated("the service", f"refused for what no rule says: {call}", call.end_ns)

    def _place(self, owner: str, region_id: str) -> Places:
        return Places(owner, region_id)

    def _place_key(self, image_id: str) -> Key:
        return ("place", *self._made[image_id])

    def _membership_key(self, account_id: str, image_id: str) -> Key:
        return ("membership", account_id, self._made[image_id][1])

    # --- the end

    def _compare(self) -> None:
        """Compares what is stored in the end, as a last read of every object."""
        images = {key: each for key, each in self._stored.images.items() if each.owner in self._history.accounts}
        instances = {key: each for key, each in self._stored.instances.items() if each.owner in self._history.accounts}
        for image_id in {*self._made, *images}:
            last = images.get(image_id, Images.NOTHING)
            self._last(("image", image_id), last, self._images.last(last))
        for instance_id in {*self._launched, *instances}:
            self._last(("instance", instance_id), instances.get(instance_id, Instances.NOTHING))
        for account_id in self._watched:
            self._last(("account", account_id), self._stored.accounts.get(account_id))
            for region_id in self._history.region_ids:
                self._compare_place(account_id, region_id)

    def _compare_place(self, account_id: str, region_id: str) -> None:
        active = (account_id, region_id) in self._stored.places
        place = self._stored.places.get((account_id, region_id), Place(frozenset()))
        if account_id in self._history.accounts:
            self._last(("place", account_id, region_id), place)
        counted, there = self._stored.counted.get((account_id, region_id), 0), sum(each[2] for each in place.images)
        if counted != there:
            self._violated(f"place {account_id} {region_id}", f"{counted} images are counted, and there are {there}")
        received = frozenset(
            image_id
            for image_id, image in self._stored.images.items()
            if image.region_id == region_id and account_id in image.shares
        )
        self._last(("membership", account_id, region_id), Membership(received, active))

    def _last(self, key: Key, stored: Any, apply: Callable[[Any], Any] | None = None) -> None:
        last, moment = f"what is stored in the end: {stored}", self._end_ns + 1
        apply = apply or (lambda state: state if state == stored else None)
        self._steps[key].append(Step(last, apply, moment, moment, True))

    def _order(self, key: Key, steps: list[Step]) -> None:
        initial: dict[str, Any] = {
            "image": Images.NOTHING,
            "instance": Instances.NOTHING,
            "place": Place(frozenset()),
            "membership": Membership(),
            "account": Account(frozenset(self._history.region_ids)),
        }
        found = linearizable.stuck(steps, initial[key[0]])
        if found is not None:
            end_ns = found.step.end
            self._violated(" ".join(key), _told(found, steps), end_ns)


def _scope(call: Call) -> str:
    return f"operator:{OPERATOR}" if call.caller == OPERATOR else call.caller


def _told(found: Stuck, steps: Sequence[Step]) -> str:
    """What has no order, and what was asked of the object before it ended: the calls that it must fit."""
    assert found.step.end is not None, "whatever may happen at any time fits"
    states = "".join(f"\n    {state}" for state in found.states[:_SHOWN])
    before = [step for step in sorted(steps, key=lambda step: step.begin) if step.begin <= found.step.end]
    calls = "".join(f"\n    {each}" for each in dict.fromkeys(str(step.what) for step in before))
    return f"{found.step.what}\n  fits nothing that it could have been:{states}\n  after and beside these:{calls}"
