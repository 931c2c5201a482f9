//! A zip archive alone, whatever its members hold.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

use format::stored_zip::StoredZip;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(zip) = StoredZip::read(bytes) {
        let mut total = 0;
        for (name, place) in zip.members() {
            total += place.len();
            assert!(bytes.get(place).is_some(), "{name} lies outside the file");
        }
        assert!(total <= bytes.len(), "members overlap");
    }
});
