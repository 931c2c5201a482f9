"""Opens a harvest's files with pyarrow and safetensors, and compares the two."""

import json
import sys
from pathlib import Path

import numpy
import pyarrow.parquet
from safetensors import safe_open
from safetensors.numpy import load_file

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
whole, half, brain, sparse = [selection["point"] for selection in manifest["points"]]
seen = 0
for metadata in sorted((folder / "shards").glob("*.json")):
    shard = metadata.stem
    table = pyarrow.parquet.read_table(folder / "activations" / f"{shard}.parquet")
    tensors = {}
    with safe_open(folder / "activations" / f"{shard}.safetensors", framework="numpy") as file:
        for name in file.keys():
            if name != brain:
                tensors[name] = file.get_tensor(name)
    n = table.num_rows
    seen += n
    assert n == json.loads(metadata.read_text())["activations"], n
    for name in ["row", "position", "token", "document"]:
        assert (table[name].to_numpy() == tensors[name]).all(), name
    for name, kind in [(whole, "float"), (half, "halffloat")]:
        column = table.schema.field(name)
        assert str(column.type.value_type) == kind, column
        values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(n, -1)
        assert (values == tensors[name]).all(), name
    # bf16: the bytes of a row, which are the upper halves of single precision.
    column = table.schema.field(brain)
    assert column.metadata[b"dtype"] == b"bf16", column.metadata
    rows = numpy.frombuffer(b"".join(table[brain].to_pylist()), dtype="<u2").reshape(n, -1)
    values = (rows.astype("<u4") << 16).view("<f4")
    exact = table[whole].combine_chunks().flatten().to_numpy().reshape(n, -1)
    assert numpy.abs(values - exact).max() <= numpy.abs(exact).max() / 128, "bf16"
    offsets = tensors[f"{sparse}.offsets"]
    assert (numpy.diff(offsets) == 3).all()
    for part in ["index", "value"]:
        found = table[f"{sparse}.{part}"].combine_chunks()
        assert (found.offsets.to_numpy() == offsets).all()
        assert (found.flatten().to_numpy() == tensors[f"{sparse}.{part}"]).all(), part
    rows = pyarrow.parquet.read_table(folder / "rows" / f"{shard}.parquet").to_pylist()
    for row, position, token in zip(tensors["row"], tensors["position"], tensors["token"]):
        assert rows[row]["tokens"][position] == token
    statistics = load_file(folder / "statistics" / f"{shard}.safetensors")
    assert numpy.allclose(statistics[f"{whole}.mean"], exact.astype("f8").mean(0), atol=1e-9)
print(seen)
