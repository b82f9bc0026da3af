from pathlib import Path
from raystream.engine.result import Result
def write_report(result: Result) -> Path:
    return result.folder / "report.html"
