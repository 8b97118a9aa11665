import numpy as np
import numpy.typing as npt

from model_store import FloatArray

INTERFACE: int

def find(
    keys: list[str],
    hashes: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int32],
    slots: npt.NDArray[np.int64],
    /,
) -> int: ...
def gather(table: FloatArray, slots: npt.NDArray[np.int64], rows: FloatArray, /) -> None: ...
def order(
    scores: npt.NDArray[np.float64],
    places: npt.NDArray[np.int64],
    ordered: npt.NDArray[np.float64],
    /,
) -> int: ...
def write(
    keys: list[str], places: npt.NDArray[np.int64], scores: npt.NDArray[np.float64], /
) -> bytes: ...
