#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tch_lens::fuzzing::saved_cache(bytes));
