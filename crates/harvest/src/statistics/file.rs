//! The statistics of a shard as tensors of a safetensors file.

use safetensors::{Dtype, SafeTensors};

use super::{PointStatistics, TopValue, TOP};
use crate::output::tensors::{self, Entry};
use crate::{Error, Job, Result, ShardId};

/// The bytes of a shard's statistics.
pub(crate) fn write(statistics: &[PointStatistics]) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    for of in statistics {
        let width = of.width();
        let mut entry = |name: &str, dtype, shape: Vec<usize>, bytes: Vec<u8>| {
            entries.push(Entry { name: format!("{}.{name}", of.column), dtype, shape, bytes: bytes.into() });
        };
        let floats = |numbers: &[f64]| -> Vec<u8> { numbers.iter().flat_map(|n| n.to_le_bytes()).collect() };
        entry("count", Dtype::U64, vec![1], of.count.to_le_bytes().into());
        entry("mean", Dtype::F64, vec![width], floats(&of.mean));
        entry("m2", Dtype::F64, vec![width], floats(&of.m2));
        entry("active", Dtype::U64, vec![width], of.active.iter().flat_map(|n| n.to_le_bytes()).collect());
        entry("norm_mean", Dtype::F64, vec![1], floats(&[of.norm_mean]));
        entry("norm_m2", Dtype::F64, vec![1], floats(&[of.norm_m2]));
        let (mut values, mut rows) = (Vec::new(), Vec::new());
        for top in &of.top {
            for n in 0..TOP {
                let (value, row) = top.get(n).map_or((f32::NAN, -1), |top| (top.value, top.row as i64));
                values.extend(value.to_le_bytes());
                rows.extend(row.to_le_bytes());
            }
        }
        entry("top_value", Dtype::F32, vec![width, TOP], values);
        entry("top_row", Dtype::I64, vec![width, TOP], rows);
    }
    tensors::write(entries, "")
}

/// The statistics of a committed shard.
pub(super) fn read(job: &Job, shard: ShardId) -> Result<Vec<PointStatistics>> {
    let path = shard.statistics_path();
    let bytes = job.checked_file(shard, &path)?;
    let broken = |why: &str| Error::Corrupted { shard, file: job.store().address_of(&path), why: why.into() };
    let file = SafeTensors::deserialize(&bytes).map_err(|why| broken(&why.to_string()))?;
    job.points()
        .iter()
        .map(|kept| {
            let tensor = |name: &str, len: usize| -> Result<Vec<[u8; 8]>> {
                let found = file
                    .tensor(&format!("{}.{name}", kept.statistics_name()))
                    .map_err(|why| broken(&why.to_string()))?;
                let size = found.dtype().bitsize() / 8;
                let numbers: Vec<[u8; 8]> = found
                    .data()
                    .chunks(size.max(1))
                    .map(|bytes| std::array::from_fn(|n| bytes.get(n).copied().unwrap_or(0)))
                    .collect();
                if numbers.len() == len {
                    Ok(numbers)
                } else {
                    Err(broken("a tensor has another size"))
                }
            };
            let floats = |name: &str, len| {
                Ok::<_, Error>(tensor(name, len)?.into_iter().map(f64::from_le_bytes).collect::<Vec<f64>>())
            };
            let mut of = PointStatistics::new(kept.statistics_name(), kept.width);
            of.count = tensor("count", 1)?.into_iter().map(u64::from_le_bytes).sum();
            of.mean = floats("mean", kept.width)?;
            of.m2 = floats("m2", kept.width)?;
            of.active = tensor("active", kept.width)?.into_iter().map(u64::from_le_bytes).collect();
            of.norm_mean = floats("norm_mean", 1)?.into_iter().sum();
            of.norm_m2 = floats("norm_m2", 1)?.into_iter().sum();
            let values = tensor("top_value", kept.width * TOP)?;
            let rows = tensor("top_row", kept.width * TOP)?;
            for (n, (value, row)) in values.into_iter().zip(rows).enumerate() {
                let value = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                if let Ok(row) = u64::try_from(i64::from_le_bytes(row)) {
                    of.top[n / TOP].push(TopValue { value, shard, row });
                }
            }
            Ok(of)
        })
        .collect()
}
