"""The committed stubs are what the .proto file says, and the .proto file says what every field means."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = "glm_cluster/api/proto/glm.proto"
REMAKE = f"python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. {PROTO}, grpcio-tools 1.78.0"
STUBS = ("glm_pb2.py", "glm_pb2.pyi", "glm_pb2_grpc.py")

# The stubs are made with grpcio-tools 1.78.0, the oldest supported, so that they load on every supported runtime.
# Generators since then write the same but for these.
NEWER_SPELLINGS = (
    (r"# Protobuf Python Version: \S+", "# Protobuf Python Version: 6.31.1"),
    (r"\n    \d+,\n    \d+,\n    \d+,\n    '',\n", "\n    6,\n    31,\n    1,\n    '',\n"),
    (r"GRPC_GENERATED_VERSION = '\S+'", "GRPC_GENERATED_VERSION = '1.78.0'"),
    (r"\nclass (\w+):\n", r"\nclass \1(object):\n"),
    (r"_Optional\[bool\] = ", "bool = "),
)


def as_oldest(text: str) -> str:
    for newer, oldest in NEWER_SPELLINGS:
        text = re.sub(newer, oldest, text)
    return text


def test_stubs_are_what_the_proto_file_generates(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, PROTO], cwd=ROOT, check=True)
    made = tmp_path / Path(PROTO).parent
    assert sorted(path.name for path in made.iterdir()) == sorted(STUBS)
    for name in STUBS:
        committed = (ROOT / PROTO).with_name(name).read_text()
        assert committed == as_oldest((made / name).read_text()), f"{name} is stale; run {REMAKE}"


def test_every_field_message_and_call_is_described() -> None:
    lines = (ROOT / PROTO).read_text().splitlines()
    declaration = re.compile(r"\s*(message|enum|service|rpc|oneof)\b.*\{|\s*rpc\b|.*= \d+;")
    declared = [index for index, line in enumerate(lines) if declaration.match(line)]
    assert len(declared) > 60
    bare = [lines[index].strip() for index in declared if not lines[index - 1].strip().startswith("//")]
    assert not bare, f"without a comment above: {bare}"


@pytest.mark.parametrize("name", STUBS)
def test_stubs_are_in_the_package(name: str) -> None:
    from importlib.resources import files

    assert files("glm_cluster.api.proto").joinpath(name).is_file()
