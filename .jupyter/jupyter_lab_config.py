"""JupyterLab for the workbook: `jupyter lab --config=.jupyter/jupyter_lab_config.py`, which is what `make lab` runs.

It opens nbs/ on loopback, highlights `%%cuda` cells, loads the magic in every kernel, folds solutions, and saves notebooks clean.
"""

import os
import sys
import warnings
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
from folding import WorkbookContents  # noqa: E402
from saving import pre_save_hook  # noqa: E402
from specs import WorkbookKernelSpecs  # noqa: E402

c = get_config()  # noqa: F821 - given to configuration files by Jupyter

c.ServerApp.ip = "127.0.0.1"
c.ServerApp.root_dir = str(here.parent / "nbs")
c.ServerApp.kernel_spec_manager_class = WorkbookKernelSpecs
c.ServerApp.contents_manager_class = WorkbookContents
c.FileContentsManager.pre_save_hook = pre_save_hook
# Jupyter applies this file to the server and to the application, and warns that the second hook replaces the first.
warnings.filterwarnings("ignore", "Overriding existing pre_save_hook")
c.LabApp.extra_labextensions_path = [str(here / "labextensions")]

# Nothing here needs another host: no look-up of news or of newer versions.
c.LabApp.app_settings_dir = str(here / "settings")
c.LabApp.news_url = None
c.LabApp.check_for_updates_class = "jupyterlab.NeverCheckForUpdate"

# Kernels inherit it. Figures are then stored as data, without a copy of the script that draws them.
os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype")
