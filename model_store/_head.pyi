from typing import NewType

import numpy as np
import numpy.typing as npt

from model_store.history import FloatArray

INTERFACE: int

Head = NewType("Head", object)

def prepare(
    key: FloatArray,
    score: FloatArray,
    user: FloatArray,
    interaction: FloatArray | None,
    output: FloatArray,
    bias: float,
    /,
) -> Head: ...
def score(
    head: Head,
    way: int,
    profile: FloatArray,
    table: FloatArray,
    slots: npt.NDArray[np.int64] | None,
    logits: FloatArray,
    /,
) -> None: ...
def ways() -> tuple[int, ...]: ...
