"""A primary killed under traffic: its synchronous standby has every acknowledged write, and the service goes on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.end_to_end.steps import until
from tests.robustness.faults import Recoveries, Replicated, assert_whole
from tests.robustness.scale import scaled
from tests.robustness.writers import Traffic
from tests.storage.clusters import Pair, clusters
from tests.world import Postgres

from cunho import Refused


@contextmanager
def replicated(postgres: Postgres) -> Iterator[Replicated]:
    """A server over a new pair."""
    with ExitStack() as undo:
        made = undo.enter_context(clusters(programs_in=postgres.folder / "data"))
        (folder := made.folder / "server").mkdir()
        service = Replicated(folder / "data", Pair(made, undo))
        undo.callback(service.stop)
        yield service


def test_every_acknowledged_write_is_on_the_standby_that_takes_over(
    postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    recoveries = Recoveries()
    for _ in range(scaled(1, 10)):
        with replicated(postgres) as service:
            traffic = Traffic(service.connect)
            with traffic.running():
                traffic.go_on(10)
                service.pair.primary.kill()
                service.fail_over()
                with recoveries.measured("failover", service, traffic):
                    pass  # the fault ended when the standby was the primary
                traffic.go_on(10)
            assert_whole(service, traffic)
    with capsys.disabled():
        print(f"\n{recoveries}")


def test_where_the_primary_answers_before_the_standby_has_a_write_it_is_seen_to_be_lost(postgres: Postgres) -> None:
    with replicated(postgres) as service:
        pair, traffic, refusals = service.pair, Traffic(service.connect), list[Refused]()
        pair.primary.sql("ALTER SYSTEM RESET synchronous_standby_names")
        pair.primary.sql("SELECT pg_reload_conf()")
        pair.standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
        pair.standby.sql("SELECT pg_reload_conf()")
        until(lambda: not pair.primary.sql("SELECT FROM pg_stat_replication"), 20)
        try:
            with traffic.running():
                traffic.go_on(5)
                pair.primary.kill()
                service.fail_over()
        except Refused as refused:  # what it began, and even its account, is not there any more
            refusals.append(refused)
        assert refusals or traffic.differences(service.sql)
