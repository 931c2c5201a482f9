//! Dictionaries from files: which format a folder or file has, and what it says.
//!
//! Each format is a file here. It reads a configuration, with every field accounted for, and names the tensors; [`tensors`] reads
//! these, or leaves the decoders in the file.

mod circuit_tracer;
mod dictionary_learning;
mod gemma_scope;
mod listed;
mod llama_scope;
mod openai;
mod options;
mod saelens;
mod sparsify;
mod tensors;
#[cfg(feature = "toy")]
mod toy;
mod write;

pub use self::options::DictionaryOptions;
