"""The studies import each other as scripts of one folder do."""

import sys

from ..conftest import ROOT

sys.path.insert(0, str(ROOT / "tools/studies"))
