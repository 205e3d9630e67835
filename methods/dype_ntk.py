"""DyPE, NTK form: the base grows with the stretch and with the noise level.

See methods/dype.py, option `form`: base' = base (s^(d / (d - 2)))^(2 t^2), t = 1 being noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.dype import DyPE


class DyPENTK(DyPE):
    title = "DyPE (NTK)"

    @dataclass(frozen=True)
    class Options(DyPE.Options):
        form: str = "ntk"
