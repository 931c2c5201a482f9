//! [`Context`]: the tokens around an activation.

use arrow_array::cast::AsArray as _;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;

use crate::{Error, Format, Job, Result, ShardId};

/// Where an activation is from: the tokens of the row that the model read, and its place among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The tokens of the row.
    pub tokens: Vec<i64>,
    /// The activation's position.
    pub position: usize,
    /// The number of its document in the corpus.
    pub document: u64,
}

impl Context {
    /// The contexts of activations of a shard, by their rows in its table of activations. The harvest has Parquet.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::Corrupted`]; [`Error::Setting`] for a row that the table does not have, and a harvest without Parquet.
    pub fn of_rows(job: &Job, shard: ShardId, rows: &[u64]) -> Result<Vec<Context>> {
        if !job.manifest().formats.contains(&Format::Parquet) {
            return Err(Error::Setting("contexts are read from Parquet, which this harvest is without".into()));
        }
        let activations = table(job, shard, &shard.parquet_path(), &["row", "position", "document"])?;
        let read = table(job, shard, &shard.rows_path(), &["row", "tokens"])?;
        let tokens: Vec<Vec<i64>> = read
            .iter()
            .flat_map(|batch| batch["tokens"].as_list::<i32>().iter().flatten().collect::<Vec<_>>())
            .map(|list| list.as_primitive::<UInt32Type>().values().iter().map(|&id| id.into()).collect())
            .collect();
        rows.iter()
            .map(|&wanted| {
                let none = || Error::Setting(format!("shard {shard} has no activation {wanted}"));
                let mut at = wanted as usize;
                for batch in &activations {
                    if at < batch.num_rows() {
                        let number = |name: &str| batch[name].as_primitive::<UInt32Type>().value(at) as usize;
                        let tokens = tokens.get(number("row")).ok_or_else(none)?.clone();
                        let document = batch["document"].as_primitive::<UInt64Type>().value(at);
                        return Ok(Context { tokens, position: number("position"), document });
                    }
                    at -= batch.num_rows();
                }
                Err(none())
            })
            .collect()
    }
}

/// Columns of a shard's table.
fn table(job: &Job, shard: ShardId, path: &str, columns: &[&str]) -> Result<Vec<RecordBatch>> {
    let bytes = job.checked_file(shard, path)?;
    read(bytes, columns).map_err(|why| Error::Malformed {
        file: job.store().address_of(path),
        what: "table of a shard",
        why: why.to_string(),
    })
}

fn read(bytes: Bytes, columns: &[&str]) -> Result<Vec<RecordBatch>, ParquetError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let indices = columns.iter().map(|name| builder.schema().index_of(name)).collect::<Result<Vec<_>, _>>()?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), indices);
    Ok(builder.with_projection(mask).build()?.collect::<Result<_, _>>()?)
}
