"""Loaders by name, each over its own form of the same samples."""

from __future__ import annotations

from importlib import import_module

from benchmarks.data.loaders.interface import Loader

# Modules are imported when a loader is asked for: peers are heavy, and may be absent.
_HOMES = {
    "webdataset": ("tars", "NaiveWebDataset"),
    "webdataset tuned": ("tars", "TunedWebDataset"),
    "webdataset skipping": ("tars", "SkippingWebDataset"),
    "webdataset stateful": ("tars", "StatefulWebDataset"),
    "stateful map": ("flat", "StatefulMap"),
    "flat memmap": ("flat", "FlatMemmap"),
    "mosaic": ("mosaic", "Mosaic"),
    "litdata": ("lit", "Litdata"),
    "litdata TokensLoader": ("lit", "LitdataTokens"),
    "energon": ("energons", "Energon"),
    "ours": ("ours", "Ours"),
    "ours mapped": ("ours", "OursMapped"),
}


def make_loader(name: str) -> Loader:
    """Return a loader.

    Raises:
        ImportError: If what it needs is not installed.
    """
    module, kind = _HOMES[name]
    loader: Loader = getattr(import_module(f"benchmarks.data.loaders.{module}"), kind)()
    return loader
