//! A GGUF file: its metadata, and every number of its tensors.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

use format::gguf::Gguf;
use format::quantized::Method;
use format::{Dtype, Numbers};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::read(bytes) else { return };
    for value in gguf.metadata.values() {
        if let Some(array) = value.array() {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    for (name, tensor) in &gguf.tensors {
        let data = bytes.get(tensor.bytes.clone()).expect("a tensor within the file");
        let columns = tensor.shape.last().map_or(0, |n| *n as usize);
        let numbers = Numbers { dtype: Dtype::U8, shape: &[], bytes: data };
        let rows = Method::Ggml { kind: tensor.kind, columns }.open(&[numbers]).expect("rows of whole blocks");
        let [count, columns] = rows.size();
        assert_eq!(count as i64 * columns as i64, tensor.shape.iter().product::<i64>(), "{name}");
        let mut out = vec![0.0; columns];
        for row in 0..count {
            rows.read(row, &mut out).expect("a row of the tensor");
        }
    }
});
