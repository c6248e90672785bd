"""A gRPC client that has none of our stubs: it learns every method and message from the server."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from support.cluster import RunningCluster, eventually

SERVICE = "glm_cluster.v1.Glm"
Call = Callable[[str, dict[str, Any]], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def call(cluster: RunningCluster) -> Iterator[Call]:
    """Call a method by name with a mapping; its answers as mappings."""
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName(SERVICE)

        def one(name: str, body: dict[str, Any]) -> list[dict[str, Any]]:
            method = service.FindMethodByName(name)
            request = ParseDict(body, GetMessageClass(method.input_type)())
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            stub = kind(
                f"/{SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            answer = stub(request, timeout=120)
            messages = answer if method.server_streaming else [answer]
            return [MessageToDict(message, preserving_proto_field_name=True) for message in messages]

        yield one


def test_every_method_is_known_to_reflection(cluster: RunningCluster):
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
        methods = DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name
    assert {"Chat", "ChatStream", "Generate", "Embed", "Tokenize", "Detokenize", "GetModel"} <= set(methods)
    assert {"ListModels", "GetServerInfo", "GetLoad", "Classify", "ClassifyTokens"} <= set(methods)


def test_a_chat_whole_and_streamed(call: Call, question):
    body = {
        "model": "demo",
        "messages": [{"role": "ROLE_USER", "content": question[0]["content"]}],
        "sampling": {"temperature": 0},
        "max_tokens": 12,
    }
    (whole,) = call("Chat", body)
    assert "Paris" in str(whole)
    chunks = call("ChatStream", body)
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert len(chunks) > 1


def test_text_to_ids_and_back(call: Call):
    (tokens,) = call("Tokenize", {"model": "demo", "prompt": "Hello world", "return_token_strs": True})
    assert tokens["token_strs"] == ["Hello", "Ġworld"]
    assert call("Detokenize", {"model": "demo", "tokens": tokens["tokens"]}) == [{"prompt": "Hello world"}]


def test_the_server_says_what_it_is(call: Call):
    (info,) = call("GetServerInfo", {})
    assert [model["id"] for model in info["models"]] == ["demo", "demo-vectors"]
    assert {model["engine"]["device"] for model in info["models"]} == {"cpu"}

    def loads() -> list[dict[str, Any]]:
        return list(call("GetLoad", {})[0]["models"])

    eventually(lambda: [load.get("num_replicas") for load in loads()] == ["1", "1"], "both replicas are known")
    assert call("GetModel", {"model": "demo"})[0]["task"] == "TASK_GENERATE"
    with pytest.raises(grpc.RpcError) as caught:
        call("GetModel", {"model": "owner/name"})
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
