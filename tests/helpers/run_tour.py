"""Run docs/tour.ipynb and write what its cells show into it: `make tour`.

Warnings and progress of the environment that it runs in are left out.
"""

import nbformat
from nbclient import NotebookClient
from repository import ROOT

NOTEBOOK = ROOT / "docs" / "tour.ipynb"

if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": ROOT}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    nbformat.write(notebook, NOTEBOOK)
