//! Formats of files that hold tensors: safetensors, GGUF, and what `torch.save` writes; and of quantised weights in them.
//!
//! A reader takes the bytes of a file and says where in it each tensor lies ([`Place`]); nothing is copied, and nothing in a
//! file is run. A file is never trusted: every length is checked before it is used, the memory that a reader takes is bounded
//! by a multiple of the file's length, and a reader ends in a [`FormatError`] rather than in a panic.
//!
//! Nothing in this folder uses libtorch, so that fuzz targets build and run without it, and every layer of the crate can
//! read and write tensors through it.

mod dtype;
mod error;
pub(crate) mod gguf;
mod late_writer;
pub(crate) mod npz;
mod numbers;
mod part_file;
pub(crate) mod pickle;
mod place;
pub(crate) mod quantized;
pub(crate) mod safetensors;
pub(crate) mod stored_zip;
pub(crate) mod torch_file;
pub(crate) mod yaml;

pub(crate) use self::dtype::Dtype;
pub use self::error::FormatError;
pub(crate) use self::late_writer::LateWriter;
pub(crate) use self::numbers::Numbers;
pub(crate) use self::part_file::PartFile;
pub(crate) use self::place::Place;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn nothing_here_uses_libtorch() {
        let files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/format"));
        assert!(files.len() >= 9, "{files:?}");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            for word in ["tch", "torch_sys", "crate"] {
                let path = format!("{word}::"); // `super::` is the way within the folder
                let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
                let found = lines.filter(|line| line.contains(&path)).collect::<Vec<_>>();
                assert!(found.is_empty(), "{}: {found:?}", file.display());
            }
        }
    }
}
