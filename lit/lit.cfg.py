"""lit: each ``*.mlir`` file here runs the line after ``RUN:``; the folder is the pass that it tests."""

import os
import sys
from pathlib import Path

import lit.formats

config.name = "effc"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir"]
config.test_source_root = str(Path(__file__).parent)
config.test_exec_root = str(Path(__file__).parent.parent / "build" / "lit")
# effc-opt and filecheck of the environment that lit itself runs in.
config.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
