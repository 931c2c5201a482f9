//! The reading side: a harvest as tables, with SQL and typed questions.

mod block;
mod co_activation;
mod context;
mod examples;
mod floats;
mod histogram;
mod table;

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt32Array, UInt64Array};
use datafusion::common::exec_datafusion_err;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{ident, ScalarUDF};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures_util::TryStreamExt as _;

use self::block::{Block, Kind};
pub use self::co_activation::CoActivation;
pub use self::context::Context;
pub use self::examples::{Example, Measure, TopOptions};
pub use self::histogram::{Density, Histogram};
use crate::engine::{block_on, from_engine};
use crate::job::committed;
use crate::{Error, Format, Job, Manifest, Result, ShardMetadata, Store};

/// The rows of a batch of a scan, so that a batch of wide activations stays small.
const SCAN_ROWS: usize = 1024;

/// The committed shards of a harvest as tables of SQL, and typed questions about them. Needs no model.
///
/// | table | a row | columns |
/// | --- | --- | --- |
/// | `activations` | a kept activation | `shard`, `row`, `position`, `token`, `document`, `text_start`, `text_end`, and those of the points |
/// | `rows` | a row that the model read | `shard`, `row`, `tokens`, `documents`, `text_starts`, `text_ends` |
/// | `shards` | a shard | `shard`, `documents`, `rows`, `tokens`, `activations`, `bytes`, `files` |
///
/// A point's column has the point's name, in quotation marks as it has dots: `"blocks.1.hook_resid_post"`. SQL counts the entries of a list
/// from 1. `floats(column)` gives fp16 and bf16 columns as lists of fp32. Answers hold for the shards that were committed when it was opened.
///
/// ```no_run
/// # fn main() -> tch_lens_harvest::Result<()> {
/// use tch_lens_harvest::{query::{Query, TopOptions}, Store};
///
/// let query = Query::open(&Store::open("activations")?)?;
/// query.sql("SELECT token, avg(\"blocks.1.hook_resid_post\"[18]) AS mean FROM activations GROUP BY token ORDER BY mean DESC LIMIT 5")?;
/// for example in query.top_examples("blocks.0.mlp.hook_post", 17, TopOptions::new(10))? {
///     println!("{} at position {} of document {}", example.value, example.position, example.document);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Query {
    manifest: Manifest,
    shards: Vec<ShardMetadata>,
    /// For SQL: parallel.
    parallel: SessionContext,
    /// For typed questions: batches come in the order of shards and rows.
    ordered: SessionContext,
}

impl std::fmt::Debug for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Query").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

impl Query {
    /// The harvest in a store, as far as it is committed.
    ///
    /// # Errors
    ///
    /// [`Error::NoManifest`]; [`Error::Setting`] for a harvest without Parquet files and one without a committed shard; [`Error::Malformed`],
    /// [`Error::Store`].
    pub fn open(store: &Store) -> Result<Self> {
        let manifest = Job::manifest_of(store)?;
        let place = store.address();
        if !manifest.formats.contains(&Format::Parquet) {
            return Err(Error::Setting(format!(
                "the harvest in `{place}` has no Parquet files, which questions read: plan it with `--format parquet,safetensors`"
            )));
        }
        let hash = manifest.hash()?;
        let mut shards = Vec::new();
        for shard in manifest.shards() {
            shards.extend(committed(store, &hash, shard)?);
        }
        if shards.is_empty() {
            return Err(Error::Setting(format!("the harvest in `{place}` has no shard yet: run `harvest run` first")));
        }
        let config = SessionConfig::new().with_batch_size(SCAN_ROWS).with_information_schema(true);
        let ordered = SessionContext::new_with_config(config.clone().with_target_partitions(1));
        let parallel = SessionContext::new_with_config(config);
        let query = Query { manifest, shards, parallel, ordered };
        block_on(1, query.register(store))?;
        Ok(query)
    }

    async fn register(&self, store: &Store) -> Result<()> {
        let url = ObjectStoreUrl::parse("harvest://store").map_err(from_engine)?;
        let (objects, prefix) = store.objects()?;
        let summary = summary(&self.shards).map_err(from_engine)?;
        for context in [&self.parallel, &self.ordered] {
            context.register_object_store(url.as_ref(), objects.clone());
            context.register_udf(ScalarUDF::from(floats::Floats::new()));
            for name in ["activations", "rows"] {
                let files = self.shards.iter().filter(|metadata| metadata.rows > 0).filter_map(|metadata| {
                    let path = match name {
                        "activations" => metadata.shard.parquet_path(),
                        _ => metadata.shard.rows_path(),
                    };
                    let record = metadata.files.iter().find(|file| file.path == path)?;
                    Some((metadata.shard, table::join(&prefix, &path), record.bytes))
                });
                let table = table::ShardTable::open(context, &url, &objects, files).await.map_err(from_engine)?;
                context.register_table(name, Arc::new(table)).map_err(from_engine)?;
            }
            context.register_batch("shards", summary.clone()).map_err(from_engine)?;
        }
        Ok(())
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The committed shards.
    pub fn shards(&self) -> &[ShardMetadata] {
        &self.shards
    }

    /// The answer to a question in SQL. Only questions are allowed: nothing can be created, written or set.
    ///
    /// # Errors
    ///
    /// [`Error::Engine`] with DataFusion's sentence for what is no such question, [`Error::Store`] for files that cannot be read.
    pub fn sql(&self, question: &str) -> Result<Vec<RecordBatch>> {
        let allowed = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        block_on(threads(), async {
            let frame = self.parallel.sql_with_options(question, allowed).await.map_err(from_engine)?;
            frame.collect().await.map_err(from_engine)
        })
    }

    /// [`Query::sql`] as a table of text.
    ///
    /// # Errors
    ///
    /// Those of [`Query::sql`].
    pub fn sql_text(&self, question: &str) -> Result<String> {
        let batches = self.sql(question)?;
        let text = datafusion::arrow::util::pretty::pretty_format_batches(&batches);
        Ok(text.map_err(|why| Error::Engine(why.to_string()))?.to_string())
    }

    /// The names of the points' columns, without `.index` and `.value`.
    pub fn columns(&self) -> Vec<&str> {
        self.manifest.points.iter().map(|point| point.point.as_str()).collect()
    }

    /// Shows the activations of a column in the order of shards and rows, a batch at a time.
    fn each(&self, column: &str, mut show: impl FnMut(&Block) -> Result<()> + Send) -> Result<()> {
        let kind = Kind::of(&self.ordered, column, &self.columns())?;
        block_on(1, async {
            let names = block::PLACE.iter().map(|name| ident(*name)).chain(kind.names().into_iter().map(ident));
            let table = self.ordered.table("activations").await.map_err(from_engine)?;
            let mut batches = table
                .select(names.collect::<Vec<_>>())
                .map_err(from_engine)?
                .execute_stream()
                .await
                .map_err(from_engine)?;
            while let Some(batch) = batches.try_next().await.map_err(from_engine)? {
                show(&Block::of(&batch)?)?;
            }
            Ok(())
        })
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The table `shards`.
fn summary(shards: &[ShardMetadata]) -> datafusion::error::Result<RecordBatch> {
    let number =
        |of: fn(&ShardMetadata) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(shards.iter().map(of))) };
    let files = shards
        .iter()
        .map(|metadata| serde_json::to_string(&metadata.files))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|why| exec_datafusion_err!("{why}"))?;
    let columns: [(&str, ArrayRef); 7] = [
        ("shard", Arc::new(UInt32Array::from_iter_values(shards.iter().map(|metadata| metadata.shard.0)))),
        ("documents", number(|metadata| metadata.documents)),
        ("rows", number(|metadata| metadata.rows)),
        ("tokens", number(|metadata| metadata.tokens)),
        ("activations", number(|metadata| metadata.activations)),
        ("bytes", number(|metadata| metadata.files.iter().map(|file| file.bytes).sum())),
        ("files", Arc::new(StringArray::from(files))),
    ];
    Ok(RecordBatch::try_from_iter(columns)?)
}
