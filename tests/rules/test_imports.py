"""Which URIs may be imported: https, an allowed host by its plain name, and nothing that could be read otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cunho_rules.imports import uri_problem

ALLOWED = ("images.example.org", "*.mirror.example")


@pytest.mark.rule("CUS-10")
@pytest.mark.parametrize(
    "uri",
    [
        "https://images.example.org/web.qcow2",
        "https://images.example.org:443/web.qcow2?version=2#part",
        "https://images.example.org:/web.qcow2",
        "HTTPS://Images.Example.ORG/web.qcow2",
        "https://images.example.org",
        "https://eu.mirror.example/web.qcow2",
        "https://a-1.b.mirror.example/web.qcow2",
        "https://images.example.org/@evil.example/web.qcow2",
        "https://images.example.org/web.qcow2?from=https://evil.example",
    ],
)
def test_an_https_uri_of_an_allowed_host_is_imported(uri: str) -> None:
    assert uri_problem(uri, ALLOWED) is None


@pytest.mark.rule("CUS-10")
@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        # another scheme
        ("http://images.example.org/web", 'its scheme is "http", not "https"'),
        ("file:///etc/shadow", 'its scheme is "file", not "https"'),
        ("ftp://images.example.org/web", 'its scheme is "ftp", not "https"'),
        ("javascript:alert(1)", 'its scheme is "javascript", not "https"'),
        ("//images.example.org/web", 'its scheme is "", not "https"'),
        ("images.example.org/web", 'its scheme is "", not "https"'),
        ("/etc/shadow", 'its scheme is "", not "https"'),
        ("", 'its scheme is "", not "https"'),
        # credentials, and hosts that hide behind them
        ("https://user:password@images.example.org/web", "it carries credentials"),
        ("https://user@images.example.org/web", "it carries credentials"),
        ("https://@images.example.org/web", "it carries credentials"),
        ("https://:@images.example.org/web", "it carries credentials"),
        ("https://images.example.org@evil.example/web", "it carries credentials"),
        ("https://evil.example\\@images.example.org/web", "it carries credentials"),
        # no host, or one that cannot be read
        ("https:///web", "it names no host"),
        ("https:images.example.org/web", "it names no host"),
        ("https://:443/web", "it names no host"),
        ("https://[::1/web", "it is not a well-formed URI"),
        ("https://images.example.org:port/web", "it is not a well-formed URI"),
        ("https://images.example.org:99999/web", "it is not a well-formed URI"),
        ("https://evil.example\uff0f.mirror.example/web", "it is not a well-formed URI"),
        # another port
        ("https://images.example.org:80/web", "its port is 80, not 443"),
        ("https://images.example.org:0/web", "its port is 0, not 443"),
        ("https://images.example.org:8443/web", "its port is 8443, not 443"),
        # a host that is not allowed, or only looks so
        ("https://evil.example/web", 'host "evil.example" is not allowed'),
        ("https://images.example.org.evil.example/web", 'host "images.example.org.evil.example" is not allowed'),
        ("https://evilimages.example.org/web", 'host "evilimages.example.org" is not allowed'),
        ("https://evil.example#@images.example.org/web", 'host "evil.example" is not allowed'),
        ("https://evil.example?@images.example.org/web", 'host "evil.example" is not allowed'),
        ("https://images.example.org./web", 'host "images.example.org." is not allowed'),
        ("https://images.example.org%2f@evil.example/web", "it carries credentials"),
        ("https://images.example.org\\.evil.example/web", 'host "images.example.org\\.evil.example" is not allowed'),
        ("https://images\u3002example\u3002org/web", 'host "images\u3002example\u3002org" is not allowed'),
        ("https://mirror.example/web", 'host "mirror.example" is not allowed'),
        ("https://evilmirror.example/web", 'host "evilmirror.example" is not allowed'),
        ("https://.mirror.example/web", 'host ".mirror.example" is not allowed'),
        ("https://a..mirror.example/web", 'host "a..mirror.example" is not allowed'),
        ("https://evil.example%2f.mirror.example/web", 'host "evil.example%2f.mirror.example" is not allowed'),
        ("https://evil.example\\.mirror.example/web", 'host "evil.example\\.mirror.example" is not allowed'),
        ("https://evil.example .mirror.example/web", 'host "evil.example .mirror.example" is not allowed'),
        ("https://b\u00fccher.mirror.example/web", 'host "b\u00fccher.mirror.example" is not allowed'),
        ("https://*.mirror.example/web", 'host "*.mirror.example" is not allowed'),
        # this machine and its surroundings
        ("https://localhost/web", 'host "localhost" is not allowed'),
        ("https://127.0.0.1/web", 'host "127.0.0.1" is not allowed'),
        ("https://2130706433/web", 'host "2130706433" is not allowed'),
        ("https://0x7f000001/web", 'host "0x7f000001" is not allowed'),
        ("https://[::1]/web", 'host "::1" is not allowed'),
        ("https://[::ffff:127.0.0.1]/web", 'host "::ffff:127.0.0.1" is not allowed'),
        ("https://169.254.169.254/latest/meta-data", 'host "169.254.169.254" is not allowed'),
    ],
)
def test_any_other_uri_is_refused_with_what_is_wrong_with_it(uri: str, problem: str) -> None:
    assert uri_problem(uri, ALLOWED) == problem


@pytest.mark.rule("CUS-10")
def test_where_no_host_is_allowed_nothing_is_imported() -> None:
    assert uri_problem("https://images.example.org/web", ()) == 'host "images.example.org" is not allowed'


def test_a_problem_does_not_quote_a_whole_host() -> None:
    problem = uri_problem(f"https://{'a' * 2000}.example/", ALLOWED)
    assert problem is not None
    assert len(problem) < 200


@given(st.text(), st.sampled_from(["", "https://", "https://images.example.org", "https://a.mirror.example"]))
def test_any_text_is_judged(text: str, start: str) -> None:
    problem = uri_problem(start + text, ALLOWED)
    assert problem is None or problem
    if problem is None:
        assert (start + text).lstrip().lower().startswith("https:")
