"""Whatever is changed in the file of a board, reading it or deriving it again finds out."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advens.errors import InputError, RunError
from advens.results.boards import BOARDS, board_mismatches, read_board, write_board
from advens.results.store import files, schema, write_table

from .test_trial import LINES, folder  # noqa: F401

OF_A_RUN = ("matrix", "leaderboard", "robustness")
OF_DEFENSES = ("models", "images", "defenses", "study")


@pytest.fixture
def stored(request, run, rows, folder):  # noqa: F811
    """``stored("matrix")``: a directory with this board and all that it follows from."""

    def make(name):
        if name in OF_DEFENSES:
            directory = folder(LINES)
            for each in OF_DEFENSES[1:]:
                write_board(directory, each)
            return directory
        store = run(rows([
            {"attack": attack, "surrogates": "digits:vit", "target": "digits:vit", "sample_id": str(i),
             "adv_pred": 2 if i < broken else 1, "cell": f"{attack}-0"}
            for attack, broken in (("pma", 3), ("square", 6)) for i in range(10)
        ]), goal="robustness", after="", notes=["flat"], surrogate_specs=["digits:vit"])  # fmt: skip
        write_board(store.directory, name)
        return store.directory

    return make


def found_out(directory, name) -> list[str]:
    """What is said when a board is read, and when it and those above it are derived again."""
    try:
        read_board(directory, name)
    except (RunError, InputError) as error:
        return [str(error)]
    above = OF_DEFENSES if name in OF_DEFENSES else (name,)
    return [line for each in above for line in board_mismatches(directory, each)]


def resealed(directory, name, change) -> None:
    """Writes the board with a changed table, its seal and number of rows right again."""
    path = directory / f"{name}.parquet"
    table = files.read_table(path)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != schema.ROWS}
    write_table(path, change(table).replace_schema_metadata(metadata))


def changed(table: pa.Table, name: str) -> pa.Table:
    """The table with one value of a column changed."""
    column = table.column(name)
    values = column.to_pylist()
    place = next((k for k, value in enumerate(values) if value is not None), 0)
    value = values[place]
    if pa.types.is_boolean(column.type):
        values[place] = not value
    elif pa.types.is_integer(column.type):
        values[place] = (value or 0) + 1
    elif pa.types.is_floating(column.type):
        values[place] = 0.123 if value is None else value + 0.001
    else:
        values[place] = f"{value}x"
    field = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), field, pa.array(values, column.type))


def test_every_kind_is_tried():
    assert set(OF_A_RUN) | set(OF_DEFENSES) <= set(BOARDS.names())


@pytest.mark.parametrize("name", [*OF_A_RUN, *OF_DEFENSES])
def test_a_sound_board_is_believed(stored, name):
    directory = stored(name)
    assert found_out(directory, name) == []


MEASURED = {"why", "measured", "eps", "measure_seed", "counted", "digest"}
"""What nothing else in a folder follows from: to measure the models again would tell."""


@pytest.mark.parametrize("name", [*OF_A_RUN, *OF_DEFENSES])
def test_one_value_in_any_column(stored, name):
    directory = stored(name)
    sound = (directory / f"{name}.parquet").read_bytes()
    columns = [each for each in pd.read_parquet(directory / f"{name}.parquet")
               if name != "models" or each not in MEASURED]  # fmt: skip
    assert columns
    for column in columns:
        resealed(directory, name, lambda table, column=column: changed(table, column))
        assert found_out(directory, name), column
        (directory / f"{name}.parquet").write_bytes(sound)


@pytest.mark.parametrize("name", [*OF_A_RUN, *OF_DEFENSES])
def test_a_row_or_column_less_or_more(stored, name):
    directory = stored(name)
    path = directory / f"{name}.parquet"
    sound = path.read_bytes()
    changes = [
        lambda table: table.append_column("extra", pa.array([1.0] * table.num_rows)),
        *(lambda table, k=k: table.remove_column(k) for k in range(len(pq.read_schema(path).names))),
    ]
    if name != "models":
        changes += [lambda table: table.slice(1), lambda table: pa.concat_tables([table, table.slice(0, 1)])]
    for change in changes:
        resealed(directory, name, change)
        assert found_out(directory, name)
        path.write_bytes(sound)


@pytest.mark.parametrize("name", [*OF_A_RUN, *OF_DEFENSES])
def test_a_byte(stored, name):
    directory = stored(name)
    path = directory / f"{name}.parquet"
    sound = path.read_bytes()
    for place in range(0, len(sound), len(sound) // 25):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x10]) + sound[place + 1 :])
        with pytest.raises(RunError):
            read_board(directory, name)


@pytest.mark.parametrize("name", [*OF_A_RUN, *OF_DEFENSES])
def test_no_file_or_one_without_a_seal(stored, name):
    directory = stored(name)
    path = directory / f"{name}.parquet"
    pd.read_parquet(path).to_parquet(path)
    assert "not sealed" in board_mismatches(directory, name)[0]
    path.unlink()
    assert board_mismatches(directory, name) == [f"{name}.parquet is missing"]


@pytest.mark.parametrize("name", OF_A_RUN[1:])
def test_another_note(stored, name):
    directory = stored(name)
    path = directory / f"{name}.parquet"
    table = files.read_table(path)
    notes = {b"advens.notes": b'["well done"]'}
    write_table(path, table.replace_schema_metadata(table.schema.metadata | notes))
    assert board_mismatches(directory, name)
