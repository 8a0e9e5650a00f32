"""What `colocate tile` writes, for its writer and its readers: names of files, and the columns of the manifest."""

from __future__ import annotations

import pyarrow as pa

MANIFEST = "manifest.parquet"
SETTINGS = "tiling.json"  # in the folder from the first slide on
NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("slide", NAMES),
        ("source", NAMES),  # the patient or case; the slide where the table says none
        ("path", NAMES),  # of the slide's file
        ("x", pa.int32()),  # level0 pixels of the tile's top left
        ("y", pa.int32()),
        ("mpp", pa.float32()),  # micrometres per pixel of the tile
        ("slide_mpp", pa.float32()),  # and of the slide's finest level
        ("size", pa.int32()),  # side in px
        ("tissue", pa.float32()),  # share of the tile
        ("sharpness", pa.float32()),  # null where the tile was not looked at
        ("shard", NAMES),  # relative to the manifest; null where there are no shards
        ("offset", pa.int64()),  # of the JPEG in its shard
        ("bytes", pa.int64()),
    ]
)
NEEDED = set(SCHEMA.names) - {"tissue", "sharpness"}  # for reading tiles
