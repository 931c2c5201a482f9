//! Writes libtorch's folder into this package's tests as an rpath, so that they start without `LD_LIBRARY_PATH`.
//!
//! Cargo keeps an rpath to the package that asks for it. A crate that depends on this one sets its own from
//! `DEP_TCH_LENS_LIBTORCH_LIB`, with the build script that `docs/setup.md` shows.
//!
//! Where libtorch is missing or of another version, torch-sys' own build script, which runs before this one, says so.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // torch-sys (`links = "tch"`) tells where it found libtorch; it does not on Windows, nor for docs.rs.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo::metadata=libtorch_lib={lib}");
        println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
