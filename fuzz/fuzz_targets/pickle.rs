//! A pickle alone, without the container that `torch.save` puts it in.
#![no_main]

#[path = "../../src/format/mod.rs"]
#[allow(dead_code, unused_imports)]
mod format;

use format::pickle::Pickle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(pickle) = Pickle::read(bytes) {
        assert!(pickle.len <= bytes.len());
        // A file in which every storage is there, and of 64 bytes.
        let tensors = format::torch_file::named(&pickle, |_| Ok(64..128)).unwrap_or_default();
        for (name, place) in tensors {
            let range = place.bytes().expect("a tensor of some length");
            assert!(range.is_empty() || (range.start >= 64 && range.end <= 128), "{name} lies outside its storage");
        }
    }
});
