"""Rows in: where the pool's files are, which units they make, how their columns become tensors.

`plan_pool` lists files, reads footers and cuts units; `read_unit` turns one unit into ids and clean tensors, in any
process; `read_labelled` and `locate_labelled` find what is labelled already; `read_columns_at` fetches columns of chosen rows.
"""

from raystream.lake.uri import TableVersion
from raystream.pool.columns import Column
from raystream.pool.files import File, OutageError, UnreachableError, unsettled
from raystream.pool.folders import list_files, refuse_among
from raystream.pool.footers import Footer, read_footers
from raystream.pool.ids import UniqueIds, check_unique, comparable
from raystream.pool.labelled import Labelled, LabelledMarks, has_columns, labelled_units, locate_labelled, read_labelled
from raystream.pool.plan import PoolPlan, plan_pool
from raystream.pool.reader import BadRow, ReadSpec, UnitRows, read_unit
from raystream.pool.scan import Places, read_columns_at
from raystream.pool.tables import list_pool
from raystream.pool.units import Unit, UnitNames, Units, cut_units, units_at

__all__ = [
    "BadRow",
    "Column",
    "File",
    "Footer",
    "Labelled",
    "LabelledMarks",
    "OutageError",
    "Places",
    "PoolPlan",
    "ReadSpec",
    "TableVersion",
    "UniqueIds",
    "Unit",
    "UnitNames",
    "UnitRows",
    "Units",
    "UnreachableError",
    "check_unique",
    "comparable",
    "cut_units",
    "has_columns",
    "labelled_units",
    "list_files",
    "list_pool",
    "locate_labelled",
    "plan_pool",
    "read_columns_at",
    "read_footers",
    "read_labelled",
    "read_unit",
    "refuse_among",
    "units_at",
    "unsettled",
]
