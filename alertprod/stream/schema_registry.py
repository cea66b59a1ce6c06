"""The REST interface of a Confluent-compatible schema registry: a schema by its id, and registering under a fixed id.

Registries number schemas themselves unless a subject is in mode IMPORT. Some do not have that mode, and some have it
and number all the same: so what was registered is asked for again, and taken back where it went wrong.
"""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from alertprod.errors import AlertprodError, ConfigError, RegistryUnavailable

_MEDIA_TYPE: Final = "application/vnd.schemaregistry.v1+json"
_MAX_ANSWER_BYTES: Final = 8 << 20
"""The alert's schema with its documentation is 60 kB; a list of a thousand versions is less than this too."""

_NO_REGISTRY: Final = "the answer is not a registry's"

IMPORT_MODE: Final = "IMPORT"


class RegistryRefused(AlertprodError):
    """The registry answered, and the answer is no."""

    def __init__(self, url: str, doing: str, status: int, problem: str) -> None:
        super().__init__(url, doing, status, problem)
        self.url, self.doing, self.status, self.problem = url, doing, status, problem

    def __str__(self) -> str:
        return f"{self.url}: {self.doing}: {self.problem} (HTTP status {self.status})"


class StoredSchema(NamedTuple):
    """What a registry has under an id."""

    schema: str
    """As JSON text, where it is Avro."""
    schema_type: str = "AVRO"
    has_references: bool = False
    """It is not whole: the rest is in other subjects."""


class RegisteredSchema(NamedTuple):
    """One version of a subject."""

    schema_id: int
    version: int
    schema: str
    """As JSON text."""


class SchemaRegistry:
    """A registry.

    Parameters
    ----------
    url
        Root of its REST interface, http or https.
    timeout_s
        For one request.
    authorization
        Value of the Authorization header, where it wants one.

    Raises
    ------
    ConfigError
        Raised if `url` is not http or https.

    Notes
    -----
    Every method raises `RegistryUnavailable` where nobody answers, and `RegistryRefused` where the answer is no.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, authorization: str | None = None) -> None:
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ConfigError("registry", "url", f"{url!r} is neither http nor https")
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"Accept": f"{_MEDIA_TYPE}, application/json", "Content-Type": _MEDIA_TYPE}
        if authorization is not None:
            self._headers["Authorization"] = authorization

    def list_subjects(self) -> list[str]:
        """Return the names of all subjects; a first question that only a registry can answer."""
        answer = self._ask("GET", "/subjects")
        if not isinstance(answer, list):
            raise RegistryRefused(
                self.url, "GET /subjects", HTTPStatus.NOT_FOUND, "this is not a schema registry's root"
            )
        return [str(subject) for subject in answer]

    def get_schema(self, schema_id: int) -> StoredSchema | None:
        """Return the schema with an id; None where there is none."""
        path = f"/schemas/ids/{schema_id}"
        answer = self._ask("GET", path)
        if answer is None:
            return None
        if not (isinstance(answer, dict) and isinstance(answer.get("schema"), str)):
            raise RegistryUnavailable(f"{self.url}: GET {path}: {_NO_REGISTRY}")
        return StoredSchema(answer["schema"], str(answer.get("schemaType", "AVRO")), bool(answer.get("references")))

    def get_versions(self, subject: str) -> list[RegisteredSchema]:
        """Return all versions of a subject, oldest first; none where the subject is not there."""
        numbers = self._ask("GET", f"/subjects/{_quoted(subject)}/versions") or []
        found = (self._ask("GET", f"/subjects/{_quoted(subject)}/versions/{number}") for number in numbers)
        return [
            RegisteredSchema(int(answer["id"]), int(answer["version"]), str(answer["schema"]))
            for answer in found
            if answer is not None  # deleted in between
        ]

    def find_incompatibilities(self, subject: str, schema: str) -> list[str]:
        """Return what the registry has against a schema as the subject's next version, by its own rule for that."""
        path = f"/compatibility/subjects/{_quoted(subject)}/versions/latest?verbose=true"
        answer = self._ask("POST", path, {"schema": schema, "schemaType": "AVRO"})
        if answer is None or answer["is_compatible"]:
            return []
        return [str(message) for message in answer.get("messages") or ["no reason is given"]]

    def register(self, subject: str, schema: str, *, schema_id: int, version: int) -> None:
        """Register a schema under its own id.

        1. put the subject into mode IMPORT;
        2. register with id and version;
        3. put the mode back, whatever happened;
        4. where the registry gave another id, take that version back.

        Raises
        ------
        RegistryRefused
            Raised if it does not import, or does not take the id.
        """
        with self._importing(subject):
            body = {"schema": schema, "schemaType": "AVRO", "id": schema_id, "version": version}
            answer = self._ask("POST", f"/subjects/{_quoted(subject)}/versions", body)
        given = None if answer is None else int(answer["id"])
        if given != schema_id:
            self._take_back(subject, given)
            problem = (
                f"it gave the id {given}, not {schema_id}: this registry does not import ids; the version is removed"
            )
            raise RegistryRefused(self.url, f"register {subject}", HTTPStatus.OK, problem)

    @contextmanager
    def _importing(self, subject: str) -> Iterator[None]:
        path = f"/mode/{_quoted(subject)}"
        own = self._ask("GET", path)  # None where the subject has none of its own, and follows the registry's
        # A subject that has schemas is imported into by force only; what that could overwrite was looked at before.
        if self._ask("PUT", f"{path}?force=true", {"mode": IMPORT_MODE}) is None:
            problem = "it has no modes, so that schemas cannot have fixed ids there"
            raise RegistryRefused(self.url, f"mode of {subject}", HTTPStatus.NOT_FOUND, problem)
        try:
            yield
        finally:
            if own is None:
                self._ask("DELETE", path)
            else:
                self._ask("PUT", f"{path}?force=true", {"mode": own["mode"]})

    def _take_back(self, subject: str, schema_id: int | None) -> None:
        for registered in self.get_versions(subject):
            if registered.schema_id == schema_id:
                path = f"/subjects/{_quoted(subject)}/versions/{registered.version}"
                self._ask("DELETE", path)
                self._ask("DELETE", f"{path}?permanent=true")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the decoded answer; None where there is no such thing."""
        doing = f"{method} {path.partition('?')[0]}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self._headers, method=method)  # noqa: S310 - the scheme is checked above
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:  # noqa: S310 - likewise
                answer: bytes = response.read(_MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                problem = _read_problem(error)
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise RegistryUnavailable(f"{self.url}: {doing}: {problem} (HTTP status {error.code})") from error
            raise RegistryRefused(self.url, doing, error.code, problem) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else repr(error)
            raise RegistryUnavailable(f"{self.url}: {doing}: {reason}") from error
        try:
            return json.loads(answer) if answer else {}
        except (ValueError, RecursionError) as error:
            raise RegistryUnavailable(f"{self.url}: {doing}: {_NO_REGISTRY}") from error


def _read_problem(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(_MAX_ANSWER_BYTES))["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(error.reason)


def _quoted(subject: str) -> str:
    return urllib.parse.quote(subject, safe="")
