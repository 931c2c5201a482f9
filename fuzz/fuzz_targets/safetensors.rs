//! A `model.safetensors`, or the index of its shards.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (name, place) in format::safetensors::entries(bytes).unwrap_or_default() {
        let range = place.bytes().expect("a tensor of some length");
        assert!(bytes.get(range).is_some(), "{name} lies outside the file");
    }
    for shard in format::safetensors::shards(bytes).unwrap_or_default() {
        assert!(shard.components().count() == 1 && shard.file_name().is_some(), "{shard:?} is in another folder");
    }
});
