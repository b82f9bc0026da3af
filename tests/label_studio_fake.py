"""A Label Studio of a few hundred lines on 127.0.0.1: what raystream asks of the real one, and faults on demand."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from http_fake import HttpFake, QuietHandler

TIME = "2026-03-01T12:00:00.000000Z"


@dataclass
class Fault:
    """What becomes of a request: whether it is carried out, and what answers it; None: the connection closes without an answer."""

    method: str
    path: str
    carried_out: bool
    status: int | None
    times: int = 1


@dataclass
class FakeLabelStudio(HttpFake):
    """Its state; `faults` are used up from the first that fits, `seen` are (method, path, authorization)."""

    token: str = "legacy"
    projects: dict[int, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, str | None]] = field(default_factory=list)
    redirect_to: str | None = None
    access: str | None = None
    imported: list[dict[str, Any]] = field(default_factory=list)
    during_import: Callable[[], None] | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self) -> FakeLabelStudio:
        fake = self

        class Handler(QuietHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                plain = (self.headers.get("Content-Type") or "").startswith("application/json")
                fake.handle(self, self.command, urlsplit(self.path), json.loads(body) if body and plain else body or None)

            do_GET = do_POST = do_DELETE = _serve

        self.serve(Handler)
        return self

    def handle(self, request: BaseHTTPRequestHandler, method: str, url: Any, body: Any) -> None:
        authorization = request.headers.get("Authorization")
        self.seen.append((method, url.path, authorization))
        if self.redirect_to is not None:
            return _answer(request, 302, None, {"Location": self.redirect_to + url.path})
        with self.lock:
            fault = next((f for f in self.faults if f.times and f.method == method and re.search(f.path, url.path)), None)
            if fault is not None:
                fault.times -= 1
        status, content = 0, None
        if fault is None or fault.carried_out:
            status, content = self.answer(method, url.path, parse_qs(url.query), body, authorization)
        if fault is not None:
            status, content = fault.status or 0, {"detail": "a fault of the test's"}
        if fault is not None and fault.status is None:
            request.close_connection = True
            return None
        return _answer(request, status, content, {})

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any, authorization: str | None) -> tuple[int, Any]:
        if path == "/api/token/refresh/":
            return (200, {"access": self.access}) if body == {"refresh": self.token} else (401, {"detail": "Token is invalid"})
        wanted = f"Bearer {self.access}" if self.access else f"Token {self.token}"
        if authorization != wanted:
            return 401, {"detail": "Invalid token."}
        with self.lock:
            return self._answer(method, path, query, body)

    def _answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if path == "/api/projects/" and method == "POST":
            number = len(self.projects) + 1
            self.projects[number] = {"id": number, **body}
            return 201, self.projects[number]
        if path == "/api/projects/":
            return 200, {"count": len(self.projects), "next": None, "results": list(self.projects.values())}
        if match := re.fullmatch(r"/api/projects/(\d+)/", path):
            found = self.projects.get(int(match[1]))
            return (200, found) if found else (404, {"detail": "Not found."})
        if match := re.fullmatch(r"/api/projects/(\d+)/import", path):
            if self.during_import is not None:
                hook, self.during_import = self.during_import, None
                hook()
            self.imported += body
            for task in body:
                self.add(int(match[1]), task["data"])
            return 201, {"task_count": len(body)}
        if path == "/api/tasks":
            page, size = int(query["page"][0]), int(query["page_size"][0])
            listed = [task for task in self.tasks.values() if task["project"] == int(query["project"][0])]
            part = listed[(page - 1) * size : page * size]
            return (200, {"tasks": part, "total": len(listed)}) if part or page == 1 else (404, {"detail": "Invalid page."})
        if match := re.fullmatch(r"/api/(tasks|annotations|drafts)/(\d+)/", path):
            kind, number = match[1], int(match[2])
            if kind == "tasks" and method == "DELETE":
                return (204, None) if self.tasks.pop(number, None) else (404, {"detail": "Not found."})
            if kind == "tasks":
                return (200, self.tasks[number]) if number in self.tasks else (404, {"detail": "Not found."})
            held = [each for task in self.tasks.values() for each in task[kind] if each["id"] == number]
            return (200, held[0]) if held else (404, {"detail": "Not found."})
        return 404, {"detail": "Not found."}

    def add(self, project: int, data: dict[str, Any]) -> dict[str, Any]:
        number = max(self.tasks, default=0) + 1
        self.tasks[number] = {"id": number, "project": project, "data": data, "annotations": [], "drafts": [], "total_annotations": 0}
        return self.tasks[number]

    def annotate(self, task: dict[str, Any], choice: str | None, *, skip: bool = False, time: str = TIME, who: int = 7) -> dict[str, Any]:
        result = [] if choice is None else [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}]
        number = 1000 + sum(len(each["annotations"]) for each in self.tasks.values())
        done = {"id": number, "completed_by": who, "was_cancelled": skip, "result": result, "created_at": time, "updated_at": time}
        task["annotations"].append(done)
        task["total_annotations"] += not skip
        return done

    def draft(self, task: dict[str, Any], choice: str) -> None:
        result = [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}]
        number = 5000 + task["id"]
        task["drafts"].append({"id": number, "user": "anna@example.org", "created_username": " anna@example.org, 7", "annotation": None,
                               "result": result, "created_at": TIME, "updated_at": TIME})  # fmt: skip


def _answer(request: BaseHTTPRequestHandler, status: int, content: Any, headers: dict[str, str]) -> None:
    data = b"" if content is None else json.dumps(content).encode()
    request.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(data)
