//! A `pytorch_model.bin`.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (name, place) in format::torch_file::entries(bytes).unwrap_or_default() {
        let range = place.bytes().expect("a tensor of some length");
        assert!(bytes.get(range).is_some(), "{name} lies outside the file");
    }
    for (name, leaf) in format::torch_file::leaves(bytes).unwrap_or_default() {
        if let format::torch_file::Leaf::Tensor(place) = leaf {
            let range = place.bytes().expect("a tensor of some length");
            assert!(bytes.get(range).is_some(), "{name} lies outside the file");
        }
    }
});
