//! The tensors of one quantised weight, in a safetensors file, under the names that its method gives them.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

use std::collections::BTreeMap;

use format::quantized::Method;
use format::Numbers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let entries = format::safetensors::entries(bytes).unwrap_or_default();
    let tensors: BTreeMap<_, _> = entries.iter().map(|(name, place)| (name.as_str(), place)).collect();
    let part = |name: &&str| {
        let place = tensors.get(*name)?;
        Some(Numbers { dtype: place.dtype, shape: &place.shape, bytes: bytes.get(place.bytes()?)? })
    };
    let mut weights = vec![
        (Method::Awq, vec!["qweight", "qzeros", "scales"]),
        (Method::Int8, vec!["weight", "SCB"]),
        (Method::Fp8 { block: None }, vec!["weight", "weight_scale_inv"]),
        (Method::Fp8 { block: Some([32, 32]) }, vec!["weight", "weight_scale_inv"]),
        (Method::Mxfp4, vec!["blocks", "scales"]),
    ];
    for bits in [2, 4, 8] {
        for group_size in [None, Some(16)] {
            let method = Method::Gptq { bits, group_size, zeros_from_one: bits == 4 };
            weights.push((method.clone(), vec!["qweight", "qzeros", "scales"]));
            weights.push((method, vec!["qweight", "qzeros", "scales", "g_idx"]));
        }
    }
    if let Some(state) = part(&"quant_state").and_then(|state| serde_json::from_slice(state.bytes).ok()) {
        let method = Method::FourBits(state);
        let plain = vec!["weight", "absmax", "quant_map"];
        weights.push((method.clone(), [&plain[..], &["nested_absmax", "nested_quant_map"]].concat()));
        weights.push((method, plain));
    }
    for (method, names) in weights {
        let Some(parts) = names.iter().map(part).collect::<Option<Vec<_>>>() else { continue };
        let Ok(rows) = method.open(&parts) else { continue };
        let [count, columns] = rows.size();
        let numbers = count.checked_mul(columns).expect("a number of numbers");
        assert!(numbers <= bytes.len() * 4, "{method:?} has {numbers} numbers");
        let mut out = vec![0.0; columns];
        for row in 0..count {
            let _ = rows.read(row, &mut out); // an index may lead nowhere
        }
    }
});
