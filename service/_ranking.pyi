import numpy as np
import numpy.typing as npt

from model_store import FloatArray

def find(
    keys: list[str],
    hashes: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int32],
    slots: npt.NDArray[np.int64],
    /,
) -> int: ...
def gather(table: FloatArray, slots: npt.NDArray[np.int64], rows: FloatArray, /) -> None: ...
def order(
    scores: npt.NDArray[np.float64], limit: int, /
) -> tuple[list[int], list[float], list[int]]: ...
