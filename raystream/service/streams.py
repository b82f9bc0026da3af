"""placeholder"""
from __future__ import annotations

from fastapi import APIRouter


class Deciders:
    def __init__(self, config, store, metrics) -> None:
        pass

    def router(self, callers) -> APIRouter:
        return APIRouter()

    def close(self) -> None:
        pass
