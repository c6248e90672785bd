"""What Serve asks of a router and tells it, and what our router makes of it."""

from dataclasses import asdict, dataclass, field
from types import SimpleNamespace

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from glm_cluster.deploy import routing
from glm_cluster.deploy.channel import Submission
from glm_cluster.deploy.routers import known_loads
from glm_cluster.deploy.routing import GlmRequestRouter
from glm_cluster.records import GenerationRequest, ReplicaLoad, SamplingParams

DEPLOYMENT = DeploymentID(name="GlmReplica")


@dataclass
class Replica:
    """As much of Serve's RunningReplica as a router may look at."""

    name: str
    stats: dict[str, object] = field(default_factory=dict)
    looks: int = 0

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, DEPLOYMENT)

    @property
    def routing_stats(self) -> dict[str, object]:
        self.looks += 1
        return self.stats


def replica(name: str, running: int = 0, waiting: int = 0) -> Replica:
    return Replica(name, {"serving": True, "num_running": running, "num_waiting": waiting})


@pytest.fixture
def router() -> GlmRequestRouter:
    made = GlmRequestRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    made.initialize_state()
    return made


def pending(call: str, prompt: tuple[int, ...] = (1, 2, 3), avoid: tuple[str, ...] = ()) -> SimpleNamespace:
    request = GenerationRequest(request_id=call, prompt=prompt, sampling=SamplingParams(max_tokens=1))
    return SimpleNamespace(
        args=[Submission(request, None, avoid)],
        metadata=SimpleNamespace(internal_request_id=call),
        routing_context=SimpleNamespace(should_backoff=False),
    )


async def order(router: GlmRequestRouter, candidates: list[Replica], *args: object, **options: object) -> list[str]:
    """The names of those to be tried one by one; after them come all."""
    request = pending(*args, **options)
    *single, in_service, everybody = await router.choose_replicas(candidates, request)
    assert request.routing_context.should_backoff
    assert everybody is candidates
    assert {r.name for [r] in single} <= {r.name for r in in_service} <= {r.name for r in candidates}
    return [r.name for [r] in single]


async def test_the_least_loaded_comes_first(router: GlmRequestRouter):
    candidates = [replica("a", running=5), replica("b", running=1), replica("c", running=2, waiting=1)]
    assert await order(router, candidates, "1") == ["b", "a", "c"]


async def test_reports_are_read_once_for_a_list_and_again_for_the_next(router: GlmRequestRouter):
    candidates = [replica(f"r{i:03}") for i in range(200)]
    await order(router, candidates, "0")
    looks = sum(r.looks for r in candidates)
    for call in range(1, 20):
        await order(router, candidates, str(call))
    assert sum(r.looks for r in candidates) == looks
    for r in candidates[1:]:
        r.stats = {"serving": True, "num_running": 50, "num_waiting": 0}
    for call in range(20, 40):
        await order(router, candidates.copy(), str(call))
    assert sum(r.looks for r in candidates) > looks


async def test_a_report_that_did_not_change_leaves_what_was_heard_since(router: GlmRequestRouter):
    candidates = [replica("a"), replica("b", running=1)]
    assert (await order(router, candidates, "1"))[0] == "a"
    router.on_request_completed(candidates[0].replica_id, "1")
    router.on_new_queue_len_info(candidates[0].replica_id, 9)
    assert (await order(router, candidates.copy(), "2"))[0] == "b"


async def test_one_without_a_group_is_for_the_very_last(router: GlmRequestRouter):
    candidates = [Replica("a", {"serving": False}), replica("b", running=50)]
    assert await order(router, candidates, "1") == ["b"]
    _, in_service, everybody = await router.choose_replicas(candidates, pending("2"))
    assert ([r.name for r in in_service], everybody) == (["b"], candidates)


async def test_one_that_restarts_its_group_comes_back(router: GlmRequestRouter):
    candidates = [replica("a"), replica("b", running=50)]
    for state, expected in (({"serving": False}, ["b"]), ({"serving": True}, ["a", "b"])):
        candidates[0].stats = state
        assert await order(router, candidates.copy(), str(state)) == expected


async def test_one_that_is_gone_is_not_offered(router: GlmRequestRouter):
    a, b = replica("a"), replica("b", running=50)
    assert await order(router, [a, b], "1") == ["a", "b"]
    assert await order(router, [b], "2") == ["b"]
    assert await order(router, [b, replica("a")], "3") == ["a", "b"]


async def test_what_a_replica_held_when_it_took_a_call_counts(router: GlmRequestRouter):
    """Between two reports this alone tells of the calls of other fronts."""
    candidates = [replica("a"), replica("b", running=2)]
    assert (await order(router, candidates, "1"))[0] == "a"
    router.on_new_queue_len_info(candidates[0].replica_id, 8)
    assert (await order(router, candidates, "2"))[0] == "b"


async def test_avoided_and_unreachable_replicas_come_last(router: GlmRequestRouter, monkeypatch: pytest.MonkeyPatch):
    candidates = [replica("a"), replica("b", running=30), replica("c", running=60)]
    router.on_replica_actor_unavailable(candidates[1].replica_id)
    assert await order(router, candidates, "1", avoid=("a",)) == ["c", "a", "b"]
    monkeypatch.setattr(routing, "_COOLING_S", 0.0)
    router.on_replica_actor_unavailable(candidates[1].replica_id)
    assert await order(router, candidates, "2", avoid=("a",)) == ["b", "c", "a"]


async def test_a_call_counts_until_it_is_completed(router: GlmRequestRouter):
    candidates = [replica("a"), replica("b")]
    [first, second] = await order(router, candidates, "1")
    router.on_request_routed(pending("1"), ReplicaID(first, DEPLOYMENT), None)
    assert await order(router, candidates, "2") == [second, first]
    router.on_request_completed(ReplicaID(first, DEPLOYMENT), "1")
    assert await order(router, candidates, "3") == [first, second]


async def test_a_probe_without_a_request_is_placed_too(router: GlmRequestRouter):
    request = pending("1")
    request.args = []
    singles = await router.choose_replicas([replica("a")], request)
    assert [r.name for r in singles[0]] == ["a"]
    candidates = [replica("a")]
    assert await router.choose_replicas(candidates) == [candidates]


def test_loads_are_those_that_replicas_in_service_reported(router: GlmRequestRouter, monkeypatch: pytest.MonkeyPatch):
    load = ReplicaLoad(num_waiting=1, num_running=2, num_free_blocks=3, num_blocks=4, num_drafted=5, num_accepted=6)
    replicas = [Replica("a", {"serving": True, **asdict(load)}), Replica("b", {"serving": False}), Replica("c")]
    monkeypatch.setattr(GlmRequestRouter, "curr_replicas", {r.replica_id: r for r in replicas})
    assert known_loads(DEPLOYMENT) == [load]
    assert known_loads(DeploymentID(name="another")) is None


def test_serve_can_copy_the_module_by_value():
    """It ships a router's class so, and all that the class uses of its module along with it."""
    cloudpickle.register_pickle_by_value(routing)
    try:
        assert b"known_loads" not in cloudpickle.dumps(GlmRequestRouter)  # the registry stays where it is
    finally:
        cloudpickle.unregister_pickle_by_value(routing)
