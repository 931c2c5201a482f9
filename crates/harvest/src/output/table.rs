//! Parquet files: the table of activations and that of the rows that the model read.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::types::Float16Type;
use arrow_array::{
    Array, ArrayRef, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, ListArray, PrimitiveArray, RecordBatch,
    UInt32Array, UInt64Array,
};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::Finished;
use crate::prepare::{Prepared, Token};
use crate::{DType, Error, Job, Result};

/// About how many bytes a row group has.
const GROUP_BYTES: usize = 16 << 20;
/// The columns that say where an activation is from.
const INDEX: [&str; 6] = ["row", "position", "token", "document", "text_start", "text_end"];

/// Where each activation is from, in the order of the files.
pub(super) struct Index {
    pub(super) row: Vec<u32>,
    pub(super) position: Vec<u32>,
    pub(super) token: Vec<i64>,
    pub(super) document: Vec<u64>,
    pub(super) text: Vec<Option<(u64, u64)>>,
}

impl Index {
    pub(super) fn of(prepared: &Prepared) -> Self {
        let n = prepared.activations();
        let mut index = Index {
            row: vec![0; n],
            position: vec![0; n],
            token: vec![0; n],
            document: vec![0; n],
            text: vec![None; n],
        };
        for (row, kept) in prepared.kept.iter().enumerate() {
            for (&position, &place) in kept.iter().zip(&prepared.places[prepared.first[row]..]) {
                let Token { id, document, text } = prepared.rows[row][position];
                index.row[place] = row as u32;
                index.position[place] = position as u32;
                index.token[place] = id;
                index.document[place] = document;
                index.text[place] = text;
            }
        }
        index
    }
}

/// The table of activations.
pub(super) fn activations(job: &Job, prepared: &Prepared, columns: &[Finished]) -> Result<Vec<u8>> {
    let failed = |why: ArrowError| failed(prepared, &why);
    let Index { row, position, token, document, text } = Index::of(prepared);
    let mut fields = vec![
        Field::new(INDEX[0], DataType::UInt32, false),
        Field::new(INDEX[1], DataType::UInt32, false),
        Field::new(INDEX[2], DataType::UInt32, false),
        Field::new(INDEX[3], DataType::UInt64, false),
        Field::new(INDEX[4], DataType::UInt64, true),
        Field::new(INDEX[5], DataType::UInt64, true),
    ];
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(row)),
        Arc::new(UInt32Array::from(position)),
        Arc::new(UInt32Array::from_iter_values(token.iter().map(|&id| id as u32))),
        Arc::new(UInt64Array::from(document)),
        Arc::new(text.iter().map(|text| text.map(|(start, _)| start)).collect::<UInt64Array>()),
        Arc::new(text.iter().map(|text| text.map(|(_, end)| end)).collect::<UInt64Array>()),
    ];
    let mut row_bytes = 40;
    for (kept, column) in job.points().iter().zip(columns) {
        match column {
            Finished::Dense { width, dtype, numbers } => {
                row_bytes += width * dtype.bytes();
                let (field, array) =
                    dense(&kept.column, *width, *dtype, numbers, prepared.activations()).map_err(failed)?;
                fields.push(field);
                arrays.push(array);
            }
            Finished::Sparse { offsets, index, dtype, value } => {
                row_bytes += index.len() / prepared.activations().max(1) * 8;
                let offsets: Vec<i32> =
                    offsets.iter().map(|&offset| i32::try_from(offset)).collect::<Result<_, _>>().map_err(|_| {
                        Error::Setting(
                            "a shard has over two thousand million entries: plan smaller shards, with `--shard-tokens`"
                                .into(),
                        )
                    })?;
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                let index = UInt32Array::from(index.clone());
                let (kind, value) = primitive(*dtype, value.clone());
                for (part, kind, array) in
                    [("index", DataType::UInt32, Arc::new(index) as ArrayRef), ("value", kind, value)]
                {
                    let item = Arc::new(Field::new("item", kind, false));
                    let name = format!("{}.{part}", kept.column);
                    fields.push(Field::new(name, DataType::List(item.clone()), false));
                    arrays.push(Arc::new(ListArray::try_new(item, offsets.clone(), array, None).map_err(failed)?));
                }
            }
        }
    }
    let metadata = vec![
        KeyValue::new("tch_lens_harvest.manifest".to_string(), job.manifest_hash().to_string()),
        KeyValue::new("tch_lens_harvest.shard".to_string(), prepared.shard.to_string()),
    ];
    let table = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(failed)?;
    write(prepared, &table, (GROUP_BYTES / row_bytes).max(256), metadata)
}

/// A column of lists of one length; of bf16, for which there is no type, of their bytes.
fn dense(name: &str, width: usize, dtype: DType, numbers: &Buffer, n: usize) -> Result<(Field, ArrayRef), ArrowError> {
    let about = |field: Field| field.with_metadata(HashMap::from([("dtype".to_string(), dtype.name().to_string())]));
    if dtype == DType::Bf16 {
        let size = (2 * width) as i32;
        let array = FixedSizeBinaryArray::try_new(size, numbers.clone(), None)?;
        debug_assert_eq!(array.len(), n);
        return Ok((about(Field::new(name, DataType::FixedSizeBinary(size), false)), Arc::new(array)));
    }
    let (kind, values) = primitive(dtype, numbers.clone());
    let item: FieldRef = Arc::new(Field::new("item", kind, false));
    let array = FixedSizeListArray::try_new(item.clone(), width as i32, values, None)?;
    Ok((about(Field::new(name, DataType::FixedSizeList(item, width as i32), false)), Arc::new(array)))
}

/// Numbers as an array of their type: fp32, or fp16.
fn primitive(dtype: DType, numbers: Buffer) -> (DataType, ArrayRef) {
    match dtype {
        DType::Fp32 => {
            let len = numbers.len() / 4;
            (DataType::Float32, Arc::new(Float32Array::new(ScalarBuffer::new(numbers, 0, len), None)))
        }
        DType::Fp16 | DType::Bf16 => {
            let len = numbers.len() / 2;
            let array = PrimitiveArray::<Float16Type>::new(ScalarBuffer::new(numbers, 0, len), None);
            (DataType::Float16, Arc::new(array))
        }
    }
}

/// The table of the rows that the model read: tokens, the document of each, and where each lies in the document's text.
pub(super) fn rows(prepared: &Prepared) -> Result<Vec<u8>> {
    let failed = |why: ArrowError| failed(prepared, &why);
    let offsets = OffsetBuffer::<i32>::from_lengths(prepared.rows.iter().map(Vec::len));
    let tokens = || prepared.rows.iter().flatten();
    let list = |name: &str, kind: DataType, nullable: bool, values: ArrayRef| -> Result<(Field, ArrayRef)> {
        let item = Arc::new(Field::new("item", kind, nullable));
        let array = ListArray::try_new(item.clone(), offsets.clone(), values, None).map_err(failed)?;
        Ok((Field::new(name, DataType::List(item), false), Arc::new(array)))
    };
    let start = |token: &Token| token.text.map(|(start, _)| start);
    let end = |token: &Token| token.text.map(|(_, end)| end);
    let number = UInt32Array::from_iter_values(0..prepared.rows.len() as u32);
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) = [
        (Field::new("row", DataType::UInt32, false), Arc::new(number) as ArrayRef),
        list(
            "tokens",
            DataType::UInt32,
            false,
            Arc::new(UInt32Array::from_iter_values(tokens().map(|t| t.id as u32))),
        )?,
        list(
            "documents",
            DataType::UInt64,
            false,
            Arc::new(UInt64Array::from_iter_values(tokens().map(|t| t.document))),
        )?,
        list("text_starts", DataType::UInt64, true, Arc::new(tokens().map(start).collect::<UInt64Array>()))?,
        list("text_ends", DataType::UInt64, true, Arc::new(tokens().map(end).collect::<UInt64Array>()))?,
    ]
    .into_iter()
    .unzip();
    let table = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(failed)?;
    write(prepared, &table, 4096, Vec::new())
}

fn write(prepared: &Prepared, table: &RecordBatch, group: usize, metadata: Vec<KeyValue>) -> Result<Vec<u8>> {
    let mut properties = WriterProperties::builder()
        .set_created_by(format!("tch-lens-harvest, format {}", crate::manifest::FORMAT_VERSION))
        .set_compression(Compression::UNCOMPRESSED)
        .set_encoding(Encoding::PLAIN)
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_key_value_metadata(Some(metadata));
    for name in INDEX {
        properties =
            properties.set_column_statistics_enabled(ColumnPath::new(vec![name.to_string()]), EnabledStatistics::Chunk);
    }
    let failed = |why: parquet::errors::ParquetError| failed(prepared, &why);
    let mut writer = ArrowWriter::try_new(Vec::new(), table.schema(), Some(properties.build())).map_err(failed)?;
    let mut from = 0;
    while from < table.num_rows() {
        let len = group.min(table.num_rows() - from);
        writer.write(&table.slice(from, len)).map_err(failed)?;
        writer.flush().map_err(failed)?;
        from += len;
    }
    writer.into_inner().map_err(failed)
}

fn failed(prepared: &Prepared, why: &dyn std::fmt::Display) -> Error {
    Error::Setting(format!("shard {} cannot be written as Parquet: {why}", prepared.shard))
}
