"""An Argilla of a few dozen lines on 127.0.0.1: what its SDK asks of the real one when a dataset is made, filled and read."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from http_fake import HttpFake, QuietHandler

TIMES = {"inserted_at": "2026-03-01T12:00:00", "updated_at": "2026-03-01T12:00:00"}


def _new() -> str:
    return str(uuid.uuid4())


@dataclass
class FakeArgilla(HttpFake):
    """Its one dataset; `records` are by the ids that they were sent with."""

    user: str = field(default_factory=_new)
    workspace: str = field(default_factory=_new)
    dataset: dict[str, Any] | None = None
    parts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def start(self) -> FakeArgilla:
        fake = self

        class Handler(QuietHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urlsplit(self.path)
                offset = int(parse_qs(url.query).get("offset", ["0"])[0])
                status, found = fake.answer(self.command, url.path, json.loads(body) if body else None, offset)
                content = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = _serve

        self.serve(Handler)
        return self

    def respond(self, id_: str, value: str, status: str) -> None:
        """Have the user answer a record."""
        record = self.records[id_]
        said = {"id": _new(), "values": {"label": {"value": value}}, "status": status, "user_id": self.user, "record_id": record["id"]}
        record["responses"].append(said | TIMES)

    def answer(self, method: str, path: str, body: Any, offset: int) -> tuple[int, Any]:
        if path == "/api/v1/me":
            return 200, {"id": self.user, "username": "anna", "first_name": "Anna", "role": "owner", **TIMES}
        workspace = {"id": self.workspace, "name": "team", **TIMES}
        if path == "/api/v1/me/workspaces":
            return 200, {"items": [workspace]}
        if path == f"/api/v1/workspaces/{self.workspace}":
            return 200, workspace
        if path == "/api/v1/me/datasets":
            return 200, {"items": [self.dataset] if self.dataset else []}
        if path == "/api/v1/datasets":
            self.dataset = {**body, "id": _new(), "status": "draft", "last_activity_at": TIMES["updated_at"], **TIMES}
            return 201, self.dataset
        match = re.fullmatch(r"/api/v1/(?:me/)?datasets/[^/]+(?:/(.+))?", path)
        if match is None or self.dataset is None:
            return 404, {"detail": f"no {path}"}
        if match[1] in (None, "publish"):
            self.dataset |= body or {}
            self.dataset["status"] = "ready" if match[1] else self.dataset["status"]
            return 200, self.dataset
        if match[1] == "records/bulk":
            return 200, {"items": [self._keep(record) for record in body["items"]], "updated_item_ids": []}
        if match[1] == "records":
            return 200, {"items": list(self.records.values())[offset:], "total": len(self.records)}
        if method == "POST":
            self.parts.setdefault(match[1], []).append({**body, "id": _new(), "dataset_id": self.dataset["id"], **TIMES})
            return 201, self.parts[match[1]][-1]
        return 200, {"items": self.parts.get(match[1], [])}

    def _keep(self, record: dict[str, Any]) -> dict[str, Any]:
        known = self.records.get(record["external_id"], {"id": _new(), "responses": []})
        suggestions = [{**each, "id": _new()} for each in record.get("suggestions") or []]
        self.records[record["external_id"]] = {**record, **known, "status": "pending", "suggestions": suggestions, **TIMES}
        return self.records[record["external_id"]]
