"""Who gets in, and what a key's bearer may still use."""

import asyncio
import hashlib
import logging
from contextlib import nullcontext
from pathlib import Path

import pytest

from glm_cluster.api.access import Access
from glm_cluster.api.account import Account
from glm_cluster.api.callers import Caller, Callers, safe_id
from glm_cluster.config import Limits
from glm_cluster.errors import ConfigError, Overloaded, PermissionDenied, RateLimited, Unauthenticated
from glm_cluster.keys import ApiKey
from glm_cluster.metrics import NoMeters


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(clock: Clock) -> Access:
    return Access(meters=NoMeters(), clock=clock)


def bearer(**budgets) -> Caller:
    key = ApiKey(name="ada", sha256=hashlib.sha256(b"secret").hexdigest(), **budgets)
    return Caller(request_id="r", key=key)


def run(access: Access, caller: Caller, num_prompt: int = 1, max_tokens: int = 0) -> None:
    with access.request("http", "chat", caller) as account:
        account.admit(model="m", num_prompt_tokens=num_prompt, max_tokens=max_tokens)


def test_requests_flow_back_at_a_steady_rate(access: Access, clock: Clock):
    caller = bearer(requests_per_minute=3)
    for _ in range(3):
        run(access, caller)
    with pytest.raises(RateLimited) as caught:
        run(access, caller)
    assert caught.value.retry_after_s == 20
    clock.now = 19.9
    with pytest.raises(RateLimited):
        run(access, caller)
    clock.now = 20.0
    run(access, caller)


def test_tokens_are_reserved_and_what_was_not_used_is_given_back(access: Access, clock: Clock):
    caller = bearer(tokens_per_minute=100)
    with access.request("http", "chat", caller) as account:
        account.admit(model="m", num_prompt_tokens=10, max_tokens=70)
        with pytest.raises(RateLimited, match="100 tokens a minute"):
            run(access, caller, num_prompt=30)
    run(access, caller, num_prompt=90)  # 10 were used
    with pytest.raises(RateLimited):
        run(access, caller, num_prompt=1)


def test_what_was_used_without_a_budget_is_not_charged_to_a_later_one(access: Access):
    run(access, bearer(), num_prompt=100_000)
    run(access, bearer(tokens_per_minute=100), num_prompt=100)


def test_a_request_of_more_than_a_minute_takes_the_whole_budget(access: Access, clock: Clock):
    """Without max_tokens a request could use all of the model's length; it must be able to run all the same."""
    caller = bearer(tokens_per_minute=100)
    run(access, caller, num_prompt=5, max_tokens=100_000)
    with pytest.raises(RateLimited) as caught:
        run(access, caller, num_prompt=5, max_tokens=100_000)
    assert caught.value.retry_after_s == 3


def test_concurrent_requests_are_counted_until_they_end(access: Access):
    caller = bearer(max_concurrent=1)
    with access.request("grpc", "chat", caller), pytest.raises(RateLimited, match="wait for one to end"):
        run(access, caller)
    run(access, caller)


def test_a_refused_request_uses_nothing(access: Access, clock: Clock):
    caller = bearer(tokens_per_minute=100, models=("m",))
    with pytest.raises(PermissionDenied), access.request("http", "chat", caller) as account:
        account.admit(model="other", num_prompt_tokens=60, max_tokens=0)
    run(access, caller, num_prompt=100)


def test_keys_have_budgets_of_their_own(access: Access):
    other = Caller(request_id="r", key=ApiKey(name="b", sha256="0" * 64, requests_per_minute=1))
    caller = bearer(requests_per_minute=1)
    run(access, caller)
    run(access, other)
    for one in (caller, other):
        with pytest.raises(RateLimited):
            run(access, one)


def test_a_changed_entry_keeps_what_was_spent(access: Access):
    run(access, bearer(requests_per_minute=1))
    run(access, bearer(requests_per_minute=2))
    with pytest.raises(RateLimited):
        run(access, bearer(requests_per_minute=2))


def test_all_callers_together_have_a_limit():
    access = Access(meters=NoMeters(), limits=Limits(max_concurrent_requests=1))
    with (
        access.request("http", "chat", Caller.unknown()),
        pytest.raises(Overloaded, match="all that this server takes"),
    ):
        run(access, Caller.unknown())
    run(access, Caller.unknown())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1", "abc-1"),
        ("a" * 128, "a" * 128),
        ("a" * 129, None),
        ("", None),
        ("a b", None),
        ("a\nb", None),
        (None, None),
    ],
)
def test_only_harmless_ids_are_shown_again(given: str | None, kept: str | None):
    assert safe_id(given) == kept


def test_a_key_keeps_its_cache_apart():
    anyone, ada = Caller.unknown(), bearer()
    bob = Caller(request_id="r", key=ApiKey(name="bob", sha256="0" * 64))
    assert anyone.cache_salt(None) is None
    assert anyone.cache_salt("s") == "s"
    salts = [caller.cache_salt(given) for caller in (ada, bob) for given in (None, "s")]
    assert len(set(salts)) == 4
    assert ada.cache_salt("s") == bearer().cache_salt("s")
    assert ada.key is not None
    assert ada.key.sha256 not in salts


def entry(name: str, secret: str) -> str:
    """A line as long as its name: files written within one tick of the clock differ by their length."""
    return f"- {{name: {name}, sha256: {hashlib.sha256(secret.encode()).hexdigest()}}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(entry("ada", "one"))
    return path


def name(callers: Callers, secret: str) -> str | None:
    found = callers.identify([b"Bearer " + secret.encode()], Caller.unknown())
    return found.key and found.key.name


@pytest.mark.parametrize(
    "given",
    [[], [b""], [b"Bearer"], [b"Bearer "], [b"one"], [b"Basic one"], [b"Bearer two"], [b"Bearer one", b"Bearer one"]],
)
def test_nothing_but_one_key_gets_in(given: list[bytes], file: Path):
    with pytest.raises(Unauthenticated):
        Callers(file).identify(given, Caller.unknown())


async def test_a_changed_file_is_taken_up(file: Path):
    callers = Callers(file)
    assert name(callers, "one") == "ada"
    file.write_text(entry("bobby", "second"))
    await callers.refresh()
    assert name(callers, "second") == "bobby"
    with pytest.raises(Unauthenticated):
        name(callers, "one")


async def test_a_file_that_could_not_be_read_is_read_again_though_it_looks_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path) -> tuple[ApiKey, ...]:
        raise ConfigError("permission denied")

    callers = Callers(file)
    file.write_text(entry("bobby", "second"))
    with monkeypatch.context() as patched:
        patched.setattr("glm_cluster.api.callers.read_keys", refuse)
        await callers.refresh()
        assert name(callers, "one") == "ada"
    await callers.refresh()
    assert name(callers, "second") == "bobby"


async def test_no_fault_ends_the_watch(file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def fail(path: Path) -> tuple[ApiKey, ...]:
        raise ZeroDivisionError

    callers = Callers(file)
    file.write_text(entry("bobby", "second"))
    monkeypatch.setattr("glm_cluster.api.callers.read_keys", fail)
    await callers.refresh()
    assert "stay as they were" in caplog.text


@pytest.mark.parametrize(("lowest", "asked", "may"), [(0, 0, True), (0, 5, True), (0, -1, False), (-3, -3, True)])
def test_only_some_keys_may_go_before_others(lowest: int, asked: int, may: bool):
    caller = bearer(lowest_priority=lowest)
    with nullcontext() if may else pytest.raises(PermissionDenied, match=f"may ask for {lowest} or more"):
        caller.check_priority(asked)
    Caller(request_id="r").check_priority(-5)


@pytest.mark.parametrize("content", ["- {name: a", "- {name: 2024-13-01}", None])
async def test_a_broken_file_changes_nothing_and_is_logged(
    content: str | None, file: Path, caplog: pytest.LogCaptureFixture
):
    callers = Callers(file)
    file.unlink()
    if content is not None:
        file.write_text(content)
    with caplog.at_level(logging.ERROR):
        await callers.refresh()
    assert "stay as they were" in caplog.text
    assert name(callers, "one") == "ada"


async def test_the_watch_ends_where_there_is_nothing_to_watch():
    await asyncio.wait_for(Callers().watch(), 1)


def test_an_account_is_settled_by_whoever_opened_it(access: Access):
    with access.request("http", "chat", bearer(tokens_per_minute=5)) as account:
        assert isinstance(account, Account)
