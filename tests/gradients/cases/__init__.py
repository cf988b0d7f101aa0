"""The one list of gradient cases, a file per family: every registered rule has at least one.

Tests and benchmarks read `CASES`; a family is a module of this package with a list of that name.
"""

from importlib import import_module
from pkgutil import iter_modules

from tests.gradients.case import Case

FAMILIES: dict[str, list[Case]] = {
    module.name: import_module(f"{__name__}.{module.name}").CASES for module in iter_modules(__path__)
}
CASES: list[Case] = [case for cases in FAMILIES.values() for case in cases]
