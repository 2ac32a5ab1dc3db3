"""docs/notebooks/first.ipynb runs from top to bottom, and shows what its text says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import linnaeus

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "first.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_first_cell_installs():
    assert "%pip install" in code_cells()[0]
    assert "linnaeus" in code_cells()[0]


def outputs(notebook: Any, cell: int) -> dict[str, str]:
    """MIME type -> data of the outputs of a code cell."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    shown: dict[str, str] = {}
    for output in cells[cell].outputs:
        shown |= output.get("data", {"text/stream": output.get("text", "")})
    return shown


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="pip install ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(Path(linnaeus.__file__).parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    kernels = tmp_path / "jupyter" / "kernels" / "python3"  # this Python, and no kernel that another program installed
    kernels.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "Python 3", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()

    assert outputs(notebook, 0)["text/plain"] == repr(linnaeus.__version__)
    assert "of 180" in outputs(notebook, 1)["text/html"]
    assert len(outputs(notebook, 2)["image/png"]) > 10_000
    assert len(outputs(notebook, 3)["image/png"]) > 10_000
    assert "image/png" in outputs(notebook, 4)
    assert "4" in outputs(notebook, 4)["text/html"]
    assert "text/html" in outputs(notebook, 5)
    assert "of 359" in outputs(notebook, 6)["text/html"]
    assert "array" in outputs(notebook, 7)["text/plain"]
    assert (tmp_path / "runs" / "digits-1" / "report.html").is_file()
