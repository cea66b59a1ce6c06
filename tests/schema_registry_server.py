"""A schema registry for tests: the part of Confluent's REST interface that concerns schemas, in this process.

Its answers, error codes and rules are those of Confluent's own documentation: subjects, versions, ids, modes (IMPORT
takes the ids it is given, and only of subjects that are empty or forced), compatibility levels.
"""

import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import fastavro
from fastavro.schema import to_parsing_canonical_form

from alertprod.alerts.evolution import find_breaks


class Refused(Exception):
    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Registry:
    """The state."""

    subjects: dict[str, dict[int, int]] = field(default_factory=dict)
    """Subject to version to id."""
    schemas: dict[int, str] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    compatibility: str = "NONE"
    numbers_anyway: bool = False
    """Takes IMPORT for a mode, and gives ids of its own all the same: as Apicurio 3 does."""
    has_modes: bool = True
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    """Of each request."""

    def subjects_get(self, _: Any) -> Any:
        return sorted(self.subjects)

    def schema(self, _: Any, number: str) -> Any:
        if int(number) not in self.schemas:
            raise Refused(404, 40403, f"Schema {number} not found")
        return {"schema": self.schemas[int(number)]}

    def versions(self, _: Any, subject: str) -> Any:
        return sorted(self._of(subject))

    def version(self, _: Any, subject: str, number: str) -> Any:
        versions = self._of(subject)
        chosen = max(versions) if number == "latest" else int(number)
        if chosen not in versions:
            raise Refused(404, 40402, f"Version {number} not found.")
        return {"subject": subject, "version": chosen, "id": versions[chosen], "schema": self.schemas[versions[chosen]]}

    def delete(self, _: Any, subject: str, number: str) -> Any:
        versions = self._of(subject)
        if int(number) not in versions:
            raise Refused(404, 40402, f"Version {number} not found.")
        gone = versions.pop(int(number))
        if not versions:
            del self.subjects[subject]
        if all(gone not in ids.values() for ids in self.subjects.values()):
            del self.schemas[gone]
        return int(number)

    def mode(self, _: Any, subject: str) -> Any:
        if subject not in self.modes:
            raise Refused(404, 40409, f"Subject '{subject}' does not have subject-level mode configured")
        return {"mode": self.modes[subject]}

    def put_mode(self, body: Any, subject: str, *, force: bool = False) -> Any:
        if not self.has_modes:
            raise Refused(404, 404, "HTTP 404 Not Found")
        if body["mode"] not in ("IMPORT", "READONLY", "READWRITE"):
            raise Refused(422, 42204, "Invalid mode. Valid values are READWRITE, READONLY and IMPORT.")
        if body["mode"] == "IMPORT" and subject in self.subjects and not force:
            raise Refused(422, 42205, "Cannot import since found existing subjects")
        self.modes[subject] = body["mode"]
        return body

    def delete_mode(self, _: Any, subject: str) -> Any:
        return {"mode": self.modes.pop(subject)}

    def register(self, body: Any, subject: str) -> Any:
        text = body["schema"]
        form = _canonical(text)
        imports = self.modes.get(subject) == "IMPORT"
        given = body.get("id") if imports and not self.numbers_anyway else None
        if not imports and body.get("id") is not None:
            raise Refused(422, 42205, f"Subject {subject} is not in import mode")
        versions = self.subjects.get(subject, {})
        known = next((k for k, other in self.schemas.items() if _canonical(other) == form), None)
        if given is None:
            given = known if known is not None else max(self.schemas, default=0) + 1
        elif given in self.schemas and _canonical(self.schemas[given]) != form:
            raise Refused(422, 42205, f"Overwrite new schema with id {given} is not permitted.")
        if given in versions.values():
            return {"id": given}
        if not imports and self._breaks(subject, text):
            raise Refused(409, 409, "Schema being registered is incompatible with an earlier schema")
        self.schemas[given] = text
        number = body.get("version") if imports else None
        self.subjects.setdefault(subject, {})[number or max(versions, default=0) + 1] = given
        return {"id": given}

    def compatible(self, body: Any, subject: str, _: str) -> Any:
        if subject not in self.subjects:
            raise Refused(404, 40401, f"Subject '{subject}' not found.")
        messages = self._breaks(subject, body["schema"])
        return {"is_compatible": not messages, "messages": messages}

    def _breaks(self, subject: str, text: str) -> list[str]:
        if self.compatibility == "NONE" or subject not in self.subjects:
            return []
        versions = self.subjects[subject]
        latest, ours = json.loads(self.schemas[versions[max(versions)]]), json.loads(text)
        return find_breaks(latest, ours) if self.compatibility == "BACKWARD" else find_breaks(ours, latest)

    def _of(self, subject: str) -> dict[int, int]:
        if subject not in self.subjects:
            raise Refused(404, 40401, f"Subject '{subject}' not found.")
        return self.subjects[subject]


def _canonical(text: str) -> str:
    try:
        return to_parsing_canonical_form(fastavro.parse_schema(json.loads(text)))
    except Exception as error:
        raise Refused(422, 42201, f"Invalid schema: {error}") from error


class RegistryServer:
    """The registry on a port of its own, within a context."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry or Registry()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(self.registry))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _make_handler(registry: Registry) -> type[BaseHTTPRequestHandler]:
    subject = r"/subjects/([^/]+)"
    routes: list[tuple[str, str, Callable[..., Any]]] = [
        ("GET", r"/subjects", registry.subjects_get),
        ("GET", r"/schemas/ids/(\d+)", registry.schema),
        ("GET", subject + r"/versions", registry.versions),
        ("POST", subject + r"/versions", registry.register),
        ("GET", subject + r"/versions/(\d+|latest)", registry.version),
        ("DELETE", subject + r"/versions/(\d+)", registry.delete),
        ("POST", r"/compatibility" + subject + r"/versions/(\d+|latest)", registry.compatible),
        ("GET", r"/mode/([^/]+)", registry.mode),
        ("PUT", r"/mode/([^/]+)", registry.put_mode),
        ("DELETE", r"/mode/([^/]+)", registry.delete_mode),
    ]

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            registry.requests.append((self.command, parts.path))
            registry.authorizations.append(self.headers["Authorization"])
            length = int(self.headers.get("Content-Length") or 0)
            status, answer = 404, {"error_code": 404, "message": "HTTP 404 Not Found"}
            for method, pattern, act in routes:
                found = re.fullmatch(pattern, parts.path)
                if found is None or method != self.command:
                    continue
                arguments = [urllib.parse.unquote(part) for part in found.groups()]
                options = {"force": "force=true" in parts.query} if act == registry.put_mode else {}
                if act == registry.delete and "permanent=true" in parts.query:
                    status, answer = 200, int(arguments[1])
                    break
                try:
                    status, answer = 200, act(json.loads(self.rfile.read(length) or b"null"), *arguments, **options)
                except Refused as refused:
                    status, answer = refused.status, {"error_code": refused.code, "message": refused.message}
                break
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the server's names

        def log_message(self, *_: object) -> None:
            pass

    return Handler
