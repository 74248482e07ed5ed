"""Services, messages and enums, from the .proto files and their comments."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import google.rpc
import grpc_tools
from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

from reference_pages.markdown import cell, code, table

PROTOS = Path(__file__).resolve().parents[2] / "protos"
PACKAGE = ".rewardloop.v1."

# Numbers of the fields in descriptor.proto, from which protoc builds the path of a comment.
_MESSAGE, _ENUM, _SERVICE, _FIELD, _ONEOF, _METHOD, _VALUE, _NESTED = 4, 5, 6, 2, 8, 2, 2, 3
Comments = Mapping[tuple[int, ...], str]
_Field = pb.FieldDescriptorProto


def rpcs() -> str:
    """The page: one section a service, then every message and enum, file by file."""
    files = descriptors()
    out = [
        "# RPCs\n\ngRPC, package `rewardloop.v1`, port 50051, with reflection and `grpc.health.v1`. The texts are the"
        " comments of the `.proto` files under `protos/rewardloop/v1`. A field that is not set has the zero value of"
        " its type unless it is marked optional.\n"
    ]
    for file in files:
        comments = comments_of(file)
        for i, service in enumerate(file.service):
            out.append(_service(service, comments, (_SERVICE, i)))
    for file in files:
        comments = comments_of(file)
        for i, message in enumerate(file.message_type):
            out.append(_message(message, comments, (_MESSAGE, i)))
        for i, enum in enumerate(file.enum_type):
            out.append(_enum(enum, comments, (_ENUM, i)))
    return "\n".join(out)


def descriptors() -> Sequence[pb.FileDescriptorProto]:
    """Every proto of the package with its comments. Raises RuntimeError when protoc fails."""
    sources = sorted((PROTOS / "rewardloop" / "v1").glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    google_rpc = Path(next(iter(google.rpc.__path__))).parents[1]
    includes = [f"-I{path}" for path in (PROTOS, well_known, google_rpc)]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "set"
        arguments = ["protoc", *includes, "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main([*arguments, *map(str, sources)]) != 0:
            raise RuntimeError("protoc failed")
        return list(pb.FileDescriptorSet.FromString(out.read_bytes()).file)


def comments_of(file: pb.FileDescriptorProto) -> Comments:
    """Leading comments by the path of what they stand before."""
    return {tuple(place.path): place.leading_comments for place in file.source_code_info.location}


def _service(service: pb.ServiceDescriptorProto, comments: Comments, path: tuple[int, ...]) -> str:
    lines = [f"## {service.name}\n\n{_text(comments, path)}\n"]
    for i, method in enumerate(service.method):
        asked = _typed(method.input_type, is_stream=method.client_streaming)
        answered = _typed(method.output_type, is_stream=method.server_streaming)
        lines.append(f"### {method.name}\n\n{asked} → {answered}\n\n{_text(comments, (*path, _METHOD, i))}\n")
    return "\n".join(lines)


def _message(message: pb.DescriptorProto, comments: Comments, path: tuple[int, ...]) -> str:
    maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    rows = []
    for i, field in enumerate(message.field):
        text = cell(comments.get((*path, _FIELD, i), ""))
        if field.HasField("oneof_index") and not field.proto3_optional:
            oneof = message.oneof_decl[field.oneof_index].name
            text = f"{text} One of `{oneof}`.".strip()
        rows.append((code(field.name), str(field.number), _kind(field, maps), text))
    text = _text(comments, path)
    fields = table(("field", "number", "type", "meaning"), rows) if rows else "No fields.\n"
    return f"## {message.name}\n\n{text}\n\n{fields}" if text else f"## {message.name}\n\n{fields}"


def _enum(enum: pb.EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> str:
    rows = [
        (code(value.name), str(value.number), cell(comments.get((*path, _VALUE, i), "")))
        for i, value in enumerate(enum.value)
    ]
    return f"## {enum.name}\n\n{_text(comments, path)}\n\n{table(('value', 'number', 'meaning'), rows)}"


def _kind(field: pb.FieldDescriptorProto, maps: Mapping[str, pb.DescriptorProto]) -> str:
    name = field.type_name.rpartition(".")[2]
    if name in maps:
        key, value = maps[name].field
        return f"map of {_scalar(key)} to {_scalar(value)}"
    repeated = "repeated " if field.label == _Field.LABEL_REPEATED else ""
    optional = "optional " if field.proto3_optional else ""
    return f"{repeated}{optional}{_scalar(field)}"


def _scalar(field: pb.FieldDescriptorProto) -> str:
    return _typed(field.type_name) if field.type_name else _Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def _typed(full_name: str, *, is_stream: bool = False) -> str:
    """A link to the package's own types, the full name of others."""
    name = full_name.removeprefix(PACKAGE)
    shown = f"`{full_name.removeprefix('.')}`" if name == full_name else f"[{name}](#{name.lower()})"
    return f"stream of {shown}" if is_stream else shown


def _text(comments: Comments, path: tuple[int, ...]) -> str:
    return "\n\n".join(_paragraphs(comments.get(path, "")))


def _paragraphs(comment: str) -> Iterator[str]:
    for paragraph in comment.split("\n\n"):
        if paragraph.strip():
            yield cell(paragraph)
