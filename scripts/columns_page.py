"""Generate docs/columns.md, every column of a manifest, from balancer/manifest/columns.py.

python scripts/columns_page.py
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from balancer.cells import CLASS_PROPERTY
from balancer.manifest.columns import COLUMNS, FACET, Column
from balancer.manifest.schema import SCHEMA_VERSION, manifest_schema

PAGE = Path(__file__).resolve().parent.parent / "docs" / "columns.md"

INTRODUCTION = f"""\
# Columns of the manifest

A row is one image: a real one, or a generated candidate, accepted or not. Queries show the accepted rows;
`balancer query --all` and `Manifest.to_table(status="all")` include the others. A column is null in rows it
does not apply to: a real image has no prompt. This is schema {SCHEMA_VERSION}.

```sh
balancer query runs/demo "class = 'burnt' and score >= 0.8" --columns id,score,scores
balancer query runs/demo --all --count-by status,reason
```

`manifest/current.parquet` has all columns of the accepted images except `embedding` and `probabilities`.
`seed` is text there, in CSV and in JSON.

| column | type | |
|---|---|---|
"""

BY_CONFIG = {
    "scores": "struct: a double for each property",
    "probabilities": "struct: a list of floats for each property",
    "embedding": "list of halffloats, as many as the verifier's embedding has",
}
"""Types whose width the config decides."""


def page() -> str:
    return INTRODUCTION + "".join(map(_row, COLUMNS))


def _row(column: Column) -> str:
    name = "*facet*" if column.name == FACET else f"`{column.name}`"
    return f"| {name} | {_type(column)} | {column.meaning} |\n"


def _type(column: Column) -> str:
    if column.type in BY_CONFIG:
        return BY_CONFIG[column.type]
    schema = manifest_schema({CLASS_PROPERTY: 2, FACET: 2}, embedding_dim=1)
    kind = schema.field(column.name).type
    if pa.types.is_dictionary(kind):
        return f"{kind.value_type}, dictionary-encoded"
    return f"list of {kind.value_type}s" if pa.types.is_list(kind) else f"{kind}"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
