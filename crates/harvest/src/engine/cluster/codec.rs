//! [`HarvestCodec`]: plans as bytes, for scheduler and workers.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};

use crate::engine::{HarvestExec, HarvestReference};

/// What begins the bytes of a [`HarvestExec`]. Ballista's own operators are protocol buffers, which never begin with this byte.
const MARK: &[u8] = b"\xfftch-lens-harvest 1\n";

/// Writes and reads [`HarvestExec`] as its reference; leaves all other operators to Ballista's codec.
#[derive(Debug, Default)]
pub struct HarvestCodec {
    others: BallistaPhysicalExtensionCodec,
}

impl PhysicalExtensionCodec for HarvestCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(json) = bytes.strip_prefix(MARK) else {
            return self.others.try_decode(bytes, inputs, context, converter);
        };
        let wrong = |why: String| DataFusionError::Plan(format!("a plan holds no harvest of this version: {why}"));
        let reference: HarvestReference = serde_json::from_slice(json).map_err(|why| wrong(why.to_string()))?;
        match inputs {
            [input] => Ok(Arc::new(HarvestExec::new(reference, input.clone())?)),
            others => Err(wrong(format!("it has {} inputs in place of one", others.len()))),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some(harvest) = node.downcast_ref::<HarvestExec>() else {
            return self.others.try_encode(node, bytes, converter);
        };
        bytes.extend_from_slice(MARK);
        serde_json::to_writer(bytes, harvest.reference()).map_err(|why| DataFusionError::Plan(why.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::physical_plan::ExecutionPlan as _;
    use datafusion::prelude::SessionContext;
    use datafusion_proto::physical_plan::AsExecutionPlan as _;
    use datafusion_proto::protobuf::PhysicalPlanNode;

    use super::*;
    use crate::ShardId;

    #[test]
    fn a_plan_is_small_and_comes_back() {
        let reference = HarvestReference { store: "s3://bucket/harvest".into(), manifest: "0".repeat(64) };
        let partitions: Vec<Vec<ShardId>> = (0..1000).map(|number| vec![ShardId(number)]).collect();
        let plan = HarvestExec::over(reference.clone(), &partitions).unwrap();
        let codec = HarvestCodec::default();
        let node = PhysicalPlanNode::try_from_physical_plan(Arc::new(plan), &codec).unwrap();
        let mut bytes = Vec::new();
        node.try_encode(&mut bytes).unwrap();
        println!("a plan of 1000 tasks has {} bytes", bytes.len());
        assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
        let back = PhysicalPlanNode::try_decode(&bytes)
            .unwrap()
            .try_into_physical_plan(&SessionContext::new().task_ctx(), &codec)
            .unwrap();
        let back = back.downcast_ref::<HarvestExec>().unwrap();
        assert_eq!(back.reference(), &reference);
        assert_eq!(back.properties().output_partitioning().partition_count(), 1000);
        let error = codec.try_decode(
            b"\xfftch-lens-harvest 1\n{}",
            &[],
            &SessionContext::new().task_ctx(),
            &datafusion_proto::physical_plan::DefaultPhysicalProtoConverter {},
        );
        assert!(error.unwrap_err().to_string().contains("no harvest of this version"));
    }
}
