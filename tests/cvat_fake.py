"""A CVAT of a few dozen lines: what raystream asks of the real one, in the shapes of `cvat_sdk` 2.80."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from label_studio_fake import FakeLabelStudio

UPDATED = "2026-03-01T12:00:00.000000Z"


@dataclass
class FakeCvat(FakeLabelStudio):
    """Its tasks by number; `uploads` are the pictures that came, by task, `sent` what was last posted to a path as JSON."""

    sent: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: dict[int, dict[str, bytes]] = field(default_factory=dict)
    labels: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    looks: int = 0
    broken: str | None = None

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any, authorization: str | None) -> tuple[int, Any]:
        if authorization != f"Bearer {self.token}":
            return 401, {"detail": "Invalid token."}
        with self.lock:
            if method == "POST" and isinstance(body, dict):
                self.sent[path] = body
            return self._answer(method, path, query, body)

    def _answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        if path == "/api/tasks" and method == "POST":
            number = len(self.tasks) + 1
            labels = [{"id": 10 * number + place, **label} for place, label in enumerate(body["labels"])]
            task = {
                "id": number,
                "name": body["name"],
                "size": 0,
                "labels": {"url": "u"},
                "jobs": {"url": "u", "count": 1, "completed": 0, "validation": 0},
                "state": "new",
                "assignee": None,
            }
            self.labels[number] = labels
            self.tasks[number] = task | {"frames": [], "coming": [], "deleted": [], "tags": [], "shapes": []}
            return 201, self.tasks[number]
        if path == "/api/tasks":
            return _page([task for task in self.tasks.values() if task["name"] == query["name"][0]])
        if path == "/api/requests":
            task = self.tasks[int(query["task_id"][0])]
            about = {"id": "rq", "created_date": UPDATED, "operation": {"type": "create:task", "target": "task", "task_id": task["id"]}}
            if self.broken:
                return _page([about | {"status": "failed", "message": self.broken}])
            status = "started" if task["coming"] else "finished"
            return _page([about | {"status": status, "message": ""}] if task["coming"] or task["frames"] else [])
        if path in ("/api/labels", "/api/jobs"):
            task = self.tasks[int(query["task_id"][0])]
            frames = {"start_frame": 0, "stop_frame": task["size"] - 1, "state": task["state"], "stage": "annotation"}
            about = {"assignee": task["assignee"], "updated_date": UPDATED, "issues": {"url": "u", "count": 0}, "labels": {"url": "u"}}
            job = {"id": 70 + task["id"], "task_id": task["id"]} | frames | about
            return _page(self.labels[task["id"]] if path == "/api/labels" else [job])
        match = re.fullmatch(r"/api/tasks/(\d+)(.*)", path)
        task = self.tasks.get(int(match[1])) if match else None
        if match is None or task is None:
            return 404, {"detail": "Not found."}
        if match[2] == "":
            if task["coming"] and self.looks == 0:
                task["frames"], task["coming"], task["size"] = task["coming"], [], len(task["coming"])
            self.looks = max(0, self.looks - 1)
            return 200, task
        if match[2] == "/data/meta":
            frames = [{"name": name, "width": 1, "height": 1, "related_files": 0} for name in task["frames"]]
            return 200, {"size": task["size"], "frames": frames, "deleted_frames": task["deleted"], "chunks_updated_date": UPDATED}
        if match[2] == "/annotations/":
            return 200, {"version": 1, "tags": task["tags"], "shapes": task["shapes"], "tracks": []}
        if match[2] == "/data/":
            return self._data(task, body)
        return 404, {"detail": "Not found."}

    def _data(self, task: dict[str, Any], body: Any) -> tuple[int, Any]:
        if isinstance(body, bytes):
            found = re.findall(rb'filename="([^"]+)"\r\n[^\r]*\r\n\r\n(.*?)\r\n--', body, re.DOTALL)
            self.uploads.setdefault(task["id"], {}).update({name.decode(): data for name, data in found})
            return 200, None
        if body is None:
            return 202, None
        if task["frames"] or task["coming"]:
            return 400, {"detail": "Adding more data is not supported"}
        assert body["sorting_method"] == "predefined"
        names = body.get("upload_file_order") or [url.rpartition("/")[2] for url in body["remote_files"]]
        task["coming"] = list(names)
        return 202, {"rq_id": "rq"}


def _page(results: list[Any]) -> tuple[int, Any]:
    return 200, {"count": len(results), "next": None, "previous": None, "results": results}
