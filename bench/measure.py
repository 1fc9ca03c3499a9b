"""Measurements: what a call costs beside its limit, round by round, so that noise on the machine hits all alike."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from bench.calls import Call
from bench.child import Child, child
from bench.echo import Echo
from bench.installation import Installation
from bench.load import Lane, Load, Loaded
from bench.machine import cpu_seconds
from bench.statements import Ran, Script

#: Connections of the callers when a call is compared with its limit, and of the bare statements: what a server has.
CALLERS, STATEMENT_CONNECTIONS = 32, 16

#: What comes before a measurement, if that is not shorter itself.
_WARM_UP_SECONDS_MAX = 0.2

#: More requests than a server of one process answers in a second, and those of a connection on top.
_REQUESTS_PER_SECOND, _REQUESTS_MORE = 3000, 20


class WrongAnswer(Exception):
    """The server did not answer as it should: nothing that was measured counts."""


class Cost(NamedTuple):
    """CPU time of a call, in microseconds."""

    server: float
    postgresql: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.server + self.postgresql


def _typical(costs: Sequence[Cost]) -> Cost:
    """The medians of what several rounds cost."""
    return Cost(median(cost.server for cost in costs), median(cost.postgresql for cost in costs))


@dataclass
class Sample:
    """What a load of calls came to."""

    connections: int
    rates: list[float] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    load_shares: list[float] = field(default_factory=list)

    def add(self, loaded: Loaded, cost: Cost) -> None:
        """Adds one round."""
        self.rates.append(loaded.calls / loaded.seconds)
        self.costs.append(cost)
        self.latencies.extend(loaded.latencies)
        self.load_shares.append(loaded.cpu_seconds / loaded.seconds)

    @property
    def calls_per_second(self) -> float:
        """Calls answered in a second."""
        return median(self.rates)

    @property
    def cost(self) -> Cost:
        """What a call cost."""
        return _typical(self.costs)

    @property
    def load_share(self) -> float:
        """How much of a core the load generator took."""
        return median(self.load_shares)

    def latency_ms(self, quantile: float) -> float:
        """The quantile of how long answers took: 0.99 for what 99 of 100 did not exceed."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


class Compared(NamedTuple):
    """A call beside its limit, in as many rounds."""

    call: Call
    ours: Sample
    echo: Sample
    statements: Sequence[Cost]

    @property
    def statement(self) -> Cost:
        """What the bare statements cost."""
        return _typical(self.statements)

    @property
    def limit_us(self) -> float:
        """The least that the call could cost: the bare gRPC and the bare statements."""
        return self.echo.cost.server + self.statement.total

    @property
    def ratio(self) -> float:
        """How many times the limit the call costs.

        Of each round by itself: a machine is as fast in all of a round, and not in all rounds.
        """
        rounds = zip(self.ours.costs, self.echo.costs, self.statements, strict=True)
        return median(ours.total / (echo.server + statement.total) for ours, echo, statement in rounds)


class Bench:
    """Measures calls of an installation."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._scene = installation.scene

    def compare(self, call: Call, *, rounds: int, seconds: float) -> Compared:
        """The call beside its limit: in each round the echo, the call, the statements."""
        compared = Compared(call, Sample(CALLERS), Sample(CALLERS), statements := [])
        with self._echo(call, CALLERS, seconds) as (server, load):
            for _ in range(rounds):
                self._add(compared.echo, call, load, server.number)
                self.add(compared.ours, call, seconds)
                statements.append(self._stated(call, seconds))
        return compared

    def sample(self, call: Call, connections: int, *, seconds: float, rate: float | None = None) -> Sample:
        """The call by so many connections; at a rate, or as often as it is answered."""
        sample = Sample(connections)
        self.add(sample, call, seconds, rate=rate)
        return sample

    def sample_echo(self, call: Call, connections: int, *, seconds: float, rate: float) -> Sample:
        """A bare echo of the call, at a rate: what the machine itself makes of how long calls take."""
        sample = Sample(connections)
        with self._echo(call, connections, seconds) as (server, load):
            self._add(sample, call, load._replace(rate=rate), server.number)
        return sample

    def add(self, sample: Sample, call: Call, seconds: float, *, rate: float | None = None) -> None:
        """Adds a round of the call to the sample. Raises WrongAnswer."""
        load = self._load_of(call, sample.connections, seconds)._replace(rate=rate)
        self._add(sample, call, load, self._installation.server.process.pid)

    def _add(self, sample: Sample, call: Call, load: Load, server: int) -> None:
        postgresql = self._installation.postgresql
        loaded: Loaded
        loaded, *used = self._measured(
            self._installation.load, load, lambda: cpu_seconds(server), lambda: cpu_seconds(postgresql)
        )
        _check(call, loaded)
        sample.add(loaded, Cost(*(1e6 * each / loaded.calls for each in used)))

    def _load_of(self, call: Call, connections: int, seconds: float) -> Load:
        most = _REQUESTS_MORE + int((seconds + _warm_up(seconds)) * _REQUESTS_PER_SECOND / connections)
        lanes = [
            Lane(account.token, [each.SerializeToString() for each in call.requests(self._scene, account, most)])
            for account in self._scene.accounts(connections)
        ]
        return Load(
            self._scene.port,
            call.path,
            lanes,
            seconds,
            _warm_up(seconds),
            once=bool(call.request_id_tag),
            request_id_tag=call.request_id_tag,
        )

    def _stated(self, call: Call, seconds: float) -> Cost:
        lanes = [call.arguments(self._scene, account) for account in self._scene.accounts(STATEMENT_CONNECTIONS)]
        script = Script(self._scene.dsn, call.statements, lanes, seconds, _warm_up(seconds))
        ran: Ran
        ran, used = self._measured(
            self._installation.statements, script, lambda: cpu_seconds(self._installation.postgresql)
        )
        return Cost(1e6 * ran.cpu_seconds / ran.calls, 1e6 * used / ran.calls)

    def _measured(self, who: Child, what: object, *clocks: Callable[[], float]) -> tuple[Any, ...]:
        """What a child says that it did, and how far each clock went meanwhile."""
        who.ask(what)  # it is warm now
        before = [clock() for clock in clocks]
        done = who.ask("go")
        return done, *(clock() - begin for clock, begin in zip(clocks, before, strict=True))

    @contextmanager
    def _echo(self, call: Call, connections: int, seconds: float) -> Iterator[tuple[Child, Load]]:
        """A bare server that answers what the server answered to one request, and the load of that request."""
        (account,) = self._scene.accounts(1)
        request, *_ = call.requests(self._scene, account, 1)
        answer = self._scene.answer(call.path, account, request, call.answer)
        lanes = [Lane(account.token, [request.SerializeToString()])] * connections
        with child("echo", self._installation.cores.server) as echo:
            port = echo.ask(Echo(call.path, call.request, answer))
            yield echo, Load(port, call.path, lanes, seconds, _warm_up(seconds), request_id_tag=call.request_id_tag)


def _warm_up(seconds: float) -> float:
    """How long to call before a measurement of so many seconds."""
    return min(_WARM_UP_SECONDS_MAX, seconds)


def _check(call: Call, loaded: Loaded) -> None:
    """Raises WrongAnswer if any answer was an error, or one of those that were kept is not right."""
    if loaded.errors:
        raise WrongAnswer(f"{call.name}: {loaded.errors} of {loaded.calls} calls failed, the first with {loaded.error}")
    if not loaded.calls:
        raise WrongAnswer(f"{call.name}: nothing was left to ask for")
    for data in loaded.answers:
        if not call.right(answer := call.answer.FromString(data)):
            raise WrongAnswer(f"{call.name}: this is not what was asked for: {answer}")
