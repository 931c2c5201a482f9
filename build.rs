//! Writes libtorch's folder into this package's binaries, tests, examples and benches (an rpath), so that they start
//! without `LD_LIBRARY_PATH`.
//!
//! Cargo keeps such an argument to the package that asks for it. A crate that depends on this one either does the
//! same (`torch-sys` as a direct dependency and the two lines of `main` in its own `build.rs`), or sets
//! `LD_LIBRARY_PATH` (macOS: `DYLD_LIBRARY_PATH`) to libtorch's `lib` folder; `docs/setup.md` shows it.
//!
//! Where libtorch is missing or of another version, torch-sys' own build script, which runs before this one, says so.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // torch-sys (`links = "tch"`) tells where it found libtorch; it does not on Windows, nor for docs.rs.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
