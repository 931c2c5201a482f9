//! [`HarvestExec`]: the operator that harvests.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow_array::cast::AsArray as _;
use arrow_array::types::UInt32Type;
use arrow_array::{RecordBatch, StringArray, UInt32Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties as _, PlanProperties,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::opened::{self, Opened};
use super::{HarvestReference, Told};
use crate::{harvest, Error, ShardId, ShardMetadata};

static INPUT: LazyLock<SchemaRef> =
    LazyLock::new(|| Arc::new(Schema::new(vec![Field::new("shard", DataType::UInt32, false)])));
static OUTPUT: LazyLock<SchemaRef> = LazyLock::new(|| {
    let fields = vec![Field::new("shard", DataType::UInt32, false), Field::new("metadata", DataType::Utf8, false)];
    Arc::new(Schema::new(fields))
});

/// Harvests the shards whose numbers its input has, and gives a row a shard: its number, and its metadata as JSON.
///
/// The numbers come from an input, and not from the operator itself, because Ballista gives each task its partitions by cutting the plan's
/// leaves, and it can only cut leaves that it knows (`docs/harvest-engine.md`).
#[derive(Debug)]
pub struct HarvestExec {
    reference: HarvestReference,
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl HarvestExec {
    /// The harvest of shards, a list a partition.
    ///
    /// # Errors
    ///
    /// Those of DataFusion; none are known.
    pub fn over(reference: HarvestReference, partitions: &[Vec<ShardId>]) -> Result<Self> {
        let batches = partitions
            .iter()
            .map(|shards| {
                let numbers = UInt32Array::from_iter_values(shards.iter().map(|shard| shard.0));
                Ok(vec![RecordBatch::try_new(INPUT.clone(), vec![Arc::new(numbers)])?])
            })
            .collect::<Result<Vec<_>>>()?;
        HarvestExec::new(reference, MemorySourceConfig::try_new_exec(&batches, INPUT.clone(), None)?)
    }

    /// The harvest of the shards whose numbers an input has, in its column `shard`.
    ///
    /// # Errors
    ///
    /// [`DataFusionError::Plan`] for an input without that column.
    pub fn new(reference: HarvestReference, input: Arc<dyn ExecutionPlan>) -> Result<Self> {
        if input.schema() != *INPUT {
            return Err(DataFusionError::Plan(format!(
                "a harvest reads numbers of shards, and not {}",
                input.schema()
            )));
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(OUTPUT.clone()),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(HarvestExec { reference, input, properties: Arc::new(properties) })
    }

    /// Which harvest.
    pub fn reference(&self) -> &HarvestReference {
        &self.reference
    }
}

impl DisplayAs for HarvestExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HarvestExec: store={}, manifest={}", self.reference.store, self.reference.manifest)
    }
}

impl ExecutionPlan for HarvestExec {
    fn name(&self) -> &str {
        "HarvestExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    /// The partitions are the tasks, so none may be added.
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|found| DataFusionError::Plan(format!("a harvest has one input, and not {}", found.len())))?;
        Ok(Arc::new(HarvestExec::new(self.reference.clone(), input)?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let reference = self.reference.clone();
        let output = self.input.execute(partition, context)?.and_then(move |batch| {
            let reference = reference.clone();
            async move {
                let numbers = batch.column(0).as_primitive::<UInt32Type>();
                let shards: Vec<ShardId> = numbers.values().iter().map(|&number| ShardId(number)).collect();
                // A harvest computes and waits; neither may hold a thread of the engine.
                tokio::task::spawn_blocking(move || run(&reference, shards))
                    .await
                    .map_err(|why| to_engine(Error::Engine(format!("a task ended: {why}"))))?
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(OUTPUT.clone(), output.boxed())))
    }
}

fn run(reference: &HarvestReference, shards: Vec<ShardId>) -> Result<RecordBatch> {
    let Opened { job, progress } = opened::open(reference).map_err(to_engine)?;
    let harvested = harvest(&job, shards, |now| progress(now)).map_err(to_engine)?;
    let numbers = UInt32Array::from_iter_values(harvested.iter().map(|metadata| metadata.shard.0));
    let json: Vec<String> = harvested
        .iter()
        .map(|metadata| serde_json::to_string(metadata).map_err(|why| DataFusionError::External(why.into())))
        .collect::<Result<_>>()?;
    Ok(RecordBatch::try_new(OUTPUT.clone(), vec![Arc::new(numbers), Arc::new(StringArray::from(json))])?)
}

/// Our error as the engine's. A store that fails may be well the next time, and Ballista tries again only what is an error of input and
/// output; all else would fail again.
fn to_engine(error: Error) -> DataFusionError {
    match error {
        error @ Error::Store { .. } => DataFusionError::IoError(std::io::Error::other(Told(error))),
        error => DataFusionError::External(Box::new(Told(error))),
    }
}

/// The metadata in what the operator gave.
pub(super) fn metadata(batches: &[RecordBatch]) -> crate::Result<Vec<ShardMetadata>> {
    let mut found = Vec::new();
    for batch in batches {
        let column = batch.column_by_name("metadata").and_then(|column| column.as_string_opt::<i32>());
        let column = column.ok_or_else(|| Error::Engine("a result of the engine has no column `metadata`".into()))?;
        for json in column.iter().flatten() {
            found.push(serde_json::from_str(json).map_err(|why| Error::Malformed {
                file: "a result of the engine".into(),
                what: "metadata of a shard",
                why: why.to_string(),
            })?);
        }
    }
    found.sort_by_key(|metadata: &ShardMetadata| metadata.shard);
    Ok(found)
}
