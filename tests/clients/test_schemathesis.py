"""Every route of a live cluster under requests made from its own OpenAPI document, right and wrong ones.

No answer is a 5xx, and every answer is as the document says. That some requests of the right shape are refused (two
limits that differ, a prompt that is too long) is no fault: a schema cannot say everything.
"""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from support.cluster import RunningCluster

from glm_cluster.api.openapi import OPERATIONS

MOST_TOKENS = 4  # of an answer; most that is asked for is too long to wait for
LIMITS = ("max_tokens", "max_completion_tokens")


@pytest.fixture(scope="session")
def api(cluster: RunningCluster) -> Any:
    """The document, read from the server."""
    return schemathesis.openapi.from_url(f"{cluster.http_url}/openapi.json")


def shortened(body: Any) -> Any:
    """The same request for fewer tokens; what is wrong with it stays wrong."""
    if not isinstance(body, dict) or not {"messages", "prompt"} & body.keys():
        return body
    given = {name: MOST_TOKENS for name in LIMITS if is_limit(body.get(name))}
    return {**body, **(given or ({"max_tokens": MOST_TOKENS} if body.get("max_tokens") is None else {}))}


def is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31


RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
ROUTES = [(path, operation) for operation in OPERATIONS for path in operation.paths]
CASES = [(path, operation.method, RIGHT) for path, operation in ROUTES]
CASES += [(path, operation.method, WRONG) for path, operation in ROUTES if operation.request is not None]


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_no_request_makes_it_fail(api: Any, path: str, method: str, mode: schemathesis.GenerationMode) -> None:
    operation = api[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def answered_as_described(case: Any) -> None:
        if path.endswith("completions"):
            case.body = shortened(case.body)
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    answered_as_described()
