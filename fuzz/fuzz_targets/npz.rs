//! A `params.npz`.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for (name, place) in format::npz::entries(bytes).unwrap_or_default() {
        let range = place.bytes().expect("an array of some length");
        assert!(bytes.get(range).is_some(), "{name} lies outside the file");
    }
});
