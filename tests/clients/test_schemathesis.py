"""Every route of a live cluster under requests made from its own OpenAPI document, right and wrong ones.

No answer is a 5xx, and every answer is as the document says. That some requests of the right shape are refused (two
limits that differ, a prompt that is too long) is no fault: a schema cannot say everything.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.cluster import RunningCluster

MOST_TOKENS = 4  # of an answer; most that is asked for is too long to wait for
LIMITS = ("max_tokens", "max_completion_tokens")


@pytest.fixture(scope="session")
def api(cluster: RunningCluster) -> Any:
    """The document, read from the server."""
    return schemathesis.openapi.from_url(f"{cluster.http_url}/openapi.json")


document = schemathesis.pytest.from_fixture("api")


def shortened(body: Any) -> Any:
    """The same request for fewer tokens; what is wrong with it stays wrong."""
    if not isinstance(body, dict) or not {"messages", "prompt"} & body.keys():
        return body
    given = {name: MOST_TOKENS for name in LIMITS if is_limit(body.get(name))}
    return {**body, **(given or ({"max_tokens": MOST_TOKENS} if body.get("max_tokens") is None else {}))}


def is_limit(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


@document.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_no_request_makes_it_fail(case: Any) -> None:
    if case.operation.path.endswith("completions"):
        case.body = shortened(case.body)
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
