"""No message, whatever is in it and around it, meets a bug: generated ones by the thousand, and all that ever met one.

A finding is printed as the message that it is: put it into FOUND, and it is sent in every run from then on.
"""

import asyncio
import hmac
import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from grpc import StatusCode
from tests import world as worlds
from tests.end_to_end.requests_of import Answer
from tests.robustness import fuzz
from tests.robustness.forging import forgeries
from tests.robustness.fuzz import Plan, Report, fuzzed, run, sent
from tests.robustness.messages import HEALTH, REFLECTION, Caller, Message
from tests.robustness.scale import scaled
from tests.robustness.verdicts import faults
from tests.server_process import Server, serving
from tests.world import ZONES, Postgres, World

from cunho_rules import filters, shapes
from cunho_rules.refusals import Reason, Refusal
from cunho_server import answering, keys, page_tokens, shape, tokens
from cunho_server.settings import Settings
from cunho_server.tokens import Signer
from cunho_storage import operations

#: FUZZ_MESSAGES names another number.
MESSAGES = int(os.environ.get("FUZZ_MESSAGES") or scaled(10_000, 1_000_000))
#: How many send them. One is this process.
SENDERS = scaled(1, 2)
#: Another one in each long run; FUZZ_SEED repeats one.
SEED = int(os.environ.get("FUZZ_SEED") or scaled(1, int.from_bytes(os.urandom(3), "big")))

#: What a process may grow by, once it has answered a tenth: tokens, statements and the like are kept up to some number.
GROWTH_BYTES = 128 << 20


def callers(server: Server) -> list[Caller]:
    """Accounts, one of which is not registered, the operator, and a service that acts for the first account."""
    signer = Signer(keys.private_key(server.data_dir / "development-key.pem"), Settings.model_validate({}))

    def token(subject: str, role: Any = "account", **more: Any) -> str:
        return signer.token(subject, role, seconds=24 * 3600, **more)

    accounts = [f"acc-{number:010}" for number in range(1, 6)]
    for account_id in accounts[:4]:
        server.client("operator").register_account(account_id=account_id, region_ids=[*ZONES])
    service = Caller(accounts[0], token("deployer", "service", acts_for=["*"]), acting=True)
    return [*(Caller(each, token(each)) for each in accounts), Caller("", token("operator", "operator")), service]


def strangers() -> list[str]:
    """Headers of those who sign with keys of their own, or do not sign at all."""
    return [f"Bearer {token}" for token in forgeries(int(time.time())).values()]


def resident_bytes(process: int) -> int:
    """Memory that a process has."""
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(kib) << 10


def told(report: Report) -> str:
    """The report in words."""
    counts = {name: counted for name, counted in vars(report).items() if name != "findings"}
    lines = [f"{name}: {dict(counted.most_common())}" for name, counted in counts.items()]
    return "\n\n".join((f"seed {SEED}, {sum(report.sent.values())} messages", *lines, *report.findings))


def test_no_message_whatever_meets_a_bug(postgres: Postgres, tmp_path: Path) -> None:
    dsn = postgres.database()
    with serving(tmp_path / "data", DATABASE_URL=dsn, PROCESSES=2) as server:
        plan = Plan(server.address, callers(server), strangers(), MESSAGES // 10, SEED)
        report = fuzzed(plan, SENDERS)
        sizes = {process: resident_bytes(process) for process in server.processes()}
        report.add(fuzzed(plan._replace(messages=MESSAGES - MESSAGES // 10, seed=SEED + 1), SENDERS))
        print(told(report))
        assert not report.findings, told(report)
        assert server.processes() == [*sizes]
        grown = {process: resident_bytes(process) - size for process, size in sizes.items()}
        assert max(grown.values()) < GROWTH_BYTES, grown
        assert "Traceback" not in server.log
        assert "bug in" not in server.log
        assert_sound(server, dsn)
    assert_all_sorts(report)


def assert_sound(server: Server, dsn: str) -> None:
    """The database is, as `cunho-server check` finds it."""
    environment = os.environ | {"CUNHO_DATABASE_URL": dsn, "CUNHO_DATA_DIR": str(server.data_dir)}
    command = [sys.executable, "-m", "cunho_server", "check"]
    checked = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def assert_all_sorts(report: Report) -> None:
    """Every method was called, and calls got to where something is done, or refused for a reason of the domain."""
    assert len(report.sent) > 45
    assert min(report.sent[path] for path in (*HEALTH, *REFLECTION)) > 10
    assert report.answered["OK"] > MESSAGES // 10
    assert len(report.reasons) > 30


# --- what was found

#: Messages that met a bug, with what was wrong; none of them needs credentials or anything that is there.
FOUND = {
    "UNKNOWN, with the exception's text": [
        Message(path, data) for path in (*HEALTH, *REFLECTION) for data in (b"\xff", b"\x0a\x01\xff", b"\x0f")
    ],
    "no answer until the deadline": [Message(path, b"", times=0) for path in HEALTH],
}


@pytest.mark.parametrize("what", FOUND)
async def test_what_once_met_a_bug_meets_none(world: World, what: str) -> None:
    async with grpc.aio.insecure_channel(world.address) as channel:
        for message in FOUND[what]:
            assert faults(message, await sent(channel, message)) == []


# --- whether it finds what there is to find


async def test_what_the_client_says_in_place_of_the_service_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Answer(StatusCode.INTERNAL, b"", "Internal error from Core", ())
    answers = iter([own, own, Answer(StatusCode.OK, b"", "", ())])

    async def sent_once(channel: object, message: object) -> Answer:
        return next(answers, own)

    monkeypatch.setattr(fuzz, "_sent_once", sent_once)
    channel: Any = None
    assert (await sent(channel, Message("/nope", b""))).code is StatusCode.OK
    assert await sent(channel, Message("/nope", b"")) == own, "who never says anything else is told of"


def _unchecked(request: Any) -> None:
    """No refusal, whatever the shape of the request."""


def _uncaught(parse: Any, data: Any) -> Any:
    """The request; raises what bytes that are none raise."""
    return parse(data)


def _as_it_is(field: filters.Time, text: str) -> datetime:
    """The time, whatever its form and its offset."""
    return datetime.fromisoformat(text)


def _unverified(token: str, key: Any, settings: Any) -> dict[str, Any]:
    """The claims, whoever signed them."""
    return dict(jwt.decode(token, options={"verify_signature": False}))


def _with_its_place(problem: str) -> Refusal:
    """A refusal that tells where in the server it was made."""
    return Refusal(Reason.INVALID_PAGE_TOKEN, problem=f"{problem} ({__file__})")


async def _never(*arguments: object) -> None:
    await asyncio.Event().wait()


#: Where each is planted, and what is told of it.
PLANTED: dict[str, tuple[Any, str, Any, str]] = {
    "the shape of requests is not checked": (shape, "refusal", _unchecked, "INTERNAL"),
    "bytes that are no message are not caught": (answering, "_parsed", _uncaught, "INTERNAL"),
    "times in filters are taken as they are": (filters.Time, "value", _as_it_is, "INTERNAL"),
    "signatures of tokens are not verified": (tokens, "_signed_claims", _unverified, "for wrong credentials"),
    "page tokens are not bound to anything": (hmac, "compare_digest", lambda *_: True, "INTERNAL|to be refused"),
    "a refusal tells where it was made": (page_tokens, "_refused", _with_its_place, r"it says \.py"),
    "a call never ends": (operations, "get", _never, "DEADLINE_EXCEEDED"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_bug_is_found(postgres: Postgres, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    where, name, bug, seen = PLANTED[what]
    with worlds.world(postgres, call_seconds_max=2) as world:
        tenants = [world.tenant() for _ in range(2)]
        by = [Caller(tenant.account_id, world.token(tenant.account_id)) for tenant in tenants]
        monkeypatch.setattr(where, name, bug)
        report = run(Plan(world.address, by, strangers(), 20_000, SEED, sought=seen))
    assert re.search(seen, "".join(report.findings)), told(report)
    for language in (shapes.image_filter, shapes.instance_filter, shapes.operation_filter):
        parse: Any = language.parse
        parse.cache_clear()  # of what was parsed with the bug
