"""What the site has beside the pages of docs/: reference pages, and links into the tree.

MkDocs calls the functions whose names begin with `on_`.
"""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib.metadata import entry_points
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic_core import PydanticUndefined

from foveate_serve.settings import ENV_PREFIX, Settings
from foveate_train.commands import train, visualize

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()(\.\.?/[^)\s#]*|[\w./-]+)((?:#[^)\s]*)?\))")
SUBCOMMANDS = {"train": train.COMMANDS, "visualize": visualize.COMMANDS}
PYTHON = {
    "The client": "foveate_client",
    "Fakes for tests": "foveate_client.testing",
    "Bundles": "foveate_runtime.bundle.bundle",
    "The manifest": "foveate_runtime.bundle.manifest",
    "Classifiers": "foveate_train.classifier",
    "Checkpoints": "foveate_train.checkpoint",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated."""
    for name, text in {
        "commands": commands(),
        "settings": settings(),
        "protocol": protocol(),
        "python": python(),
    }.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Let links that leave docs/ lead to the repository."""
    folder = Path(page.file.src_uri).parent

    def led(match: re.Match[str]) -> str:
        target = Path(os.path.normpath("docs" / folder / match[2]))
        if target.parts[0] == "docs" and not (ROOT / target).is_dir():
            return match[0]
        return f"{match[1]}{config.repo_url}/blob/main/{target}{match[3]}"

    return LINK.sub(led, markdown)


def commands() -> str:
    """Return the page of every command's help."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands", "What `foveate COMMAND --help` prints."]
    for entry in sorted(entry_points(group="foveate.commands"), key=lambda each: each.name):
        kinds = [[entry.name, kind] for kind in SUBCOMMANDS.get(entry.name, ())]
        for words in kinds or [[entry.name]]:
            told = io.StringIO()
            with redirect_stdout(told), suppress(SystemExit):
                entry.load()([*words[1:], "--help"])
            parts += [f"## foveate {' '.join(words)}", f"```text\n{told.getvalue().rstrip()}\n```"]
    return "\n\n".join(parts)


def settings() -> str:
    """Return the page of the server's settings."""
    rows = [
        "# Settings of the server",
        "Each is a key of the file of `--config`, a flag, and a variable of the environment:",
        f"`max_batch`, `--max-batch`, `{ENV_PREFIX}MAX_BATCH`. A flag wins over a variable,",
        "and a variable over the file.",
        "",
        "| key | default | |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (PydanticUndefined, None, ()) else f"`{field.default}`"
        rows.append(
            f"| `{name}` | {default} | {(field.description or '').replace('|', '&#124;')} |"
        )
    return "\n".join(rows)


def python() -> str:
    """Return the page of the public modules."""
    parts = [f"## {title}\n\n::: {module}" for title, module in PYTHON.items()]
    return "\n\n".join(["# Python", *parts])


def protocol() -> str:
    """Return the page of the messages and services, with the comments of the .proto files."""
    image = subprocess.run(  # noqa: S603 - our own tool on our own files
        [Path(sys.executable).with_name("buf"), "build", "--as-file-descriptor-set", "-o", "-"],
        cwd=ROOT / "proto",
        capture_output=True,
        check=True,
    ).stdout
    parts = ["# Protocol", "`foveate.v1` and what it is made of, from the `.proto` files."]
    for file in FileDescriptorSet.FromString(image).file:
        if file.package == "foveate.v1":
            parts += _file(file)
    return "\n\n".join(parts)


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(place.path): " ".join(place.leading_comments.split())
        for place in file.source_code_info.location
    }
    yield f"## {file.name}"
    # The numbers are those of fields in descriptor.proto: a path to what a comment is of.
    for at, service in enumerate(file.service):
        yield f"### {service.name}\n\n{comments.get((6, at), '')}"
        rows = [
            f"| `{method.name}` | {'stream of ' * method.client_streaming}"
            f"{_short(method.input_type)} | {'stream of ' * method.server_streaming}"
            f"{_short(method.output_type)} | {comments.get((6, at, 2, number), '')} |"
            for number, method in enumerate(service.method)
        ]
        yield "\n".join(["| method | takes | returns | |", "|---|---|---|---|", *rows])
    for at, message in enumerate(file.message_type):
        yield from _message(message, (4, at), comments)
    for at, enum in enumerate(file.enum_type):
        yield f"### {enum.name}\n\n{comments.get((5, at), '')}"
        rows = [
            f"| `{value.name}` | {value.number} | {comments.get((5, at, 2, number), '')} |"
            for number, value in enumerate(enum.value)
        ]
        yield "\n".join(["| value | number | |", "|---|---|---|", *rows])


def _message(
    message: DescriptorProto,
    path: tuple[int, ...],
    comments: dict[tuple[int, ...], str],
    prefix: str = "",
) -> Iterator[str]:
    name = f"{prefix}{message.name}"
    yield f"### {name}\n\n{comments.get(path, '')}"
    rows = [
        f"| `{field.name}` | {field.number} | {_type(field)} | "
        f"{comments.get((*path, 2, number), '')} |"
        for number, field in enumerate(message.field)
    ]
    if rows:
        yield "\n".join(["| field | number | type | |", "|---|---|---|---|", *rows])
    for at, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from _message(inner, (*path, 3, at), comments, f"{name}.")


def _type(field: FieldDescriptorProto) -> str:
    kind = _short(field.type_name) or FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _short(name: str) -> str:
    return name.removeprefix(".foveate.v1.").removeprefix(".")
