"""The compliance kit: tests of a component's contract, for the authors of plugins.

There is a class for each kind. Extend it in a test file and name the component; pytest collects its tests::

    from exfm.testing import BackboneTests

    class TestMine(BackboneTests):
        component = Mine
        plugin = exfm_plugin_mine
        configs = ({}, {"layers": 3})  # as written in YAML; every test runs for each

``ComponentTests`` has the tests of components of every kind.

The kit needs pytest: ``pip install 'exfm[test]'``. With exfm installed, pytest also has the fixture ``exfm_registry``
(see ``exfm.testing.plugin``). The names of this module, which the stub beside it lists, are imported on first use,
because pytest imports the fixture in every project.
"""

from __future__ import annotations

from exfm.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
