"""Several takes of one scene: which of them is its picture.

That follows from the rows alone, whoever asks and when: the best score counts, and of equal ones the lower take. A take
that nobody has looked at counts below all others. All takes stay in the index, and their files in the output.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def picture_ids(table: pa.Table) -> pa.ChunkedArray:
    """For each row the asset id that the plan knows its picture by: that of the first take."""
    return pc.coalesce(table["take_of"], table["asset_id"])


def chosen_rows(table: pa.Table) -> pa.Table:
    """The rows of pictures: for each scene that of its best take, in the order of the table.

    A take that failed counts only where there is no other.

    Args:
        table: with one row per asset and at least the columns asset_id, status, take, take_of and score, as
            :func:`~consistory_ray.output.index.rows.latest_rows` leaves them.
    """
    if table["take_of"].null_count == len(table):
        return table
    codes = picture_ids(table).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    score = pc.fill_null(table["score"], -np.inf).to_numpy()
    take = pc.fill_null(table["take"], 1).to_numpy()
    failed = pc.not_equal(table["status"], "ok").to_numpy()
    order = np.lexsort((take, -score, failed, codes))  # the last key counts most
    first = np.ones(len(order), np.bool_)
    first[1:] = codes[order[1:]] != codes[order[:-1]]
    return table.take(pa.array(np.sort(order[first])))
