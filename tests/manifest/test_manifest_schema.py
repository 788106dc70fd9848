from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest

from balancer.config.schema import RESERVED_FACET_NAMES
from balancer.errors import ManifestError
from balancer.manifest.columns import COLUMNS as TABLE
from balancer.manifest.schema import check_version, difference, manifest_schema, rows_to_table
from balancer.runs.lineage import Lineage

COLUMNS = (
    "id file_name class lighting burn_level cell slot attempt source status reason review reviewed score "
    "scores probabilities second_scores unjudged threshold fallback prompt negative_prompt wording changes "
    "seed model model_revision loras verifier verifier_revision steps guidance width height sha256 num_bytes "
    "brightness deviation nonfinite unsafe typicality domain_score pixel_sha256 phash "
    "nearest_id nearest_distance nearest_similarity embedding parent_id parent_pixel_sha256 strength "
    "parent_distance parent_similarity split device batch_size generated_at run_id origin_run_id origin_id"
).split()
SCHEMA = manifest_schema({"class": 2, "lighting": 4, "burn_level": 3}, 3)


def values(column: str, *given: object) -> list[object]:
    found: list[object] = rows_to_table([{column: value} for value in given], SCHEMA)[column].to_pylist()
    return found


def test_the_columns_are_those_of_the_design():
    assert SCHEMA.names == COLUMNS


def test_runs_of_earlier_versions_have_the_columns_of_their_time():
    earlier = manifest_schema({"class": 2, "lighting": 4, "burn_level": 3}, 3, run_format=1)
    parent = ["parent_pixel_sha256", "strength", "parent_distance", "parent_similarity"]
    later = ["reviewed", "loras", "typicality", "domain_score", *parent, "origin_run_id", "origin_id"]
    assert [name for name in COLUMNS if name not in earlier.names] == later
    growing = manifest_schema({"class": 2, "lighting": 4, "burn_level": 3}, 3, run_format=3)
    assert [name for name in COLUMNS if name not in growing.names] == ["reviewed", "loras", *parent]
    conditioned = manifest_schema({"class": 2, "lighting": 4, "burn_level": 3}, 3, run_format=4)
    assert [name for name in COLUMNS if name not in conditioned.names] == ["reviewed", "loras"]
    adapted = manifest_schema({"class": 2, "lighting": 4, "burn_level": 3}, 3, run_format=5)
    assert [name for name in COLUMNS if name not in adapted.names] == ["reviewed"]


def test_no_facet_may_be_named_after_a_column_or_a_key_of_the_plan():
    columns = set(COLUMNS) - {"lighting", "burn_level"}
    assert columns | {"quota", "priority", "off_domain"} == RESERVED_FACET_NAMES


def test_exported_columns_have_one_place_each():
    places = [column.exported for column in TABLE if column.exported is not None]
    assert sorted(places) == list(range(1, len(places) + 1))


def test_lineage_has_a_field_for_every_column_it_reads():
    fields = {field.name for field in dataclasses.fields(Lineage)}
    renamed = {"class": "class_name", "parent_id": "parent"}
    assert {
        renamed.get(column.name, column.name) for column in TABLE if "lineage" in column.read_by
    } <= fields


def test_classes_and_facets_are_dictionaries():
    dictionaries = [field.name for field in SCHEMA if pa.types.is_dictionary(field.type)]
    assert dictionaries == ["class", "lighting", "burn_level"]


def test_what_a_row_lacks_is_null():
    table = rows_to_table([{}], SCHEMA)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert all(column.null_count == 1 for column in table.columns)


def test_a_seed_has_all_of_its_64_bits():
    assert values("seed", 0, 2**64 - 1) == [0, 2**64 - 1]


def test_scores_hold_the_properties_that_apply():
    assert values("scores", {"class": 0.5}) == [{"class": 0.5, "lighting": None, "burn_level": None}]


def test_every_value_of_a_property_has_its_probability():
    of_one = {"class": [0.25, 0.75], "lighting": [0.5, 0.25, 0.125, 0.125], "burn_level": None}
    assert values("probabilities", of_one) == [of_one]
    another_class = {"class": [0.25, 0.5, 0.25], "lighting": None, "burn_level": None}
    assert values("probabilities", another_class) == [another_class]
    earlier = manifest_schema({"class": 2}, 3, run_format=2)
    with pytest.raises(ManifestError, match="probabilities"):
        rows_to_table([{"probabilities": {"class": [0.25, 0.5, 0.25]}}], earlier)


VERDICT_NUMBERS = "brightness deviation unsafe typicality domain_score nearest_similarity score".split()


@pytest.mark.parametrize("column", VERDICT_NUMBERS)
def test_what_a_verdict_follows_from_is_kept_to_the_last_bit(column):
    assert values(column, 0.1, 0.7) == [0.1, 0.7]


def test_the_scores_a_verdict_follows_from_are_kept_to_the_last_bit():
    of_one = {"class": 0.1, "lighting": 0.7, "burn_level": None}
    assert values("scores", of_one) == values("second_scores", of_one) == [of_one]


def test_an_embedding_is_bytes_an_array_numbers_or_nothing():
    half = np.array([1, 2, 3], np.float16)
    assert values("embedding", half.tobytes(), half, [1, 2, 3], None) == [[1, 2, 3]] * 3 + [None]


def test_a_score_that_is_no_number_is_kept():
    (found,) = values("score", math.nan)
    assert isinstance(found, float)
    assert math.isnan(found)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seed", -1),
        ("seed", 2**64),
        ("width", "wide"),
        ("prompt", "\ud800"),
        ("embedding", [1, 2]),
        ("embedding", b"12345"),
        ("generated_at", "yesterday"),
    ],
)
def test_a_value_that_does_not_fit_is_named(column, value):
    with pytest.raises(ManifestError, match=rf"{column}.* of the 1 rows from 'x' on"):
        rows_to_table([{"id": "x", column: value}], SCHEMA)


def test_a_column_the_manifest_lacks_is_named():
    with pytest.raises(ManifestError, match="row 'x' has no place for colour"):
        rows_to_table([{"id": "x", "colour": "red"}], SCHEMA)


def test_a_newer_schema_is_refused_with_the_way_out():
    newer = SCHEMA.with_metadata({"balancer.schema_version": "3"})
    with pytest.raises(ManifestError, match=r"file: manifest schema 3 is newer than 2") as caught:
        check_version(newer, "file")
    assert caught.value.hint == "upgrade balancer"


def test_an_older_schema_is_refused_with_the_way_out():
    older = SCHEMA.with_metadata({"balancer.schema_version": "1"})
    with pytest.raises(ManifestError, match=r"file: manifest schema 1 is older than 2") as caught:
        check_version(older, "file")
    assert "anew in another folder" in caught.value.hint


@pytest.mark.parametrize("metadata", [None, {}, {"balancer.schema_version": "one"}])
def test_a_table_without_a_version_is_no_manifest(metadata):
    with pytest.raises(ManifestError, match="no schema version"):
        check_version(SCHEMA.with_metadata(metadata), "file")


def test_a_difference_is_told_in_words():
    index = SCHEMA.names.index("width")
    assert difference(SCHEMA, SCHEMA) == ""
    assert difference(SCHEMA.remove(index), SCHEMA) == "no column 'width'"
    assert difference(SCHEMA.append(pa.field("x", pa.int8())), SCHEMA) == "unknown column 'x'"
    assert difference(pa.schema(list(SCHEMA)[::-1]), SCHEMA) == "the columns stand in another order"
    wide = SCHEMA.set(index, pa.field("width", pa.int64()))
    assert difference(wide, SCHEMA) == "column 'width' is int64, not int32"


def test_an_extension_type_is_a_difference_wherever_it_hides():
    hidden = pa.field("phash", pa.struct([("inner", pa.list_(pa.uuid()))]))
    odd = SCHEMA.set(SCHEMA.names.index("phash"), hidden)
    assert "extension type" in difference(odd, SCHEMA)
