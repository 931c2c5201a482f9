//! Safetensors files. Their bytes are the same in every run: entries are in order, and there is at most one text beside them.

use std::borrow::Cow;
use std::collections::HashMap;

use arrow_buffer::Buffer;
use safetensors::{Dtype, View};

use super::Finished;
use crate::prepare::Prepared;
use crate::{DType, Error, Job, Result};

/// A tensor to write.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Buffer,
}

impl View for &Entry {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes.as_slice())
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The bytes of a file; `manifest` is a text beside the tensors, if it is not empty.
pub(crate) fn write(entries: Vec<Entry>, manifest: &str) -> Result<Vec<u8>> {
    let text = (!manifest.is_empty()).then(|| HashMap::from([("manifest".to_string(), manifest.to_string())]));
    safetensors::serialize(entries.iter().map(|entry| (&entry.name, entry)), text)
        .map_err(|why| Error::Setting(format!("a shard cannot be written as safetensors: {why}")))
}

/// The activations of a shard with what belongs to them, a tensor a column.
pub(super) fn activations(job: &Job, prepared: &Prepared, columns: &[Finished]) -> Result<Vec<u8>> {
    let index = super::table::Index::of(prepared);
    let n = prepared.activations();
    let mut entries = vec![
        Entry { name: "row".into(), dtype: Dtype::U32, shape: vec![n], bytes: Buffer::from_vec(index.row) },
        Entry { name: "position".into(), dtype: Dtype::U32, shape: vec![n], bytes: Buffer::from_vec(index.position) },
        // torch has no unsigned numbers of 32 bits to index with.
        Entry { name: "token".into(), dtype: Dtype::I64, shape: vec![n], bytes: Buffer::from_vec(index.token) },
        Entry { name: "document".into(), dtype: Dtype::U64, shape: vec![n], bytes: Buffer::from_vec(index.document) },
    ];
    for (kept, column) in job.points().iter().zip(columns) {
        let name = &kept.column;
        match column {
            Finished::Dense { width, dtype, numbers } => entries.push(Entry {
                name: name.clone(),
                dtype: of(*dtype),
                shape: vec![n, *width],
                bytes: numbers.clone(),
            }),
            Finished::Sparse { offsets, index, dtype, value } => {
                let offsets: Vec<i64> = offsets.iter().map(|&offset| offset as i64).collect();
                let shape = vec![index.len()];
                let entry =
                    |part: &str, dtype, shape, bytes| Entry { name: format!("{name}.{part}"), dtype, shape, bytes };
                entries.push(entry("offsets", Dtype::I64, vec![n + 1], Buffer::from_vec(offsets)));
                let index: Vec<i64> = index.iter().map(|&index| index.into()).collect();
                entries.push(entry("index", Dtype::I64, shape.clone(), Buffer::from_vec(index)));
                entries.push(entry("value", of(*dtype), shape, value.clone()));
            }
        }
    }
    write(entries, job.manifest_hash())
}

fn of(dtype: DType) -> Dtype {
    match dtype {
        DType::Fp32 => Dtype::F32,
        DType::Fp16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
    }
}
