//! [`ShardTable`]: one kind of a harvest's files as a table, with the number of the shard in front.

use std::sync::Arc;

use arrow_schema::{DataType, Field, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::file_format::FileFormat as _;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::ShardId;

/// Files with one schema, one a shard.
#[derive(Debug)]
pub(super) struct ShardTable {
    url: ObjectStoreUrl,
    schema: TableSchema,
    files: Vec<PartitionedFile>,
}

impl ShardTable {
    /// The table of files: the shard, the path and the size of each.
    pub(super) async fn open(
        context: &SessionContext,
        url: &ObjectStoreUrl,
        store: &Arc<dyn ObjectStore>,
        files: impl Iterator<Item = (ShardId, Path, u64)>,
    ) -> Result<Self> {
        let mut partitioned = Vec::new();
        let mut first = None;
        for (shard, path, bytes) in files {
            let value = ScalarValue::UInt32(Some(shard.0));
            partitioned.push(PartitionedFile::new(path.to_string(), bytes).with_partition_values(vec![value]));
            first.get_or_insert(path);
        }
        let first = first.ok_or_else(|| DataFusionError::Plan("no shard of the harvest has an activation".into()))?;
        let object = store.head(&first).await.map_err(|why| DataFusionError::ObjectStore(Box::new(why)))?;
        let schema = ParquetFormat::default().infer_schema(&context.state(), store, &[object]).await?;
        let shard = Arc::new(Field::new("shard", DataType::UInt32, false));
        Ok(ShardTable {
            url: url.clone(),
            schema: TableSchema::builder(schema).with_table_partition_cols(vec![shard]).build(),
            files: partitioned,
        })
    }
}

#[async_trait]
impl TableProvider for ShardTable {
    fn schema(&self) -> SchemaRef {
        self.schema.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        // Neighbours stay together, so that one partition reads shards in order.
        let partitions = session.config().target_partitions().max(1);
        let groups =
            self.files.chunks(self.files.len().div_ceil(partitions)).map(|files| FileGroup::new(files.to_vec()));
        let source = Arc::new(ParquetSource::new(self.schema.clone()));
        let scan = FileScanConfigBuilder::new(self.url.clone(), source)
            .with_file_groups(groups.collect())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}

/// A path under a prefix.
pub(super) fn join(prefix: &Path, path: &str) -> Path {
    path.split('/').fold(prefix.clone(), |joined, part| joined.join(part))
}
