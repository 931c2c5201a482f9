//! A `config.yaml`.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(entries) = format::yaml::read(bytes) {
        let text = |value: &format::yaml::Value| match value {
            format::yaml::Value::Scalar(text) => text.len(),
            format::yaml::Value::List(items) => items.iter().map(String::len).sum(),
        };
        let read: usize = entries.iter().map(|(key, value)| key.len() + text(value)).sum();
        assert!(read <= bytes.len(), "more was read than there is");
    }
});
