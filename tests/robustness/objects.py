"""The objects that calls are about, each as a value that calls change one after the other.

The rules are those of the plain model (tests/end_to_end/model.py), asked of a model that holds the one object. Here is
what that model leaves out, since its operations end at once: that something is being made or moved, and by which
version.

A step is a function from the object before to the object after, or to None where the call could not have come to what
it came to.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from tests.end_to_end import model
from tests.end_to_end.model import BEING_MADE, OPERATOR, Model
from tests.robustness.history import Answer, Call

#: Room for whatever is made, in models of objects that hold no quota.
_PLENTY = 1_000_000

INSTANCE_TYPE = "S5.MEDIUM4"

Ask = Callable[[Model], Any]


def refused(call: Call, ask: Callable[[], Any], *reasons: str) -> bool:
    """Whether the model refuses as the call was refused.

    Args:
        reasons: by which it may be refused as well, by rules that the model does not know.
    """
    if call.reason in reasons:
        return True
    try:
        ask()
    except model.Refused as told:
        return any(
            refusal.reason == call.reason and refusal.metadata.items() <= call.metadata.items()
            for refusal in told.refusals
        )
    return False


# --- images


class Image(NamedTuple):
    """An image, with its shares, the copies that are being made of it, and what was launched from it."""

    image_id: str
    owner: str
    region_id: str
    name: str
    state: str
    version: int = 1
    deprecation: str = "CURRENT"
    shares: frozenset[str] = frozenset()
    shares_limit: int = model.SHARES_LIMIT
    copies: int = 0
    #: Those instances of it of which somebody saw that they were there already, or not yet.
    launched: frozenset[str] = frozenset()

    @property
    def made(self) -> bool:
        """Whether it is there and no operation makes it any more."""
        return self.state not in BEING_MADE

    def modelled(self) -> model.Image:
        """The image in the words of the model."""
        return model.Image(
            self.image_id,
            self.name,
            self.region_id,
            self.owner,
            "IMPORTED",
            self.state,
            deprecation=self.deprecation,
            copies=self.copies,
            shares={*self.shares},
            shares_limit=self.shares_limit,
            version=self.version,
        )

    def after(self, told: model.Image) -> "Image":
        """The image as the model left it."""
        return self._replace(
            name=told.name,
            state=told.state,
            version=told.version,
            deprecation=told.deprecation,
            shares=frozenset(told.shares),
            shares_limit=told.shares_limit,
        )


class Images:
    """Steps of one image; before it is made, the object is "nothing".

    Args:
        account_ids: every account that there is.
    """

    NOTHING: Any = "nothing"

    def __init__(self, account_ids: tuple[str, ...]) -> None:
        limits: dict[str, int] = dict.fromkeys(model.REGION_IDS, _PLENTY)
        self._accounts = {each: model.Account(each, limits) for each in account_ids}

    def make(self, image: Image) -> Callable[[Any], Any]:
        """It begins to be made."""
        return lambda state: image if state == self.NOTHING else None

    def end(self, image_id: str, ended: Answer) -> Callable[[Any], Any]:
        """The operation that makes it ends."""
        seen = next((each for each in ended["images"] if each["image_id"] == image_id), None)
        to_state = {"": "AVAILABLE", "OPERATION_CANCELLED": "DELETED"}.get(ended["error"], "FAILED")

        def step(state: Any) -> Any:
            if state == self.NOTHING or state.made:
                return None
            after = state._replace(state=to_state, version=state.version + 1)
            return after if seen is None or self._fits(after, after.owner, seen) else None

        return step

    def ask(self, call: Call, ask: Ask, fits: Callable[[Image, Any], bool] = lambda after, told: True) -> Any:
        """A call that the model knows, asked with `ask`.

        Args:
            fits: whether the answer is right of the image after the call, given what the model answered.
        """
        image_id = call.arguments["image_id"]

        def step(state: Any) -> Any:
            asked = self._model(state)
            if call.answer is None:
                return state if refused(call, lambda: ask(asked)) else None
            try:
                told = ask(asked)
            except model.Refused:
                return None
            after = state.after(asked.images[image_id])
            if after.state == "DELETED":
                after = after._replace(version=after.version + 1)
            return after if fits(after, told) else None

        return step

    def copied(self, call: Call, ask: Ask) -> Any:
        """A copy of it begins to be made."""
        asked = self.ask(call, ask)

        def step(state: Any) -> Any:
            after = asked(state)
            return after if after is None or call.answer is None else after._replace(copies=after.copies + 1)

        return step

    def copy_ended(self, state: Any) -> Any:
        """A copy of it is made, or never will be."""
        if state == self.NOTHING or not state.copies:
            return None
        return state._replace(copies=state.copies - 1)

    def launched(self, asked: Callable[[Any], Any], instance_id: str) -> Callable[[Any], Any]:
        """An instance is launched from it, as it may be that was `asked`."""

        def step(state: Any) -> Any:
            after = asked(state)
            return None if after is None else after._replace(launched=after.launched | {instance_id})

        return step

    def there(self, instance_id: str, *, already: bool) -> Callable[[Any], Any]:
        """An instance of it is seen to be there already, or not yet."""
        return lambda state: state if already == (state != self.NOTHING and instance_id in state.launched) else None

    def last(self, stored: Any) -> Callable[[Any], Any]:
        """It is stored so in the end."""

        def step(state: Any) -> Any:
            last = state if state == self.NOTHING else state._replace(launched=frozenset())
            return state if last == stored else None

        return step

    def seen(self, caller: str, fields: Answer) -> Callable[[Any], Any]:
        """The caller reads it so."""
        return lambda state: state if self._fits(state, caller, fields) else None

    def usable(self, caller: str, expected: bool) -> Callable[[Any], Any]:
        """The caller reads whether it could launch from it."""

        def step(state: Any) -> Any:
            asked = self._model(state)
            usable = any(image.usable and asked.kind(caller, image) for image in asked.images.values())
            return state if usable == expected else None

        return step

    def _model(self, state: Any) -> Model:
        asked = Model()
        asked.accounts = self._accounts
        if state != self.NOTHING:
            asked.images = {state.image_id: state.modelled()}
        return asked

    def _fits(self, state: Any, caller: str, fields: Answer) -> bool:
        if state == self.NOTHING:
            return False
        asked, image = self._model(state), state.modelled()
        if not asked.kind(caller, image):
            return False
        told = asked.image_fields(caller, image) | {"version": state.version}
        return all(told[path] == value for path, value in fields.items())


# --- places


class Place(NamedTuple):
    """An account's images in a region, and how many it may have: (id, name, whether it counts) of each."""

    images: frozenset[tuple[str, str, bool]]
    limit: int = model.IMAGES_LIMIT


def same_quota(told: Mapping[str, int], answer: Answer | None) -> bool:
    """Whether a quota was answered as the model tells it; what was not answered is not known."""
    return answer is None or (told["limit"], told["usage"]) == (answer["limit"], answer["usage"])


class Places:
    """Steps of one place."""

    def __init__(self, owner: str, region_id: str) -> None:
        self._owner, self._region_id = owner, region_id

    def make(self, call: Call, name: str, image_id: str) -> Callable[[Place], Place | None]:
        """An image begins to be made, or is refused."""
        return self._asked(call, lambda of: of.import_image(self._owner, self._region_id, name, image_id, fails=False))

    def undo(self, image_id: str, *, keep: bool) -> Callable[[Place], Place | None]:
        """An image that was being made is not made: its place is free, but its name only if it is not kept."""

        def step(state: Place) -> Place | None:
            found = [each for each in state.images if each[0] == image_id]
            if not found:
                return None
            kept = {(image_id, found[0][1], False)} if keep else set()
            return state._replace(images=state.images - {*found} | kept)

        return step

    def delete(self, image_id: str) -> Callable[[Place], Place | None]:
        """An image is deleted."""
        return self.undo(image_id, keep=False)

    def rename(self, call: Call, image_id: str, name: str) -> Callable[[Place], Place | None]:
        """An image is renamed, or the name is refused."""
        return self._asked(call, lambda of: of.update_image(self._owner, image_id, None, name=name))

    def limit(self, call: Call, limit: int) -> Callable[[Place], Place | None]:
        """The operator sets how many images there may be, or is refused."""

        def ask(of: Model) -> Any:
            return of.set_images_limit(OPERATOR, self._owner, self._region_id, limit)

        return self._asked(call, ask, lambda told: same_quota(told, call.answer))

    def quota(self, answer: Answer) -> Callable[[Place], Place | None]:
        """The quota is read."""

        def step(state: Place) -> Place | None:
            told = self._model(state).images_quota(self._owner, self._owner, self._region_id)
            return state if same_quota(told, answer) else None

        return step

    def listed(self, images: frozenset[tuple[str, str]]) -> Callable[[Place], Place | None]:
        """Ids and names of all images are read at once."""
        return lambda state: state if {(image_id, name) for image_id, name, _ in state.images} == images else None

    def _asked(
        self, call: Call, ask: Ask, right: Callable[[Any], bool] = lambda told: True
    ) -> Callable[[Place], Place | None]:
        def step(state: Place) -> Place | None:
            asked = self._model(state)
            if call.answer is None:
                return state if refused(call, lambda: ask(asked)) else None
            try:
                if not right(ask(asked)):
                    return None
            except model.Refused:
                return None
            return Place(
                frozenset((each.image_id, each.name, each.state != "FAILED") for each in asked.images.values()),
                asked.accounts[self._owner].limits[self._region_id],
            )

        return step

    def _model(self, state: Place) -> Model:
        asked = Model()
        asked.accounts = {self._owner: model.Account(self._owner, {self._region_id: state.limit})}
        asked.images = {
            image_id: model.Image(
                image_id, name, self._region_id, self._owner, "IMPORTED", "AVAILABLE" if counts else "FAILED"
            )
            for image_id, name, counts in state.images
        }
        return asked


# --- accounts


class Account(NamedTuple):
    """An account, as the operator changes it."""

    region_ids: frozenset[str]
    version: int = 1


def update(call: Call) -> Callable[[Account], Account | None]:
    """The operator says where the account is active, or is refused since it changed."""

    def step(state: Account) -> Account | None:
        etag = call.arguments["etag"]
        if call.reason == "ETAG_MISMATCH":
            return state if etag not in (None, state.version) else None
        if call.answer is None:
            return state
        after = Account(frozenset(call.arguments["region_ids"]), state.version + 1)
        return after if etag in (None, state.version) and read(call.answer)(after) else None

    return step


def read(answer: Answer) -> Callable[[Account], Account | None]:
    """The account is read."""
    told = answer["account"]
    seen = Account(frozenset(told["region_ids"]), told["version"])
    return lambda state: state if state == seen else None


class Membership(NamedTuple):
    """Whether an account is active in a region, and the images that are shared with it there."""

    image_ids: frozenset[str] = frozenset()
    active: bool = True


def received(image_id: str) -> Callable[[Membership], Membership | None]:
    """An image is shared with the account, whether or not it was before."""

    def step(state: Membership) -> Membership | None:
        shared = state.active or image_id in state.image_ids
        return state._replace(image_ids=state.image_ids | {image_id}) if shared else None

    return step


def taken_back(image_id: str, *, had: bool | None) -> Callable[[Membership], Membership | None]:
    """An image is taken from the account.

    Args:
        had: whether the account had it; None if that is not known.
    """

    def step(state: Membership) -> Membership | None:
        if had is not None and (image_id in state.image_ids) != had:
            return None
        return state._replace(image_ids=state.image_ids - {image_id})

    return step


def all_received(image_ids: frozenset[str]) -> Callable[[Membership], Membership | None]:
    """All images that are shared with the account are read at once."""
    return lambda state: state if state.image_ids == image_ids else None


def moved(*, active: bool) -> Callable[[Membership], Membership | None]:
    """The account enters the region, or leaves it, or stays."""
    return lambda state: None if state.image_ids and state.active and not active else state._replace(active=active)


def known(*, active: bool) -> Callable[[Membership], Membership | None]:
    """The account is told to be active in the region, or not to be."""
    return lambda state: state if state.active == active else None


def in_use(state: Membership) -> Membership | None:
    """The account is told to have something in the region."""
    return state if state.active and state.image_ids else None


# --- instances


class Instance(NamedTuple):
    """An instance, and the operation that moves it."""

    instance_id: str
    owner: str
    name: str
    state: str
    version: int = 1
    #: Where it was before the operation that moves it; "" if none does.
    from_state: str = ""

    @property
    def moving(self) -> bool:
        """Whether an operation moves it."""
        return self.from_state != ""


#: What each method moves an instance to, and where it is in the end; "" where it was before.
_MOVES = {
    "StartInstance": ("STARTING", "RUNNING"),
    "StopInstance": ("STOPPING", "STOPPED"),
    "DeleteInstance": ("DELETING", "DELETED"),
    "CreateImage": ("IMAGING", ""),
    "CreateInstance": ("PROVISIONING", "RUNNING"),
}


class Instances:
    """Steps of one instance; before it is launched, the object is "nothing"."""

    NOTHING: Any = "nothing"

    def launch(self, instance_id: str, owner: str) -> Callable[[Any], Any]:
        """It is launched."""
        new = Instance(instance_id, owner, "", "PROVISIONING", from_state="nothing")
        return lambda state: new if state == self.NOTHING else None

    def move(self, call: Call) -> Callable[[Any], Any]:
        """A call begins to move it, or is refused."""
        instance_id = call.arguments["instance_id"]

        def ask(asked: Model) -> None:
            if call.method == "CreateImage":
                asked.create_image(call.caller, model.REGION_IDS[0], instance_id, "name", "img", fails=False)
            else:
                asked.act_on_instance(call.caller, call.method, instance_id, None)

        def step(state: Any) -> Any:
            asked = self._model(state, call.caller)
            busy = state != self.NOTHING and state.moving and state.state != "DELETED"
            if call.answer is None:
                also = ("INSTANCE_BUSY",) if busy and call.caller == state.owner else ()
                return state if refused(call, lambda: ask(asked), *also) else None
            try:
                ask(asked)
            except model.Refused:
                return None
            return None if busy else self._begun(state, call.method)

        return step

    def end(self, method: str, instance_id: str, ended: Answer) -> Callable[[Any], Any]:
        """The operation that moves it ends."""
        seen = next((each for each in ended["instances"] if each["instance_id"] == instance_id), None)

        def step(state: Any) -> Any:
            begun, to_state = _MOVES[method]
            if state == self.NOTHING or state.state != begun:
                return None
            if ended["error"]:
                launch = {"OPERATION_CANCELLED": "DELETED"}.get(ended["error"], "FAILED")
                to_state = launch if method == "CreateInstance" else state.from_state
            to_state, version = to_state or state.from_state, state.version + 1
            after = state._replace(state=to_state, version=version, from_state="")
            return after if seen is None or self._fits(after, seen) else None

        return step

    def update(self, call: Call) -> Callable[[Any], Any]:
        """It is renamed, or the caller refused."""
        instance_id, name, etag = (call.arguments[key] for key in ("instance_id", "name", "etag"))

        def step(state: Any) -> Any:
            asked = self._model(state, call.caller)

            def ask() -> None:
                asked.update_instance(call.caller, instance_id, etag, name=name)

            if call.answer is None:
                return state if refused(call, ask) else None
            try:
                ask()
            except model.Refused:
                return None
            after = state._replace(name=name, version=state.version + 1)
            return after if self._fits(after, call.answer["instance"]) else None

        return step

    def seen(self, caller: str, fields: Answer) -> Callable[[Any], Any]:
        """The caller reads it so."""

        def step(state: Any) -> Any:
            if state == self.NOTHING or state.owner != caller or state.state == "DELETED":
                return None
            return state if self._fits(state, fields) else None

        return step

    def absent(self, caller: str) -> Callable[[Any], Any]:
        """The caller is told that it does not exist."""

        def step(state: Any) -> Any:
            hidden = state == self.NOTHING or state.owner != caller or state.state == "DELETED"
            return state if hidden else None

        return step

    def _fits(self, state: Instance, fields: Answer) -> bool:
        told = (state.name, state.state, state.version, state.moving)
        return told == (fields["name"], fields["state"], fields["version"], fields["operation"] != "")

    def _begun(self, state: Instance, method: str) -> Instance:
        return state._replace(state=_MOVES[method][0], version=state.version + 1, from_state=state.state)

    def _model(self, state: Any, caller: str) -> Model:
        asked = Model()
        asked.accounts = {caller: model.Account(caller, dict.fromkeys(model.REGION_IDS, _PLENTY))}
        if state != self.NOTHING:
            region_id, version = model.REGION_IDS[0], state.version
            told: Mapping[str, Any] = {"state": state.state, "version": version}
            asked.instances = {
                state.instance_id: model.Instance(
                    state.instance_id, state.name, region_id, state.owner, INSTANCE_TYPE, "", {}, 0, **told
                )
            }
        return asked


def image_ids(answer: Answer) -> Iterator[str]:
    """The images that an operation makes, as its first answer names them."""
    return (each for each in answer["target_ids"] if each.startswith("img-"))
