"""Callers who write without a pause and remember what they were told, whatever happens to the service meanwhile.

Each is alone in its account, so that what must be there follows from the answers it had. Nothing here does any harm.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from uuid import uuid4

from tests.end_to_end.steps import STOCK_URI, to, until
from tests.world import GUANGZHOU, SHANGHAI, ZONES

from cunho import Client, Operation, Refused, v1

#: Longest that a call may take, so that one whose answer never comes is soon sent again.
CALL_SECONDS = 3

#: Longest that a write may take from its first call to its answer. Nobody waits for it but a test that fails.
_WRITE_SECONDS = 90

#: How a call may be refused while the service, or the way to it, is out of order. It is sent again.
PASSING = {
    ("UNAVAILABLE", ""),  # nobody answered
    ("DEADLINE_EXCEEDED", ""),
    ("CANCELLED", ""),  # a process that was about to stop
    ("UNAVAILABLE", "DATABASE_UNAVAILABLE"),
    ("UNAVAILABLE", "SERVICE_STOPPING"),
    ("ABORTED", "TRANSACTION_CONFLICT"),
    ("DEADLINE_EXCEEDED", "CALL_TIMED_OUT"),
}

#: The rows of an account, each by its id, as the model of its writer has them.
_STORED = """
    SELECT image_id, 'image', name, state, ARRAY(
             SELECT recipient_account_id FROM image_share WHERE image_share.image_id = image.image_id)
      FROM image WHERE owner_account_id = $1
    UNION ALL SELECT instance_id, 'instance', '', state, '{}' FROM instance WHERE account_id = $1
    UNION ALL SELECT operation_id, 'operation', '', state, '{}' FROM operation WHERE account_id = $1
    UNION ALL SELECT request_id, 'request', method, '', '{}' FROM request_log WHERE account_id = $1
"""

Sql = Callable[..., list[tuple[Any, ...]]]


class Row(NamedTuple):
    """What is known of an image, an instance, an operation or a request."""

    kind: str
    name: str = ""
    state: str = ""
    shared_with: frozenset[str] = frozenset()


class Writer:
    """An account's only caller: one write after another, each repeated with its request id until it is answered.

    Args:
        neighbour: the account that it shares images with.
        seed: decides what it writes.
    Attributes:
        known: all that was acknowledged, by id, as it must be stored.
        refusals: how calls were refused, by code and reason.
    """

    def __init__(self, account_id: str, neighbour: str, seed: int) -> None:
        self.account_id, self.neighbour = account_id, neighbour
        self.known: dict[str, Row] = {}
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.writes = 0
        self._random = random.Random(seed)
        #: Images and instances that no operation has in its hands.
        self._free: set[str] = set()
        self._begun: list[tuple[Operation[Any], Callable[[Any], None]]] = []

    def run(self, client: Client, stopped: threading.Event) -> None:
        """Writes until stopped, and then until every operation has ended. Raises Refused if it should not have been."""
        self._client = client
        while not stopped.is_set():
            self._random.choice(self._choices())()
            if len(self._begun) > 2:
                self._settle()
        self._settle()

    def difference(self, sql: Sql) -> list[str]:
        """What is stored of the account and was not acknowledged so, and the other way round; a sentence for each."""
        rows = sql(_STORED, self.account_id)
        stored = {each: Row(kind, name, state, frozenset(shared_with)) for each, kind, name, state, shared_with in rows}
        return [
            f"{name} of {self.account_id}: acknowledged is {self.known.get(name)}, stored is {stored.get(name)}"
            for name in sorted({*stored, *self.known})
            if stored.get(name) != self.known.get(name)
        ]

    @property
    def progress(self) -> str:
        """How much it has written, and the operations that it waits for."""
        return f"{self.writes} writes, waiting for {[operation.name for operation, _ in self._begun]}"

    # --- calls

    def _write(self, method: str, **given: Any) -> Any:
        """The answer to a write, however often it had to be sent."""
        request_id = str(uuid4())
        call = partial(getattr(self._client, method), request_id=request_id, timeout_seconds=CALL_SECONDS, **given)
        answer = self._answer(call)
        self.known[request_id] = Row("request", method.title().replace("_", ""))
        self.writes += 1
        return answer

    def _answer(self, call: Callable[[], Any]) -> Any:
        end = time.monotonic() + _WRITE_SECONDS
        while True:
            try:
                return call()
            except Refused as refused:
                how = (refused.code.name, refused.reason)
                self.refusals[how] += 1
                if how not in PASSING or time.monotonic() > end:
                    raise

    def _begin(self, ended: Callable[[Any], None], method: str, **given: Any) -> None:
        """Begins an operation; `ended` takes what it made."""
        operation = self._write(method, **given)
        self._begun.append((operation, ended))
        self.known[operation.name.removeprefix("operations/")] = Row("operation", state="SUCCEEDED")

    def _settle(self) -> None:
        """Waits for the operations, each of which must succeed."""
        for operation, ended in self._begun:
            ended(self._answer(lambda: operation.result(_WRITE_SECONDS)))  # noqa: B023
        self._begun.clear()

    # --- writes

    def _choices(self) -> Sequence[Callable[[], None]]:
        """The writes that no rule refuses now."""
        images = [each for each in sorted(self._free) if self.known[each].kind == "image"]
        instances = [each for each in sorted(self._free) if self.known[each].kind == "instance"]
        choices: list[Callable[[], None]] = []
        if len(instances) < 3:
            choices.append(self._launch)
        if len(images) < 6:
            choices.append(self._import)
        choices += [partial(write, it) for write in (self._rename, self._toggle_share) for it in images]
        if len(images) > 3:
            choices += [partial(self._delete, it) for it in images]
        else:
            choices += [partial(self._copy, it) for it in images]
            choices += [partial(self._capture, it) for it in instances]
        if len(instances) > 1:
            choices += [partial(self._destroy, it) for it in instances]
        return choices

    def _name(self) -> str:
        return f"{self.account_id} {self.writes}"

    def _image_made(self, image: v1.Image) -> None:
        self.known[image.image_id] = Row("image", image.name, "AVAILABLE")
        self._free.add(image.image_id)

    def _import(self) -> None:
        self._begin(
            self._image_made,
            "import_image",
            region_id=GUANGZHOU,
            name=self._name(),
            uri=STOCK_URI,
            format=v1.ImportImageRequest.FORMAT_QCOW2,
            os=v1.OperatingSystem(family=v1.OsFamily.OS_FAMILY_LINUX, platform="debian", version="12"),
            architecture=v1.Architecture.ARCHITECTURE_X86_64,
            size_bytes=1 << 30,
            min_disk_bytes=8 << 30,
        )

    def _capture(self, instance_id: str) -> None:
        def captured(image: v1.Image) -> None:
            self._image_made(image)
            self._free.add(instance_id)

        self._free.discard(instance_id)
        self._begin(
            captured,
            "create_image",
            region_id=GUANGZHOU,
            instance_id=instance_id,
            name=self._name(),
            consistency=v1.CreateImageRequest.CONSISTENCY_CRASH_CONSISTENT,
        )

    def _copy(self, image_id: str) -> None:
        def copied(answer: v1.CopyImageResponse) -> None:
            (result,) = answer.results
            self.known[result.image.image_id] = Row("image", result.image.name, "AVAILABLE")
            self._delete(result.image.image_id)  # its place is needed again
            self._free.add(image_id)

        self._free.discard(image_id)
        (destination,) = to(SHANGHAI)
        destination.name = self._name()
        self._begin(copied, "copy_image", image_id=image_id, destinations=[destination])

    def _launch(self) -> None:
        def launched(answer: v1.CreateInstanceResponse) -> None:
            (instance,) = answer.instances
            self.known[instance.instance_id] = Row("instance", state="RUNNING")
            self._free.add(instance.instance_id)

        place: dict[str, Any] = {"region_id": GUANGZHOU, "zone_id": ZONES[GUANGZHOU], "instance_type": "S5.MEDIUM4"}
        image = self._answer(
            lambda: self._client.resolve_image(
                region_id=GUANGZHOU,
                family="debian-12",
                architecture=v1.Architecture.ARCHITECTURE_X86_64,
                timeout_seconds=CALL_SECONDS,
            )
        )
        self._begin(launched, "create_instance", image_id=image.image_id, **place)

    def _destroy(self, instance_id: str) -> None:
        def destroyed(_: v1.Instance) -> None:
            self.known[instance_id] = Row("instance", state="DELETED")

        self._free.discard(instance_id)
        self._begin(destroyed, "delete_instance", instance_id=instance_id)

    def _rename(self, image_id: str) -> None:
        name = self._name()
        self._write("update_image", image=v1.Image(image_id=image_id, name=name), update_mask=["name"])
        self.known[image_id] = self.known[image_id]._replace(name=name)

    def _toggle_share(self, image_id: str) -> None:
        shared_with = frozenset[str]() if self.known[image_id].shared_with else frozenset({self.neighbour})
        method = "share_image" if shared_with else "unshare_image"
        self._write(method, image_id=image_id, account_ids=[self.neighbour])
        self.known[image_id] = self.known[image_id]._replace(shared_with=shared_with)

    def _delete(self, image_id: str) -> None:
        self._free.discard(image_id)
        self._write("delete_image", image_id=image_id, force=True)
        self.known[image_id] = self.known[image_id]._replace(state="DELETED", shared_with=frozenset())


class Traffic:
    """Several writers at once.

    Args:
        connect: a new client of an account; of the operator, if that is its name.
    """

    def __init__(self, connect: Callable[[str], Client], writers: int = 4, *, seed: int = 1):
        self._connect = connect
        names = [f"acc-{uuid4().hex[:10]}" for _ in range(writers)]
        self.writers = [
            Writer(name, neighbour, seed + number)
            for number, (name, neighbour) in enumerate(zip(names, names[1:] + names[:1], strict=True))
        ]
        with connect("operator") as operator:
            for name in names:
                operator.register_account(account_id=name, region_ids=[*ZONES])
        self._running: list[Future[None]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """The writers write within the block; on leaving, every call has been answered and every operation has ended.

        Raises Refused if a call was refused that should not have been.
        """
        stopped = threading.Event()
        with ThreadPoolExecutor(len(self.writers)) as threads:
            self._running = [threads.submit(self._run, each, stopped) for each in self.writers]
            try:
                yield
            finally:
                stopped.set()
        for each in self._running:
            each.result()

    def go_on(self, writes: int = 5) -> None:
        """Waits until each writer has written so much more. Raises Refused if one cannot."""
        wanted = [each.writes + writes for each in self.writers]

        def have_written() -> bool:
            for each in self._running:
                if each.done():
                    each.result()
            return all(writer.writes >= number for writer, number in zip(self.writers, wanted, strict=True))

        try:
            until(have_written, _WRITE_SECONDS)
        except TimeoutError as error:
            told = [each.progress for each in self.writers]
            error.add_note(f"wanted {wanted}: {told}; refused meanwhile: {dict(self.refusals)}")
            raise

    @property
    def writes(self) -> int:
        """How many writes were acknowledged."""
        return sum(each.writes for each in self.writers)

    @property
    def refusals(self) -> Counter[tuple[str, str]]:
        """How calls were refused, by code and reason."""
        return sum((each.refusals for each in self.writers), Counter[tuple[str, str]]())

    def differences(self, sql: Sql) -> list[str]:
        """What is stored that nobody was told, and what was acknowledged and is not stored so; a sentence for each."""
        return [sentence for each in self.writers for sentence in each.difference(sql)]

    def _run(self, writer: Writer, stopped: threading.Event) -> None:
        with self._connect(writer.account_id) as client:
            writer.run(client, stopped)
